"""Samplers and densities of flows with a guarantee: candidates, families of policies, their choice and their test."""
