"""Risks, and tests that bound them."""
