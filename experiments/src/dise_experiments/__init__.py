"""The experiments of the paper, and their command line."""
