"""Conditional flow matching: the trained vector fields of the benchmarks of samplers."""
