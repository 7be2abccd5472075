"""Coefficients of Adams methods against the tables of the literature, and the property that defines them."""

from fractions import Fraction

import pytest

from dise.integrate.multistep.adams_weights import bashforth_weights, moulton_weights


def over(divisor, *numbers):
    return tuple(Fraction(number, divisor) for number in numbers)


def test_low_orders_are_those_of_the_literature():
    """Hairer, Nørsett, Wanner, III.1."""
    assert bashforth_weights(1) == over(1, 1)
    assert bashforth_weights(2) == over(2, 3, -1)
    assert bashforth_weights(3) == over(12, 23, -16, 5)
    assert bashforth_weights(4) == over(24, 55, -59, 37, -9)
    assert moulton_weights(1) == over(1, 1)
    assert moulton_weights(2) == over(2, 1, 1)
    assert moulton_weights(3) == over(12, 5, 8, -1)
    assert moulton_weights(4) == over(24, 9, 19, -5, 1)


@pytest.mark.parametrize("order", range(1, 16))
@pytest.mark.parametrize(("weights", "latest"), [(bashforth_weights, 0), (moulton_weights, 1)])
def test_polynomials_below_the_order_are_integrated_exactly(weights, latest, order):
    """∫₀¹ s^p ds = Σ β_i (latest − i)^p, in fractions."""
    for power in range(order):
        total = sum(beta * Fraction(latest - i) ** power for i, beta in enumerate(weights(order)))
        assert total == Fraction(1, power + 1)
