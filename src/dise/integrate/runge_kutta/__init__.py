"""Runge–Kutta methods as data, and one step of them."""
