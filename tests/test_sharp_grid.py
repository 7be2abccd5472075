"""`sharp_grid`: grids fitted to closed-form flows, on draws that the fit has not seen."""

import math

import pytest
import torch
from torch import nn

import dise
from dise import RK4, DiagonalNormal, Dopri5, Euler, Flow, Midpoint, Multistep, grids, sharp_grid

DOUBLE = torch.float64


class Clusters(nn.Module):
    """The straight path's field for data from eight normal distributions on a circle; with a radius per row."""

    def __init__(self):
        super().__init__()
        angles = torch.arange(8, dtype=DOUBLE) * math.pi / 4
        self.centers = torch.stack([angles.cos(), angles.sin()], 1)

    def forward(self, t, x, radius=torch.full((1, 1), 2.0, dtype=DOUBLE)):  # noqa: B008
        centers = radius[..., None] * self.centers
        variance = t**2 * 0.01 + (1 - t) ** 2
        to_centers = x[:, None] - t[..., None] * centers
        weights = (-to_centers.square().sum(2) / 2 / variance).softmax(1)
        velocities = centers + ((0.01 * t - (1 - t)) / variance)[..., None] * to_centers
        return (weights[..., None] * velocities).sum(1)


def noise(n, seed):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def flow_of(f, **options):
    return Flow(f, DiagonalNormal(torch.zeros(2, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE)), Dopri5(), **options)


def distance(flow, integrator, condition=None):
    z = noise(500, 7)
    ends = []
    for method in (integrator, Dopri5(rtol=1e-7, atol=1e-7)):
        with flow.block.using(method):
            ends.append(flow.transport(z, flow.t0, flow.t1, condition))
    return (ends[0] - ends[1]).square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("method", "n", "share"),
    [(Euler, 4, 0.75), (Midpoint, 4, 0.4), (Multistep.adams, 8, 0.5), (RK4, 4, 0.5)],
    ids=["Euler", "Midpoint", "AB2", "RK4"],
)
def test_a_fitted_grid_is_closer_to_exact_samples_than_equal_steps(method, n, share):
    flow = flow_of(Clusters())
    grid = sharp_grid(flow, n, method, noise=noise(100, 0))
    assert (grid.steps, grid.span) == (n, (0.0, 1.0))
    assert distance(flow, method(grid)) < share * distance(flow, method(grids.uniform(n)))
    assert grid == sharp_grid(flow, n, method, noise=noise(100, 0))
    assert flow.block.integrator == Dopri5()


def test_a_field_whose_paths_are_straight_keeps_equal_steps():
    class Constant(nn.Module):
        def forward(self, t, x):
            return torch.ones_like(x) * 2

    assert sharp_grid(flow_of(Constant()), 4, noise=8).fractions == (0, 0.25, 0.5, 0.75, 1)
    assert sharp_grid(flow_of(Constant()), 1, noise=8).fractions == (0, 1)


def test_a_known_optimum():
    """dz/dt = 4 t³ adds 1: Euler's error is 1 − Σ 4 tᵢ³ hᵢ, so its steps are short at the end."""

    class Late(nn.Module):
        def forward(self, t, x):
            return 4 * t**3 + 0 * x

    grid = sharp_grid(flow_of(Late()), 4, noise=4)
    error = 1 - sum(4 * a**3 * (b - a) for a, b in zip(grid.fractions, grid.fractions[1:], strict=False))
    assert error < 0.8 * (1 - sum(4 * (i / 4) ** 3 / 4 for i in range(4)))
    assert grid.fractions[1] > 0.5


def test_conditions_and_densities_and_the_other_direction():
    flow = flow_of(Clusters())
    radius = torch.linspace(1, 3, 60, dtype=DOUBLE)[:, None]
    grid = sharp_grid(flow, 6, Midpoint, noise=noise(60, 0), condition=radius)
    test = torch.linspace(1, 3, 500, dtype=DOUBLE)[:, None]
    assert distance(flow, Midpoint(grid), test) < 0.8 * distance(flow, Midpoint(6), test)
    flow.block.integrator = Midpoint(grid)
    assert flow.log_prob(noise(3, 1), radius[:1]).isfinite().all()  # on the way back, with the same times
    with pytest.raises(ValueError, match="this grid or table is for solves from 0 to 1 only"):
        flow.until(0.5).sample(2, radius[:1])

    class Mirrored(Clusters):
        def forward(self, t, x):
            return -super().forward(1 - t, x)

    mirrored = sharp_grid(flow_of(Mirrored(), t0=1.0, t1=0.0), 4, Midpoint, noise=noise(60, 0))
    assert mirrored.span == (1.0, 0.0)
    assert mirrored.fractions == sharp_grid(flow_of(Clusters()), 4, Midpoint, noise=noise(60, 0)).fractions


def test_grids_that_fail_lose_and_a_field_that_always_fails_is_an_error():
    class Fragile(nn.Module):
        """A constant field that is infinite after the start and before a time."""

        def __init__(self, until):
            super().__init__()
            self.until = until

        def forward(self, t, x):
            return torch.where((t > 0) & (t < self.until), torch.inf, 1.0) + 0 * x

    one_step = Euler(1)
    assert sharp_grid(flow_of(Fragile(0.3)), 4, noise=4, reference=one_step).fractions[1] >= 0.3
    with pytest.raises(dise.SolveError):
        sharp_grid(flow_of(Fragile(1.0)), 4, noise=4, reference=one_step)


def test_a_batch_as_one_system():
    assert sharp_grid(flow_of(Clusters(), batched=False), 2, noise=10).steps == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda flow: sharp_grid(flow.f, 4), TypeError, "flow: expected a dise.Flow, got Clusters"),
        (lambda flow: sharp_grid(flow, 0), ValueError, "n: expected a whole number"),
        (lambda flow: sharp_grid(flow, 4, 2), TypeError, "method: expected a function of a grid"),
        (lambda flow: sharp_grid(flow, 4, dise.Dopri5), TypeError, "method: expected a function of a grid"),
        (lambda flow: sharp_grid(flow, 4, lambda grid: None), TypeError, "method: expected an integrator"),
        (lambda flow: sharp_grid(flow, 4, noise=torch.zeros(0, 2)), ValueError, "noise: expected at least one draw"),
        (lambda flow: sharp_grid(flow, 4, noise=0), ValueError, "noise: expected a whole number"),
        (lambda flow: sharp_grid(flow, 4, noise=torch.zeros(3, 3)), ValueError, r"z: expected points \[B, ..., 2\]"),
        (lambda flow: sharp_grid(flow.until(torch.ones(3)), 4), ValueError, "flow: a grid needs one span"),
        (lambda flow: sharp_grid(flow.until(0.0), 4), ValueError, "flow: a grid needs one span"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(flow_of(Clusters()))
