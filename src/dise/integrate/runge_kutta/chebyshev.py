"""Butcher tableaux of the damped Runge–Kutta–Chebyshev method of order 1.

For y' = λy, stage j (and the end of the step, j = s) multiplies y by T_j(w0 + w1 z) / T_j(w0), where z = λ dt, T_j is
the Chebyshev polynomial of degree j, w0 = cosh θ with cosh(sθ) = 1 / damping, and w1 = T_s(w0) / T_s'(w0). The papers
write the method as a three-term recurrence, like that of the T_j:

    T_j(w0) y_j = 2 w0 T_(j-1)(w0) y_(j-1) − T_(j-2)(w0) y_(j-2) + 2 w1 T_(j-1)(w0) dt f(y_(j-1)).

The contribution of f(y_i) to the later T_j(w0) y_j grows like the Chebyshev polynomials of the second kind,
sinh(nθ) / sinh θ, and T_i(w0) = cosh(iθ). This gives the coefficients below, which are all positive.

Source: van der Houwen, Sommeijer, On the internal stability of explicit, m-stage Runge–Kutta methods for large
m-values, ZAMM 60, 1980; Verwer, Explicit Runge–Kutta methods for parabolic partial differential equations, Appl.
Numer. Math. 22, 1996.
"""

from functools import cache
from math import acosh, cosh, sinh, tanh

from dise.integrate.runge_kutta.tableau import ButcherTableau


@cache
def chebyshev(stages: int, damping: float) -> ButcherTableau:
    """The method's tableau; its interpolant is linear.

    Args:
        stages: s ≥ 1.
        damping: in (0, 1), bound of |R(z)| for the damped modes (see `dise.RKC1`).
    """
    theta = _angle(stages, damping)
    rows = [tuple(_coefficient(i, j, stages, theta) for i in range(j)) for j in range(stages + 1)]
    return ButcherTableau(
        c=tuple(j * tanh(j * theta) / (stages * tanh(stages * theta)) for j in range(stages)),
        a=tuple(rows[:-1]),
        b=rows[-1],
        order=1,
        interpolant=tuple((weight,) for weight in rows[-1]),
    )


def stability_interval(stages: int, damping: float) -> float:
    """β = 2 w0 / w1: no mode with z in [−β, 0] is amplified."""
    theta = _angle(stages, damping)
    return 2 * stages * tanh(stages * theta) / tanh(theta)


def _angle(stages: int, damping: float) -> float:
    """θ = arccosh(1 / damping) / stages."""
    # smaller damping would overflow and changes no digit: the method already equals `stages` Euler steps
    return acosh(1 / max(damping, 1e-300)) / stages


def _coefficient(i: int, j: int, stages: int, theta: float) -> float:
    """a_ji, the weight of k_i in stage j."""
    share = cosh(i * theta) * sinh((j - i) * theta) / cosh(j * theta)
    return (1 if i == 0 else 2) * share / (stages * tanh(stages * theta))
