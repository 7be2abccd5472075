"""Weights of Adams methods for equal steps, computed exactly.

Source: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, III.1: f is replaced by the polynomial
through its latest values and integrated, y_{n+1} = y_n + h Σ_j γ_j ∇^j f_n, where ∇ is the backward difference.
"""

from fractions import Fraction
from functools import cache
from math import comb


@cache
def bashforth_weights(order: int) -> tuple[Fraction, ...]:
    """Explicit weights β_i of y_{n+1} = y_n + h Σ_i β_i f_{n−i}; as many as the order."""
    differences: list[Fraction] = []
    for m in range(order):
        differences.append(1 - _tail(differences, m))
    return _weights(differences)


@cache
def moulton_weights(order: int) -> tuple[Fraction, ...]:
    """Implicit weights β_i of y_{n+1} = y_n + h Σ_i β_i f_{n+1−i}; as many as the order."""
    differences: list[Fraction] = []
    for m in range(order):
        differences.append(int(m == 0) - _tail(differences, m))
    return _weights(differences)


def _tail(differences: list[Fraction], m: int) -> Fraction:
    """Σ_{j<m} γ_j / (m − j + 1), the sum in the recurrence of γ_m."""
    return sum((gamma / (m - j + 1) for j, gamma in enumerate(differences)), Fraction(0))


def _weights(differences: list[Fraction]) -> tuple[Fraction, ...]:
    """Weights of the values, from weights γ_j of their differences: ∇^j f_n = Σ_i (−1)^i (j over i) f_{n−i}."""
    number = len(differences)
    return tuple((-1) ** i * sum(comb(j, i) * differences[j] for j in range(i, number)) for i in range(number))
