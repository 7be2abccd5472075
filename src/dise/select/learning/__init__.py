"""Selectors, their networks, and what they are fitted with."""
