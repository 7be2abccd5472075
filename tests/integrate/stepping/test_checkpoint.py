"""gradient="checkpoint": direct gradients in less memory."""

import gc
import math
import runpy
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import RK4, RKC1, Cascade, Dopri5, Dynamic, StepDoubling, solve

Memory = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "memory.py"))["Memory"]
DOPRI = Dopri5(rtol=1e-6, atol=1e-6)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2)).double()

    def forward(self, t, y):
        return self.net(y) + torch.sin(3 * t) - y


def gradients(f, y0, integrator, gradient, of=lambda s: s.y.square().sum() + s.error.nansum(), t1=2.0, **options):
    start = y0.clone().requires_grad_()
    solution = solve(f, start, 0.0, t1, integrator, gradient=gradient, **options)
    return torch.autograd.grad(of(solution), (start, *f.parameters()))


@pytest.mark.host
def test_memory():
    """Forward and backward together: of 256 steps at most a fifth of direct's; it grows with the square root."""
    peaks, y0 = {}, torch.ones(8, 2, dtype=torch.float64)
    for steps in (64, 256):
        for gradient in ("direct", "checkpoint"):
            with Memory() as memory:
                gradients(Field(), y0, RK4(steps), gradient)
            peaks[gradient, steps] = memory.peak
    assert peaks["checkpoint", 64] < peaks["direct", 64] / 2.5
    assert peaks["checkpoint", 256] < peaks["direct", 256] / 5
    assert peaks["checkpoint", 256] / peaks["checkpoint", 64] < 2.5


@pytest.mark.parametrize(
    ("integrator", "options"),
    [
        (DOPRI, {}),
        (DOPRI, {"drop_finished": False}),
        (DOPRI, {"batched": False}),
        (DOPRI, {"differentiate_step_sizes": True}),
        (RK4(7), {"of": lambda s: s.y.square().sum()}),
        (StepDoubling(RK4(3)), {}),
        (RKC1(7, 3), {"of": lambda s: s.y.square().sum()}),
        (StepDoubling(RKC1(3)), {}),
        (DOPRI, {"save_at": [0.5, 1.5], "of": lambda s: s.saved.square().sum()}),
        (DOPRI, {"accumulate": lambda s: s.y_next.square().sum(1), "of": lambda s: s.accumulated.sum()}),
        (DOPRI, {"event": lambda t, y: y[:, 0] - 0.9, "of": lambda s: s.t.sum() + s.y.sum()}),
        (Dynamic([RK4(2), DOPRI], lambda h, k1: torch.stack([h[:, 0], -h[:, 0]], 1)), {}),
        (Cascade([RK4(2), DOPRI], accept=lambda y: y[:, 0] > 0.6), {}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),  # a lambda's text differs by process
)
def test_gradients_are_direct_ones(starts, integrator, options):
    f, y0 = Field(), starts(7, 2)
    direct, checkpoint = (gradients(f, y0, integrator, mode, **options) for mode in ("direct", "checkpoint"))
    assert_close(checkpoint, direct, rtol=1e-10, atol=1e-12)


def test_the_solution_is_the_same(starts):
    f, y0 = Field(), starts(7, 2)
    direct, checkpoint = (solve(f, y0, 0.0, 2.0, DOPRI, gradient=mode) for mode in ("direct", "checkpoint"))
    assert_close(checkpoint.y, direct.y, rtol=0, atol=0)
    assert checkpoint.nfe.tolist() == direct.nfe.tolist()
    assert checkpoint.calls == direct.calls


def test_against_the_closed_form():
    """y' = −r y: dy(1)/dr = −y0·exp(−r)."""
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    y = solve(lambda t, y: -rate * y, y0, 0.0, 1.0, RK4(50), gradient="checkpoint").y
    (found,) = torch.autograd.grad(y.sum(), rate)
    assert found.item() == pytest.approx(-4 * math.exp(-0.7), rel=1e-8)


def test_f_is_called_again_for_gradients_alone(record, starts):
    f, y0 = record(lambda t, y: torch.sin(y)), starts(3, 2)
    with torch.no_grad():
        solution = solve(f, y0, 0.0, 1.0, RK4(10), gradient="checkpoint")
    assert f.calls == solution.calls == 40
    solution = solve(f, y0.requires_grad_(), 0.0, 1.0, RK4(10), gradient="checkpoint")
    assert f.calls == 80
    solution.y.sum().backward()
    assert 80 < f.calls <= 120


@pytest.mark.host
@pytest.mark.parametrize("backward", [True, False])
def test_all_is_freed_at_once(backward):
    """Without the garbage collector, which frees circles only."""
    f, y0 = Field(), torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        y = solve(f, y0, 0.0, 1.0, DOPRI, gradient="checkpoint").y
        alive = [weakref.ref(x) for x in (f, y0, y)]
        if backward:
            y.sum().backward()
        del f, y0, y
        assert [x() for x in alive] == [None] * 3
    finally:
        gc.enable()


def test_dropout_is_drawn_once(starts):
    """A recomputation draws what the forward pass drew."""
    f, y0 = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 2)).double(), starts(5, 2)

    def found(mode):
        torch.manual_seed(3)
        y = solve(lambda t, y: f(y), y0, 0.0, 1.0, RK4(6), gradient=mode).y
        return torch.autograd.grad(y.sum(), tuple(f.parameters()))

    assert_close(found("checkpoint"), found("direct"))


def test_second_derivatives(starts):
    f, y0 = Field(), starts(3, 2).requires_grad_()
    found = []
    for mode in ("direct", "checkpoint"):
        y = solve(f, y0, 0.0, 1.0, RK4(5), gradient=mode).y
        (first,) = torch.autograd.grad(y.square().sum(), y0, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), y0)[0])
    assert_close(found[1], found[0])
