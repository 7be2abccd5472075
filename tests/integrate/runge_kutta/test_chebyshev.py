"""The damped Runge–Kutta–Chebyshev method against Chebyshev's polynomials as NumPy has them."""

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev as numpys
from torch.testing import assert_close

from dise import RKC1, Euler, solve
from dise.integrate.runge_kutta.chebyshev import chebyshev

METHODS = [(1, 0.1), (2, 0.03), (3, 0.1), (4, 0.1), (5, 0.3), (8, 0.1), (12, 0.95), (40, 0.5)]
every = pytest.mark.parametrize(("stages", "damping"), METHODS)


def shift_and_slope(stages, damping):
    """w0 and w1: T_s(w0) = 1 / damping beyond 1, R(0) = R'(0) = 1."""
    T = numpys.Chebyshev.basis(stages)
    roots = (T - 1 / damping).roots()
    w0 = max(roots[np.abs(roots.imag) < 1e-6].real) if stages < 20 else math.cosh(math.acosh(1 / damping) / stages)
    return w0, T(w0) / T.deriv()(w0)


def polynomial(stages, damping, z):
    """T_s(w0 + w1 z) / T_s(w0), by NumPy."""
    T, (w0, w1) = numpys.Chebyshev.basis(stages), shift_and_slope(stages, damping)
    return T(w0 + w1 * z) / T(w0)


def factors(method, z):
    """[n] what one solve multiplies y of y' = zy by, over a span of 1."""
    rates = torch.tensor(z, dtype=torch.float64)[:, None]
    return solve(lambda t, y, z: z * y, torch.ones_like(rates), 0.0, 1.0, method, sample_args=(rates,)).y[:, 0].numpy()


@every
def test_a_step_is_chebyshevs_polynomial(stages, damping):
    method = RKC1(1, stages, damping)
    z = np.linspace(-1.1 * method.stability_interval, 0.5, 301)
    np.testing.assert_allclose(factors(method, z), polynomial(stages, damping, z), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        factors(RKC1(3, stages, damping), 3 * z), polynomial(stages, damping, z) ** 3, rtol=1e-8, atol=1e-8
    )


@every
def test_coefficients_are_those_of_the_papers_recurrence(stages, damping):
    """Three terms each, written out as rows: van der Houwen, Sommeijer 1980."""
    w0, w1 = shift_and_slope(stages, damping)
    T = [numpys.chebval(w0, [0] * j + [1]) for j in range(stages + 1)]
    rows = np.zeros((stages + 1, stages))
    rows[1, 0] = w1 / w0
    for j in range(2, stages + 1):
        rows[j] = 2 * w0 * T[j - 1] / T[j] * rows[j - 1] - T[j - 2] / T[j] * rows[j - 2]
        rows[j, j - 1] += 2 * w1 * T[j - 1] / T[j]
    tableau = chebyshev(stages, damping)
    for j, row in enumerate((*tableau.a, tableau.b)):
        np.testing.assert_allclose(row, rows[j, : len(row)], rtol=0, atol=1e-13)
    assert all(0 <= c < 1 for c in tableau.c)
    assert list(tableau.c) == sorted(tableau.c)


@every
def test_modes_are_damped_within_the_stability_interval_and_grow_beyond(stages, damping):
    method, (w0, _) = RKC1(1, stages, damping), shift_and_slope(stages, damping)
    beta = method.stability_interval
    assert np.abs(factors(method, np.linspace(-beta, 0, 1001))).max() <= 1 + 1e-9
    assert np.abs(factors(method, np.array([-1.01 * beta]))) > 1.005
    damped = -beta * np.linspace((1 - 1 / w0) / 2, (1 + 1 / w0) / 2, 1001)
    assert np.abs(factors(method, damped)).max() == pytest.approx(damping, rel=1e-6)


def test_stability_intervals_of_weak_and_of_full_damping():
    """2 s² of the undamped method (van der Houwen, Sommeijer), 2 s of s steps of Euler's."""
    for stages in (1, 2, 5, 10):
        assert RKC1(1, stages, 1 - 1e-12).stability_interval == pytest.approx(2 * stages**2, rel=1e-5)
        assert RKC1(1, stages, 1e-320).stability_interval == pytest.approx(2 * stages, rel=1e-12)


def test_stability_interval_at_the_papers_damping():
    """Verwer 1996: w0 = 1 + ε/s² gives β ≈ (2 − 4ε/3) s²; there ε = 0.05."""
    for stages in (10, 20, 40):
        damping = 1 / math.cosh(stages * math.acosh(1 + 0.05 / stages**2))
        assert RKC1(1, stages, damping).stability_interval == pytest.approx(1.93 * stages**2, rel=5e-3)


def test_one_stage_is_euler_and_full_damping_is_more_steps_of_it(tanh_field, starts):
    f, y0 = tanh_field(3), starts(4, 3)
    for method, same in ((RKC1(3, 1), Euler(3)), (RKC1(2, 4, 1e-300), Euler(8)), (RKC1(2, 4, 5e-324), Euler(8))):
        assert_close(solve(f, y0, 0.0, 2.0, method).y, solve(f, y0, 0.0, 2.0, same).y, rtol=1e-12, atol=1e-12)


def test_heat_where_euler_blows_up():
    """uₜ = uₓₓ on 31 points, eigenvalues down to −4086, over a time of 0.1: 60 evaluations of f each."""
    n = 31
    laplace = (n + 1) ** 2 * (np.diag(np.full(n, -2.0)) + np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1))
    rates, modes = np.linalg.eigh(laplace)
    x = np.arange(1, n + 1) / (n + 1)
    start = x * (1 - x) + 0.1 * np.sin(31 * np.pi * x)
    exact = modes @ (np.exp(0.1 * rates) * (modes.T @ start))
    matrix, y0 = torch.tensor(laplace), torch.tensor(start)[None]
    euler, ours = (solve(lambda t, y: y @ matrix, y0, 0.0, 0.1, method) for method in (Euler(60), RKC1(3, 20)))
    assert euler.nfe.item() == ours.nfe.item() == 60
    assert euler.y.abs().max() > 1e10
    assert np.abs(ours.y[0].numpy() - exact).max() < 0.07 * np.abs(exact).max()


def test_between_steps_it_is_the_straight_line():
    solution = solve(lambda t, y: -9 * y, torch.ones(1, 1).double(), 0.0, 1.0, RKC1(2), save_at=[0.0, 0.125, 0.5, 0.75])
    start, early, middle, late = solution.saved[0, :, 0]
    assert_close(early, 0.75 * start + 0.25 * middle)
    assert_close(late, (middle + solution.y[0, 0]) / 2)


@pytest.mark.parametrize("damping", [0, 1, -0.1, 1.5, 0.0, 1.0, math.nan, math.inf, "0.1", None, True])
def test_damping_must_lie_between_0_and_1(damping):
    with pytest.raises(ValueError, match="damping: expected a number between 0 and 1, got"):
        RKC1(damping=damping)


@pytest.mark.parametrize("stages", [0, -1, 2.0, True, "3", None])
def test_stages_must_be_a_positive_whole_number(stages):
    with pytest.raises(ValueError, match="stages: expected a whole number of at least 1, got"):
        RKC1(stages=stages)


@pytest.mark.parametrize("stages", [1, 2, 7, 100, 400])
@pytest.mark.parametrize("damping", [5e-324, 1e-12, 0.5, 1 - 1e-10, math.nextafter(1, 0)])
def test_every_setting_passes_the_tableaus_checks(stages, damping):
    assert RKC1(1, stages, damping).tableau.stages == stages
