"""Runge–Kutta methods: Butcher tableaux and a single step."""
