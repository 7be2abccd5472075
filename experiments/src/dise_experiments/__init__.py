"""The paper's experiments, and their command line."""
