"""Time grids against the formulas of the libraries they come from."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

import dise
from dise import RK4, Euler, Midpoint, StepDoubling, TimeGrid, grids

DOUBLE = torch.float64


def sigmas(grid):
    """Noise levels of a grid of a straight path."""
    return 1 - np.array(grid.fractions)


def test_uniform_steps_are_the_integrators_own():
    f = lambda t, y: y * torch.cos(3 * t)  # noqa: E731
    y0 = torch.tensor([[1.0], [2.0]], dtype=DOUBLE)
    for method in (Euler, Midpoint, RK4):
        equal, grid = (dise.solve(f, y0, 0.3, 2.0, method(steps)).y for steps in (7, grids.uniform(7)))
        assert torch.equal(equal, grid)


def test_sway_is_f5s_formula():
    t = torch.linspace(0, 1, 33, dtype=DOUBLE)
    for c in (-1.0, -0.4, 1.2):
        expected = t + c * (torch.cos(torch.pi / 2 * t) - 1 + t)
        torch.testing.assert_close(
            torch.tensor(grids.sway(32, c).fractions, dtype=DOUBLE), expected, rtol=0, atol=1e-12
        )


def test_epss_keeps_some_points_of_32():
    for n in (5, 6, 7, 10, 12, 16):
        grid = grids.epss(n)
        assert grid.steps == n
        assert all((32 * x).is_integer() for x in grid.fractions)
    assert [32 * x for x in grids.epss(7).fractions] == [0, 2, 4, 6, 8, 16, 24, 32]


@pytest.mark.parametrize("n", [1, 4, 28])
def test_shift_is_stable_diffusion_3s(n):
    sigma = np.append(np.linspace(1, 1 / n, n), 0)
    np.testing.assert_allclose(sigmas(grids.shift(n, 3.0)), 3 * sigma / (1 + 2 * sigma), atol=1e-12)
    np.testing.assert_allclose(sigmas(grids.dynamic_shift(n, math.log(3.0))), sigmas(grids.shift(n, 3.0)), atol=1e-12)


def test_token_shift_is_fluxs_line():
    assert grids.token_shift(256) == 0.5
    assert grids.token_shift(4096) == 1.15
    assert grids.token_shift(1024) == pytest.approx(0.5 + 768 * 0.65 / 3840)


def test_levels_of_diffusers():
    """Karras's, exponential and beta noise levels, as diffusers' flow-matching scheduler makes them."""
    diffusers = pytest.importorskip("diffusers")
    made = {"karras": grids.karras, "exponential": grids.exponential, "beta": grids.beta}
    for name, grid in made.items():
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**{f"use_{name}_sigmas": True})
        scheduler.set_timesteps(9)
        np.testing.assert_allclose(sigmas(grid(9)), scheduler.sigmas, atol=2e-7)  # diffusers rounds to float32


def test_levels_by_their_definitions():
    n, low = 11, 0.002
    i = np.arange(n) / (n - 1)
    expected = {
        "karras": (1 + i * (low ** (1 / 5) - 1)) ** 5,
        "exponential": np.exp(i * np.log(low)),
        "beta": low + (1 - low) * scipy.stats.beta.ppf(1 - i, 0.6, 0.6),
    }
    made = {
        "karras": grids.karras(n, low, 5),
        "exponential": grids.exponential(n, low),
        "beta": grids.beta(n, sigma_min=low),
    }
    for name, levels in expected.items():
        np.testing.assert_allclose(sigmas(made[name]), np.append(levels, 0), atol=1e-12)


def test_edm_levels_in_the_time_of_a_straight_path():
    """flow_matching's discretization of its CIFAR example: t = 1/(1 + σ), which starts just above 0."""
    n, rho, low, high = 10, 7, 0.002, 80.0
    steps = (high ** (1 / rho) + np.arange(n) / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    times = np.append(1 / (1 + steps), 1)
    grid = grids.edm(n)
    assert grid.span == (times[0], 1.0)
    np.testing.assert_allclose(grid.fractions, (times - times[0]) / (1 - times[0]), atol=1e-12)


def test_a_terminal_shift_stretches_the_noise_levels():
    """diffusers' `stretch_shift_to_terminal`: 1 − σ is scaled so that the last level but the 0 is the given one."""
    sigma = sigmas(grids.shift(6, 2.0))[:-1]
    expected = 1 - (1 - sigma) * (1 - 0.1) / (1 - sigma[-1])
    np.testing.assert_allclose(sigmas(grids.stretch(grids.shift(6, 2.0), 0.1)), np.append(expected, 0), atol=1e-12)


def test_given_times_are_the_ends_of_steps():
    f = lambda t, y: torch.ones_like(y) * t  # noqa: E731
    times = [2.0, 1.5, 0.25, 0.0]
    solution = dise.solve(f, torch.zeros(2, 1, dtype=DOUBLE), 2.0, 0.0, Euler(grids.of(times)), record=True)
    assert solution.steps.t.tolist() == [times[1:]] * 2
    left = sum((b - a) * a for a, b in itertools.pairwise(times))
    assert solution.y.flatten().tolist() == pytest.approx([left, left])
    with pytest.raises(ValueError, match="t0: this grid or table is for solves from 2 to 0 only, got t0=1"):
        dise.solve(f, torch.zeros(1, 1), 1.0, 0.0, Euler(grids.of(times)))
    with pytest.raises(ValueError, match=r"t1: .* from 2 to 0 only"):
        dise.solve(f, torch.zeros(1, 1), 2.0, 0.5, StepDoubling(Euler(grids.of(times))))


def test_reversed_grids_have_the_same_times():
    grid = grids.sway(5)
    forward = [0 + x * 2 for x in grid.fractions]
    backward = [2 - x * 2 for x in grid.reversed().fractions]
    assert backward[::-1] == pytest.approx(forward)
    assert grids.of([0.0, 0.5, 2.0]).reversed() == grids.of([2.0, 0.5, 0.0])


def test_step_doubling_halves_each_step_of_a_grid():
    f = lambda t, y: y * t  # noqa: E731
    y0 = torch.ones(1, 1, dtype=DOUBLE)
    grid = grids.power(3, 2.0)
    halves = sorted({*grid.fractions, *((a + b) / 2 for a, b in zip(grid.fractions, grid.fractions[1:], strict=False))})
    doubled = dise.solve(f, y0, 0.0, 1.0, StepDoubling(RK4(grid)))
    torch.testing.assert_close(doubled.y, dise.solve(f, y0, 0.0, 1.0, RK4(TimeGrid(tuple(halves)))).y)
    assert doubled.nfe.item() == 3 * 11


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grids.uniform(0), "n: expected a whole number of at least 1, got 0"),
        (lambda: grids.sway(4, -1.5), "c: expected a number from -1 to"),
        (lambda: grids.epss(8), "n: empirically pruned grids have 5, 6, 7, 10, 12, 16 steps, got 8"),
        (lambda: grids.shift(4, 0.0), "s: expected a finite number above 0"),
        (lambda: grids.of([1.0]), "times: expected at least two finite times"),
        (lambda: grids.of([0.0, 2.0, 1.0]), "times: expected increasing or decreasing times"),
        (lambda: TimeGrid((0.0, 0.5)), "fractions: expected numbers from 0 to 1"),
        (lambda: TimeGrid((0.0, 0.5, 0.5, 1.0)), "fractions: expected increasing numbers"),
        (lambda: grids.stretch(grids.uniform(1), 0.1), "grid: expected at least two steps"),
        (lambda: grids.karras(4, 1.0), "sigma_min: expected a number between 0 and 1"),
        (lambda: Euler(0), "steps: expected a whole number of at least 1"),
        (lambda: grids.dynamic_shift(4, math.nan), "mu: expected a finite number"),
    ],
)
def test_bad_grids_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
