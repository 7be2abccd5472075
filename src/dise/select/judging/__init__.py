"""Costs of candidates, scores of policies, and the tools to compare them."""
