"""Handwritten digits, classified by an ODE-Net."""
