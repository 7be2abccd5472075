"""Running the paper's experiments: train, select, evaluate, report."""
