"""Selectors, their networks and fits, and the choice of the penalty M."""
