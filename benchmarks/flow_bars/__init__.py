"""The rows of `benchmarks/flows.py`, one question a file."""
