"""The steps of an experiment: train, select, evaluate, report."""
