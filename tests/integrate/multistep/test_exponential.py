"""DPM-Solver++ and UniPC, step by step against diffusers' schedulers, and by their order."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import dise
from dise import (
    CosinePath,
    Multistep,
    PathField,
    StraightPath,
    VarianceExplodingPath,
    VariancePreservingPath,
    grids,
)

diffusers = pytest.importorskip("diffusers")
DOUBLE = torch.float64
WEIGHT = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
NOISE = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)


def network(t, x):
    return torch.tanh(x @ WEIGHT + 2 * t) - 0.3 * x


def trajectory(scheduler):
    """States of a scheduler, from noise to data, and its noise levels."""
    x, states = NOISE.clone(), []
    for time, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = scheduler.step(network(sigma.double(), x), time, x).prev_sample
        states.append(x)
    return states, scheduler.sigmas.double().tolist()


def make(name, **options):
    return getattr(diffusers, name)(use_flow_sigmas=True, prediction_type="flow_prediction", **options)


CASES = {
    "euler": (lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), lambda g: Multistep.adams(g, 1)),
    "dpmpp2m": (
        lambda: make("DPMSolverMultistepScheduler", flow_shift=2.0),
        lambda g: Multistep.dpmpp2m(g, StraightPath(0)),
    ),
} | {
    f"unipc{order}{variant}": (
        lambda order=order, variant=variant: make("UniPCMultistepScheduler", solver_order=order, solver_type=variant),
        lambda g, order=order, variant=variant: Multistep.unipc(g, StraightPath(0), order, variant),
    )
    for order in (1, 2, 3)
    for variant in ("bh1", "bh2")
}


@pytest.mark.parametrize("steps", [2, 5, 16])
@pytest.mark.parametrize("case", CASES)
def test_states_are_those_of_diffusers(case, steps):
    """Every state at which the network is evaluated, and the end."""
    scheduler, method = CASES[case][0](), CASES[case][1]
    options = {}
    if case.endswith("bh1"):  # diffusers' bh1 is not finite at the noise's own level, 1
        options = {"sigmas": np.linspace(0.98, 0.98 / steps, steps)}
    scheduler.set_timesteps(**(options or {"num_inference_steps": steps}))
    expected, levels = trajectory(scheduler)
    grid, seen = grids.of(levels), []

    def field(t, x):
        seen.append(x)
        return network(t, x)

    end = dise.solve(field, NOISE, levels[0], levels[-1], method(grid)).y
    assert len(seen) == steps
    if case.endswith("bh1"):  # nor in its last step
        expected[-1] = end
    for ours, theirs in zip([*seen[1:], end], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # their noise levels are float32


def mixture_field(path):
    """The exact velocity of data ±1 with standard deviation ½ along a path, and its data prediction's field."""

    def data(t, x):
        alpha, sigma = path.alpha(t), path.sigma(t)
        variance = alpha**2 / 4 + sigma**2
        mean = torch.tanh(alpha * x / variance)  # of the two components' means, by Bayes
        return mean + alpha / 4 / variance * (x - alpha * mean)

    return PathField(data, path, predicts="data")


@pytest.mark.parametrize("path", [StraightPath(1), VariancePreservingPath()], ids=str)
@pytest.mark.parametrize(
    ("order", "method"),
    [
        (2, Multistep.dpmpp2m),
        (2, lambda grid, path: Multistep.unipc(grid, path, 1)),
        (2, lambda grid, path: Multistep.unipc(grid, path, 2)),
        (3, lambda grid, path: Multistep.unipc(grid, path, 2, lower_final_order=False)),
    ],
    ids=["dpmpp2m", "unipc1", "unipc2", "unipc2-full"],
)
def test_order_by_halving(order, method, path):
    noise, data = path.span
    start, end = (noise + x * (data - noise) for x in (0.1, 0.9))  # where λ and the field are smooth
    field = mixture_field(path)
    x = torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None]
    exact = dise.solve(field, x, start, end, dise.Dopri8(rtol=1e-12, atol=1e-12)).y
    errors = []
    for n in (96, 192):
        grid = grids.of([start + i / n * (end - start) for i in range(n + 1)])
        errors.append(float((dise.solve(field, x, start, end, method(grid, path)).y - exact).abs().max()))
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("method", [Multistep.dpmpp2m, Multistep.unipc])
def test_a_whole_path_from_noise_to_data(method):
    """Steps from pure noise and to pure data, where λ is infinite."""
    path = StraightPath(1)
    network_field = mixture_field(path)
    x = torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None]
    exact = dise.solve(network_field, x, 0.0, 1 - 1e-6, dise.Dopri8(rtol=1e-10, atol=1e-10)).y
    sampled = dise.solve(network_field, x, 0.0, 1.0, method(64, path)).y
    torch.testing.assert_close(sampled, exact, rtol=0, atol=2e-3)


def test_tables_are_for_their_span_alone():
    sampler = Multistep.dpmpp2m(8, StraightPath(1))
    with pytest.raises(ValueError, match=r"t1: this grid or table is for solves from 0 to 1 only, got t1=0\.9"):
        dise.solve(lambda t, x: x, NOISE, 0.0, 0.9, sampler)
    with pytest.raises(ValueError, match="t0: this grid or table is for solves from 0 to 1 only, got t0=1"):
        dise.solve(lambda t, x: x, NOISE, 1.0, 0.0, sampler)


def test_unknown_orders_and_variants_are_refused():
    with pytest.raises(ValueError, match="order: expected 1, 2 or 3, got 4"):
        Multistep.unipc(8, StraightPath(1), 4)
    with pytest.raises(ValueError, match="variant: expected 'bh1' or 'bh2', got 'bh3'"):
        Multistep.unipc(8, StraightPath(1), 2, "bh3")


PATHS = (StraightPath(), CosinePath(), VariancePreservingPath(), VarianceExplodingPath())


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("method", [Multistep.dpmpp2m, Multistep.unipc, partial(Multistep.unipc, order=3)])
def test_states_are_sums_of_few_predictions_and_the_same_as_sums_of_velocities(path, method):
    def f(t, x):
        return torch.tanh(x.flip(1)) * (1 + t) - x

    found = method(12, path)
    x = torch.linspace(-2, 2, 12, dtype=DOUBLE).view(4, 3)
    velocities = replace(found, table=replace(found.table, blends=None))
    assert max(len(update.sum.others) for update in found.table.updates) < 4
    assert max(len(update.sum.others) for update in velocities.table.updates) > 6
    states = [dise.solve(f, x, *found.table.span, solver).y for solver in (found, velocities)]
    torch.testing.assert_close(*states, rtol=1e-12, atol=1e-12)


def test_blends_are_left_out_where_values_have_weights_of_their_own():
    table = Multistep.unipc(6, StraightPath()).table
    for other in (replace(table, span=None), replace(table, quadrature=(1 / 6,) * 6)):
        assert not any(other.multiples)
        assert other.updates == replace(table, blends=None).updates
    with pytest.raises(ValueError, match="blends: expected 6 numbers"):
        replace(table, blends=(1.0,))
