"""Solvers fitted to a flow: tables of a few evaluations whose times and weights are learned from its own draws."""
