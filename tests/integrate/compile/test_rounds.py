"""Compiled rounds: equal to eager ones, in every mode.

What code torch generates is its own matter (see test_backend): graphs run as they are traced, a round per call. Kernels
do several (see test_rowwise).
"""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import (
    RK4,
    RKC1,
    Adams,
    Bosh3,
    Cascade,
    Dynamic,
    Euler,
    Event,
    HeunEuler,
    PIController,
    Status,
    StepDoubling,
    solve,
)

TRACED = {"backend": "eager"}  # traces
DIFFERENTIATED = {"backend": "aot_eager"}  # and differentiates
BOSH = Bosh3(rtol=1e-5, atol=1e-5)
PI = Bosh3(rtol=1e-5, atol=1e-5, controller=PIController())
HEUN = HeunEuler(rtol=1e-3, atol=1e-3, first_step="span")
ADAMS = Adams(rtol=1e-3, atol=1e-3)
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
CLOSE32 = {"rtol": 1e-6, "atol": 1e-6}  # what is computed in float32; error estimates are differences
PER_SAMPLE = ("t", "nfe", "n_steps", "n_accepted", "error", "status", "dt")


@pytest.fixture
def y0(starts):
    return starts(9, 2)


def field(t, y):
    """Nonlinear and time-dependent. One function for most tests: they share its graphs."""
    return torch.tanh(2 * y.flip(1) + 0.5) + torch.sin(3 * t) - y


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, t, y):
        return self.net(y) + torch.sin(3 * t) - y


def both(f, y0, t1, integrator, options=TRACED, **more):
    return tuple(solve(f, y0, 0.0, t1, integrator, compile=c, **more) for c in (False, options))


def assert_equal(compiled, eager, close=CLOSE):
    assert_close(compiled.y, eager.y, **close)
    for name in PER_SAMPLE:
        assert_close(getattr(compiled, name), getattr(eager, name), **close, equal_nan=True)


# ---- values


@pytest.mark.parametrize("integrator", [BOSH, StepDoubling(RKC1(2, 2, 0.3)), ADAMS], ids=str)
def test_compiled_is_eager(y0, integrator):
    eager, compiled = both(field, y0, 3.0, integrator)
    assert_equal(compiled, eager)
    assert compiled.calls == eager.calls
    if integrator is BOSH:
        assert len(eager.nfe.unique()) > 3


@pytest.mark.parametrize("grad", [True, False])
def test_nfe_is_what_samples_need(y0, grad):
    """Graphs evaluate all k1 again if a method does not know it at the end; after a rejection it does not count."""
    with torch.set_grad_enabled(grad):
        eager, compiled = both(field, y0, 3.0, HEUN)
    assert_equal(compiled, eager)
    assert torch.equal(compiled.nfe, compiled.n_steps + compiled.n_accepted)
    assert (compiled.n_steps > compiled.n_accepted).all()


@pytest.mark.parametrize(
    ("mode", "integrator"),
    [(torch.no_grad, RK4(3)), (torch.inference_mode, PI), (torch.no_grad, ADAMS)],
    ids=["no_grad", "inference", "Adams"],
)
def test_without_gradients(y0, mode, integrator):
    with mode():
        eager, compiled = both(field, y0, 3.0, integrator)
    assert_equal(compiled, eager)
    assert not compiled.y.requires_grad


@pytest.mark.parametrize(
    "options",
    [
        {"drop_finished": False},
        {"accumulate": lambda step: step.dt.abs()},
        {"sample_args": (torch.linspace(0.1, 9, 9, dtype=torch.float64)[:, None],)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_loops_in_graphs_with_options(y0, options):
    def f(t, y, rate=1.0):
        return -rate * y * torch.cos(t)

    with torch.no_grad():
        eager, compiled = both(f, y0, 3.0, BOSH, **options)
    assert_equal(compiled, eager)
    if eager.accumulated is not None:
        assert_close(compiled.accumulated, eager.accumulated, **CLOSE)


@pytest.mark.parametrize("grad", [True, False])
def test_the_most_steps(y0, monkeypatch, grad):
    """A graph's loop ends there, and now and then, so that an interrupt is heard."""
    monkeypatch.setattr("dise.integrate.compile.rounds.MAX_ROUNDS_PER_CALL", 3)
    with torch.set_grad_enabled(grad):
        eager, compiled = both(field, y0, 3.0, Bosh3(rtol=1e-5, atol=1e-5, max_steps=60), throw=False)
    assert_equal(compiled, eager)
    assert set(compiled.status.tolist()) == {int(Status.SUCCESS), int(Status.MAX_STEPS)}


def test_an_f_that_counts_its_calls(y0):
    """torch cannot compile a loop around it, so graphs without one run; the count is right."""

    class Counting:
        calls = 0

        def __call__(self, t, y):
            self.calls += 1
            return field(t, y)

    f = Counting()
    with torch.no_grad():
        compiled = solve(f, y0, 0.0, 3.0, HEUN, compile=TRACED)
        assert f.calls == compiled.calls + 2  # whether f mixes samples
        assert_equal(compiled, solve(field, y0, 0.0, 3.0, HEUN))


def test_autocast_runs_f_in_bfloat16_and_control_in_float32():
    net, seen = nn.Linear(2, 2), []

    def f(t, y):
        value = net(y).tanh()
        seen.append((y.dtype, value.dtype))
        return value

    y0 = torch.randn(9, 2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        eager, compiled = both(f, y0, 1.0, Bosh3())
        exact = solve(f, y0, 0.0, 1.0, RK4(50))
    assert set(seen) == {(torch.float32, torch.bfloat16)}
    for solution in (eager, compiled):
        assert solution.y.dtype == solution.error.dtype == torch.float32
        assert solution.dt.dtype == torch.float64  # the clock's
        assert_close(solution.y, exact.y, rtol=2e-2, atol=2e-2)
    assert_equal(compiled, eager, CLOSE32)


@pytest.mark.parametrize(
    "options",
    [
        {"drop_finished": False},
        {"accumulate": lambda step: step.dt.abs()},
        {"differentiate_step_sizes": True},
        {"event": Event(lambda t, y: y[:, 0] - 0.5)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_with_options(y0, options):
    eager, compiled = both(field, y0, 3.0, BOSH, **options)
    assert_equal(compiled, eager)
    for name in ("accumulated", "event"):
        if getattr(eager, name) is not None:
            assert_close(getattr(compiled, name), getattr(eager, name), **CLOSE)


def test_observers_see_every_round(y0):
    rounds = []
    options = {"save_at": [0.5, 2.5], "record": True, "progress": lambda progress: rounds.append(progress.rounds)}
    eager, compiled = both(field, y0, 3.0, BOSH, **options)
    assert_equal(compiled, eager)
    assert_close(compiled.saved, eager.saved, **CLOSE)
    assert_close(compiled.steps, eager.steps, **CLOSE, equal_nan=True)
    assert rounds[: rounds.index(max(rounds)) + 1] == list(range(1, max(rounds) + 1))


def spans():
    """Forward, backward and empty spans of nine samples: [9] each."""
    t0 = torch.linspace(0.0, 0.8, 9, dtype=torch.float64)
    length = torch.tensor([3.0, 0.0, -2.0, 0.1, 2.0, -0.5, 1.0, 3.0, 0.7], dtype=torch.float64)
    return t0, t0 + length


@pytest.mark.parametrize("integrator", [BOSH, pytest.param(RK4(5), marks=pytest.mark.long)], ids=str)
def test_spans_of_each_sample_with_all_that_is_kept(y0, integrator):
    (t0, t1), part = spans(), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    options = {
        "save_at": t0[:, None] + part * (t1 - t0)[:, None],
        "save_mask": torch.arange(9)[:, None] != torch.tensor([4, -1, 7]),
        "event": {
            "stop": Event(lambda t, y: y[:, 0] - 0.6, "rising"),
            "kick": Event(lambda t, y: y[:, 1] - 0.4, terminal=False, change=lambda t, y: 0.9 * y),
        },
        "record": True,
        "dense": True,
    }
    with torch.no_grad():
        eager, compiled = (solve(field, y0, t0, t1, integrator, compile=c, **options) for c in (False, TRACED))
    assert_equal(compiled, eager)
    for name in ("saved", "which", "steps"):
        assert_close(getattr(compiled, name), getattr(eager, name), **CLOSE, equal_nan=True)
    for name in ("which", "t", "y"):
        assert_close(getattr(compiled.events, name), getattr(eager.events, name), **CLOSE, equal_nan=True)
    middle = ((t0 + eager.t) / 2)[:, None]
    assert_close(compiled.evaluate(middle), eager.evaluate(middle), **CLOSE)
    assert set(eager.which.tolist()) == {-1, 0}
    assert (eager.events.which == 1).any()


def test_every_other_step_of_each_sample_is_saved(y0):
    t0, t1 = spans()
    with torch.no_grad():
        eager, compiled = (solve(field, y0, t0, t1, BOSH, save_every=2, compile=c) for c in (False, TRACED))
    assert_equal(compiled, eager)
    assert_close((compiled.saved, compiled.saved_t), (eager.saved, eager.saved_t), **CLOSE, equal_nan=True)


def test_one_system(y0):
    eager, compiled = both(field, y0, 3.0, BOSH, batched=False)
    assert_equal(compiled, eager)


@pytest.mark.parametrize("kind", ["tuple", "dict", "image", "bfloat16"])
def test_states(y0, kind):
    fields = {
        "tuple": (lambda t, y: (-y[0], y[0][:, :1] * t), (y0, y0[:, :1])),
        "dict": (lambda t, y: {"a": -y["a"], "b": y["a"][:, :1]}, {"a": y0, "b": y0[:, :1]}),
        "image": (lambda t, y: -y * t, y0[:, :, None, None].expand(-1, -1, 2, 3).contiguous()),
        "bfloat16": (lambda t, y: -y, y0.bfloat16()),
    }
    f, start = fields[kind]
    with torch.no_grad():
        eager, compiled = both(f, start, 1.0, Bosh3())
    assert_equal(compiled, eager, CLOSE32 if kind == "bfloat16" else CLOSE)


def test_arguments_of_samples_follow_them(y0):
    rate = torch.linspace(0.1, 9, 9, dtype=torch.float64)[:, None]
    eager, compiled = both(
        lambda t, y, gain, rate: -gain * rate * y, y0, 2.0, BOSH, args=(torch.tensor(1.5),), sample_args=(rate,)
    )
    assert_equal(compiled, eager)
    assert_close(compiled.y, y0 * (-3 * rate).exp(), rtol=1e-3, atol=1e-3)


def test_integrators_that_choose(y0):
    candidates = [Euler(1), Euler(2), BOSH]
    dynamic = Dynamic(candidates, lambda h, k1: torch.stack([h[:, 0], -h[:, 0], h[:, 1]], 1))
    cascade = Cascade([Euler(2), BOSH], accept=lambda y: y[:, 0] > 0.345)
    with torch.no_grad():
        for integrator in (dynamic, cascade):
            eager, compiled = both(field, y0, 3.0, integrator)
            assert_equal(compiled, eager)
            assert compiled.choice.tolist() == eager.choice.tolist()
            assert len(eager.choice.unique()) > 1
        assert solve(field, y0, 0.0, 3.0, dynamic, drop_finished=False, compile=TRACED).choice.tolist()


def test_a_failing_sample_fails_alone(y0):
    y0 = torch.stack([y0[:, 0], (torch.arange(9) == 4).double()], 1)

    def f(t, y):
        bad = (y[:, 1:] == 1) & (t > 0.5)
        return torch.stack([torch.where(bad[:, 0], math.nan, -y[:, 0]), 0 * y[:, 1]], 1)

    eager, compiled = both(f, y0, 1.0, Bosh3(max_steps=200), throw=False)
    assert_equal(compiled, eager)
    assert compiled.status.tolist() == [int(Status.NON_FINITE if i == 4 else Status.SUCCESS) for i in range(9)]
    assert_close(compiled.y[:4, 0], y0[:4, 0] * math.exp(-1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("integrator", [BOSH, RK4(8)], ids=str)
def test_samples_that_fail_at_their_start_leave_with_their_arguments(y0, integrator):
    """f gets the arguments of the others from the first round on."""
    rate = torch.linspace(0.5, 2, 9, dtype=torch.float64)[:, None]
    rate[[0, 3, 4]] = math.nan
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            eager, compiled = both(lambda t, y, rate: -rate * y, y0, 1.0, integrator, sample_args=(rate,), throw=False)
        assert_equal(compiled, eager)
        ok = compiled.status == int(Status.SUCCESS)
        assert (~ok).nonzero().flatten().tolist() == [0, 3, 4]
        assert_close(compiled.y[ok], (y0 * torch.exp(-rate))[ok], rtol=1e-2, atol=1e-2)


# ---- gradients


@pytest.fixture(scope="module")
def trained():
    """A field with parameters. One for all tests: they share its graphs."""
    return Field()


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
def test_gradients_are_those_of_eager_steps(y0, trained, gradient):
    grads = []
    for compile in (False, DIFFERENTIATED):
        start = y0.clone().requires_grad_()
        y = solve(trained, start, 0.0, 1.0, BOSH, gradient=gradient, compile=compile).y
        grads.append(torch.autograd.grad(y.square().sum(), (start, *trained.parameters())))
    assert_close(grads[1], grads[0], rtol=1e-8, atol=1e-8)


def test_gradients_at_save_points_and_events_of_each_span(y0, trained):
    (t0, t1), part = spans(), torch.tensor([0.3, 0.9], dtype=torch.float64)
    grads = []
    for compile in (False, DIFFERENTIATED):
        start, first, last = (x.clone().requires_grad_() for x in (y0, t0, t1))
        times = first[:, None] + part * (last - first)[:, None]
        stop = Event(lambda t, y: y[:, 0] - 0.5)
        solution = solve(trained, start, first, last, BOSH, save_at=times, event=stop, compile=compile)
        loss = solution.saved.square().sum() + solution.y.square().sum() + solution.t.square().sum()
        grads.append(torch.autograd.grad(loss, (start, first, last, *trained.parameters())))
        assert 0 < int(solution.event.sum()) < 9
    assert_close(grads[1], grads[0], rtol=1e-8, atol=1e-8)


def test_a_frozen_start_still_trains_parameters(y0, trained):
    """y0 wants no gradient, the states after it do."""
    grads = [
        torch.autograd.grad(solve(trained, y0, 0.0, 1.0, BOSH, compile=c).y.sum(), tuple(trained.parameters()))
        for c in (False, DIFFERENTIATED)
    ]
    assert_close(grads[1], grads[0], **CLOSE)
    assert not y0.requires_grad


def test_an_f_that_mixes_samples_is_noticed():
    y0, ends = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0.1, 2.0, 3.0])
    with pytest.raises(ValueError, match="mixes the samples"):
        solve(lambda t, y: y.mean(0) - 3 * y, y0, 0.0, ends, BOSH, compile=TRACED)
