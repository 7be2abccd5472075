"""The damped Runge–Kutta–Chebyshev method of order 1, as a tableau for each number of stages.

Its stage j (and the step's end, j = s) multiplies y of y' = λy by T_j(w0 + w1 z) / T_j(w0), where z = λ dt, T_j is
Chebyshev's polynomial, w0 = cosh θ with cosh(sθ) = 1 / damping, and w1 = T_s(w0) / T_s'(w0). The papers write it as a
recurrence, of three terms as that of the T_j:

    T_j(w0) y_j = 2 w0 T_(j-1)(w0) y_(j-1) − T_(j-2)(w0) y_(j-2) + 2 w1 T_(j-1)(w0) dt f(y_(j-1)).

What f(y_i) adds to the later T_j(w0) y_j grows as Chebyshev's polynomials of the second kind, sinh(nθ) / sinh θ, and
T_i(w0) is cosh(iθ): hence the coefficients below, which are all positive.

Source: van der Houwen, Sommeijer, On the internal stability of explicit, m-stage Runge–Kutta methods for large
m-values, ZAMM 60, 1980; Verwer, Explicit Runge–Kutta methods for parabolic partial differential equations, Appl.
Numer. Math. 22, 1996.
"""

from functools import cache
from math import acosh, cosh, sinh, tanh

from dise.integrate.runge_kutta.tableau import ButcherTableau


@cache
def chebyshev(stages: int, damping: float) -> ButcherTableau:
    """The method's tableau; its interpolant is the straight line.

    Args:
        stages: s ≥ 1.
        damping: in (0, 1).
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
    """β such that z in [−β, 0] is multiplied by 1 in size at most: 2 w0 / w1."""
    theta = _angle(stages, damping)
    return 2 * stages * tanh(stages * theta) / tanh(theta)


def _angle(stages: int, damping: float) -> float:
    """θ."""
    # what is smaller would overflow, and changes no digit: these are `stages` Euler steps already
    return acosh(1 / max(damping, 1e-300)) / stages


def _coefficient(i: int, j: int, stages: int, theta: float) -> float:
    """a_ji, of k_i in stage j."""
    share = cosh(i * theta) * sinh((j - i) * theta) / cosh(j * theta)
    return (1 if i == 0 else 2) * share / (stages * tanh(stages * theta))
