"""Solvers of trained flows beside each other: errors, evaluations, densities, distributions, times."""
