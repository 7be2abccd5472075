"""Time grids, and tables of multistep methods of a fixed budget: pure mathematics."""
