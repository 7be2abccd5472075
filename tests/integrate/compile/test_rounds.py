"""Compiled steps: equal to eager ones, in every mode, with a bounded number of graphs.

What code torch.compile generates is its own matter: most tests run the graphs as they are, which is quick.
"""

import math

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.testing import assert_close

from dise import (
    RK4,
    RKC1,
    Bosh3,
    Cascade,
    Dopri5,
    Dynamic,
    Event,
    HeunEuler,
    PIController,
    SolveError,
    Status,
    StepDoubling,
    solve,
)

TRACED = {"backend": "eager"}  # traces
DIFFERENTIATED = {"backend": "aot_eager"}  # and differentiates
DOPRI = Dopri5(rtol=1e-6, atol=1e-6)
PI = Dopri5(rtol=1e-6, atol=1e-6, controller=PIController())
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
PER_SAMPLE = ("t", "nfe", "n_steps", "n_accepted", "error", "status", "dt")


class Field(nn.Module):
    def __init__(self, dtype=torch.float64, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)

    def forward(self, t, y):
        return self.net(y) + torch.sin(3 * t) - y


@pytest.fixture
def y0(starts):
    return starts(9, 2)


def graphs():
    """Graphs compiled since the last call of this function."""
    number = counters["stats"]["unique_graphs"]
    counters["stats"]["unique_graphs"] = 0
    return number


@pytest.fixture(autouse=True)
def count_anew():
    graphs()


def both(f, y0, t1, integrator, options=TRACED, **more):
    return tuple(solve(f, y0, 0.0, t1, integrator, compile=c, **more) for c in (False, options))


def assert_equal(compiled, eager, close=CLOSE):
    assert_close(compiled.y, eager.y, **close)
    for name in PER_SAMPLE:
        assert_close(getattr(compiled, name), getattr(eager, name), **close, equal_nan=True)


# ---- values


@pytest.mark.parametrize(
    "integrator",
    [
        DOPRI,
        PI,
        Bosh3(rtol=1e-4, atol=1e-4, first_step="span"),
        RK4(4),
        StepDoubling(RK4(2)),
        RKC1(4),
        StepDoubling(RKC1(2, 5, 0.3)),
    ],
    ids=str,
)
def test_compiled_is_eager(y0, integrator):
    eager, compiled = both(Field(), y0, 3.0, integrator)
    assert_equal(compiled, eager)
    assert compiled.calls == eager.calls
    if integrator is DOPRI:
        assert len(eager.nfe.unique()) > 3


def test_nfe_is_what_samples_need(y0):
    """Graphs evaluate all k1 anew if a method does not know it at the end; after a rejection it does not count."""
    integrator = HeunEuler(rtol=1e-4, atol=1e-4, first_step="span")
    eager, compiled = both(Field(), y0, 3.0, integrator)
    assert_equal(compiled, eager)
    assert torch.equal(compiled.nfe, compiled.n_steps + compiled.n_accepted)
    assert (compiled.n_steps > compiled.n_accepted).all()


def test_generated_code_is_eager(y0):
    """Forward and backward, by the default backend."""
    f, grads = Field(), []
    for compile in (False, True):
        start = y0.clone().requires_grad_()
        solution = solve(f, start, 0.0, 3.0, DOPRI, compile=compile)
        loss = solution.y.square().sum() + solution.error.sum()
        grads.append((solution, torch.autograd.grad(loss, (start, *f.parameters()))))
    (eager, expected), (compiled, found) = grads
    assert_equal(compiled, eager, {"rtol": 1e-6, "atol": 1e-8})
    assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"])
@pytest.mark.parametrize("integrator", [DOPRI, PI, HeunEuler(rtol=1e-4, atol=1e-4), RK4(3)], ids=str)
def test_without_gradients(y0, mode, integrator):
    f = Field()
    with mode():
        eager, compiled = both(f, y0, 3.0, integrator)
    assert_equal(compiled, eager)
    assert not compiled.y.requires_grad


@pytest.mark.parametrize(
    "options",
    [
        {"drop_finished": False},
        {"accumulate": lambda step: step.dt.abs()},
        {"sample_args": (torch.linspace(0.1, 9, 9, dtype=torch.float64)[:, None],)},
        {"save_at": [0.5, 2.5]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_loops_in_graphs_with_options(y0, options):
    def f(t, y, rate=1.0):
        return -rate * y * torch.cos(t)

    with torch.no_grad():
        eager, compiled = both(f, y0, 3.0, DOPRI, **options)
    assert_equal(compiled, eager)
    for name in ("saved", "accumulated"):
        if getattr(eager, name) is not None:
            assert_close(getattr(compiled, name), getattr(eager, name), **CLOSE)


def test_loops_in_graphs_end_where_they_must(y0, monkeypatch):
    """At the most steps, and now and then, so that an interrupt is heard."""
    monkeypatch.setattr("dise.integrate.compile.rounds.LONGEST", 3)
    f, few = Field(), Dopri5(rtol=1e-6, atol=1e-6, max_steps=16)
    with torch.no_grad():
        assert_equal(*both(f, y0, 3.0, DOPRI)[::-1])
        eager, compiled = both(f, y0, 3.0, few, throw=False)
    assert_equal(compiled, eager)
    assert set(compiled.status.tolist()) == {int(Status.SUCCESS), int(Status.MAX_STEPS)}


def test_an_f_that_counts_its_calls(y0):
    """Torch makes no loop of it, so graphs without one run; the count is right."""

    class Counting(Field):
        calls = 0

        def forward(self, t, y):
            self.calls += 1
            return super().forward(t, y)

    f = Counting()
    with torch.no_grad():
        compiled = solve(f, y0, 0.0, 3.0, DOPRI, compile=TRACED)
        assert f.calls == compiled.calls
        assert_equal(compiled, solve(Field(), y0, 0.0, 3.0, DOPRI))


def test_generated_loops_are_eager(y0):
    with torch.no_grad():
        eager, compiled = both(Field(), y0, 3.0, DOPRI, options=True)
    assert_equal(compiled, eager, {"rtol": 1e-6, "atol": 1e-8})
    assert len(eager.nfe.unique()) > 3


def test_autocast_runs_f_in_bfloat16_and_control_in_float32():
    f, seen = Field(torch.float32), []

    def field(t, y):
        value = f.net(y)
        seen.append((y.dtype, value.dtype))
        return value

    y0 = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        eager, compiled = both(field, y0, 1.0, Dopri5())
        exact = solve(field, y0, 0.0, 1.0, RK4(50))
    assert set(seen) == {(torch.float32, torch.bfloat16)}
    for solution in (eager, compiled):
        assert solution.y.dtype == solution.error.dtype == solution.dt.dtype == torch.float32
        assert_close(solution.y, exact.y, rtol=2e-2, atol=2e-2)
    assert_equal(compiled, eager)


@pytest.mark.parametrize(
    "options",
    [
        {"drop_finished": False},
        {"save_at": [0.5, 2.5]},
        {"accumulate": lambda step: step.dt.abs()},
        {"differentiate_step_sizes": True},
        {"event": Event(lambda t, y: y[:, 0] - 0.5)},
        {"record": True, "progress": lambda p: None},
    ],
    ids=lambda options: next(iter(options)),
)
def test_with_options(y0, options):
    eager, compiled = both(Field(), y0, 3.0, DOPRI, **options)
    assert_equal(compiled, eager)
    for name in ("saved", "accumulated", "event"):
        if getattr(eager, name) is not None:
            assert_close(getattr(compiled, name), getattr(eager, name), **CLOSE)
    if eager.steps is not None:
        assert_close(compiled.steps, eager.steps, **CLOSE, equal_nan=True)


def test_one_system(y0):
    eager, compiled = both(Field(), y0, 3.0, DOPRI, batched=False)
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
    eager, compiled = both(f, start, 1.0, Dopri5())
    assert_equal(compiled, eager)


def test_arguments_of_samples_follow_them(y0):
    rate = torch.linspace(0.1, 9, 9, dtype=torch.float64)[:, None]
    eager, compiled = both(
        lambda t, y, gain, rate: -gain * rate * y, y0, 2.0, DOPRI, args=(torch.tensor(1.5),), sample_args=(rate,)
    )
    assert_equal(compiled, eager)
    assert_close(compiled.y, y0 * (-3 * rate).exp(), rtol=1e-4, atol=1e-5)


def test_integrators_that_choose(y0):
    candidates = [RK4(1), RK4(2), DOPRI]
    dynamic = Dynamic(candidates, lambda h, k1: torch.stack([h[:, 0], -h[:, 0], h[:, 1]], 1))
    cascade = Cascade([RK4(4), DOPRI], accept=lambda y: y[:, 0] > 0.345)
    for integrator in (dynamic, cascade):
        eager, compiled = both(Field(), y0, 3.0, integrator)
        assert_equal(compiled, eager)
        assert compiled.choice.tolist() == eager.choice.tolist()
        assert len(eager.choice.unique()) > 1
    assert solve(Field(), y0, 0.0, 3.0, dynamic, drop_finished=False, compile=TRACED).choice.tolist()


def test_a_failing_sample_fails_alone(y0):
    y0 = torch.stack([y0[:, 0], (torch.arange(9) == 4).double()], 1)

    def field(t, y):
        bad = (y[:, 1:] == 1) & (t > 0.5)
        return torch.stack([torch.where(bad[:, 0], math.nan, -y[:, 0]), 0 * y[:, 1]], 1)

    eager, compiled = both(field, y0, 1.0, Dopri5(max_steps=200), throw=False)
    assert_equal(compiled, eager)
    assert compiled.status.tolist() == [int(Status.NON_FINITE if i == 4 else Status.SUCCESS) for i in range(9)]
    assert_close(compiled.y[:4, 0], y0[:4, 0] * math.exp(-1), rtol=1e-3, atol=1e-3)


def test_max_steps(y0):
    eager, compiled = both(Field(), y0, 3.0, Dopri5(rtol=1e-6, atol=1e-6, max_steps=16), throw=False)
    assert_equal(compiled, eager)
    assert set(compiled.status.tolist()) == {int(Status.SUCCESS), int(Status.MAX_STEPS)}


# ---- gradients


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
def test_gradients_are_those_of_eager_steps(y0, gradient):
    f, grads = Field(), []
    for compile in (False, DIFFERENTIATED):
        start = y0.clone().requires_grad_()
        y = solve(f, start, 0.0, 3.0, DOPRI, gradient=gradient, compile=compile).y
        grads.append(torch.autograd.grad(y.square().sum(), (start, *f.parameters())))
    assert_close(grads[1], grads[0], rtol=1e-8, atol=1e-8)


def test_a_frozen_start_still_trains_parameters(y0):
    """y0 wants no gradient, the states after it do."""
    f = Field()
    grads = [
        torch.autograd.grad(solve(f, y0, 0.0, 3.0, DOPRI, compile=c).y.sum(), tuple(f.parameters()))
        for c in (False, DIFFERENTIATED)
    ]
    assert_close(grads[1], grads[0], **CLOSE)
    assert not y0.requires_grad


# ---- graphs


def test_a_second_solve_compiles_nothing(y0):
    f = Field()
    with torch.no_grad():
        solve(f, y0, 0.0, 3.0, DOPRI, compile=TRACED)
        assert graphs() > 0
        solve(f, y0 + 1, 0.5, 4.0, Dopri5(rtol=1e-6, atol=1e-6), compile=TRACED)
        assert graphs() == 0


def test_lambdas_of_one_line_are_one_f(y0):
    f = Field()
    for _ in range(3):
        with torch.no_grad():
            solve(lambda t, y: f(t, y), y0, 0.0, 3.0, DOPRI, compile=TRACED)
    assert graphs() <= 4


@pytest.mark.parametrize("per_sample", [False, True])
def test_any_number_of_samples_is_one_graph(starts, per_sample):
    """As samples end, and in the next solve; f is a graph of its own, as it is evaluated before."""
    field, rate = Field(), torch.linspace(0.5, 2, 64, dtype=torch.float64)

    def f(t, y, *rates):
        return field(t, y) * rates[0][:, None] if rates else field(t, y)

    def run(rows):
        own = (rate[:rows],) if per_sample else ()
        return solve(f, starts(64, 2)[:rows], 0.0, 3.0, DOPRI, sample_args=own, compile=TRACED)

    torch.compiler.reset()  # torch remembers which shapes changed in other tests
    with torch.no_grad():
        assert len(run(64).n_steps.unique()) > 4
        assert graphs() == 2
        run(50)
        assert graphs() <= 1  # f alone
    run(64)
    assert graphs() <= 3 + per_sample  # of one round, of some at once, and f alone
    run(50)
    assert graphs() <= 1


def test_compaction_does_happen(starts):
    """Rows of f are fewer than without, and at most a third more than what samples need."""
    y0 = torch.stack([torch.ones(64), torch.logspace(0, 2, 64)], 1).double()

    def rated(t, y):
        return torch.stack([-y[:, 0] * y[:, 1], 0 * torch.cos(y[:, 1])], 1)

    sizes, work = [], []

    def backend(graph, inputs):
        calls = sum(node.target is torch.cos for node in graph.graph.nodes)

        def run(*args):
            sizes.append(max(x.shape[0] for x in args if isinstance(x, torch.Tensor) and x.ndim == 2))
            work.append(sizes[-1] * calls)
            return graph(*args)

        return run

    with torch.no_grad():  # one graph has many rounds
        solve(rated, y0, 0.0, 1.0, DOPRI, compile={"backend": backend})
    assert sizes[0] == 64
    assert sizes[-1] < 16
    loops = len(sizes)
    sizes.clear()
    work.clear()
    solution = solve(rated, y0, 0.0, 1.0, DOPRI, compile={"backend": backend})
    assert sizes[0] == 64
    assert sizes[-1] < 16
    assert loops < solution.n_steps.max()
    needed = int(solution.nfe.sum())
    assert needed <= sum(work) <= 1.4 * needed


def test_any_number_of_fixed_steps_is_three_graphs(y0):
    f = Field()
    with torch.no_grad():
        for steps in (5, 9):
            solve(f, y0, 0.0, 3.0, RK4(steps), compile=TRACED)
            assert graphs() <= 4  # the first, the last, those between, and f alone


def test_training_is_as_many_graphs_as_inference(y0):
    f = Field()
    for _ in range(2):
        solve(f, y0, 0.0, 3.0, DOPRI, compile=DIFFERENTIATED).y.sum().backward()
    assert graphs() <= 3


def test_more_fs_than_torch_recompiles_for(y0):
    for seed in range(10):
        with torch.no_grad():
            solve(Field(seed=seed), y0[:2], 0.0, 0.1, Dopri5(), compile={"backend": "eager"})


# ---- bad input


def test_an_f_with_branches_on_data_is_told(y0):
    def f(t, y):
        return -y if y.sum() > 0 else -2 * y

    with pytest.raises(RuntimeError) as caught:
        solve(f, y0, 0.0, 1.0, DOPRI, compile=TRACED)
    assert "compile: f works, but torch.compile makes no single graph of it" in "".join(caught.value.__notes__)


def test_errors_of_f_are_its_own(y0):
    with pytest.raises(ValueError, match=r"f: expected dy/dt of shape \(9, 2\) like y, got \(1, 2\)"):
        solve(lambda t, y: y[:1], y0, 0.0, 1.0, DOPRI, compile=TRACED)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_compile_is_checked(y0, value):
    with pytest.raises(TypeError, match="compile: expected True, False or a mapping"):
        solve(lambda t, y: y, y0, 0.0, 1.0, DOPRI, compile=value)


@pytest.mark.parametrize("integrator", [RK4(2), Dopri5()], ids=str)
def test_in_a_model_that_is_compiled_around_it_failures_are_told(y0, integrator):
    """The model's compilation breaks at the solve, which runs as it is."""

    def model(y, t1):
        return 2 * solve(lambda t, y: torch.where(t < 0.8, -y, math.nan), y, 0.0, t1, integrator).y

    compiled = torch.compile(model, backend="eager")
    t1 = torch.full((9,), 0.5, dtype=torch.float64)
    assert_close(compiled(y0, t1), 2 * y0 * math.exp(-0.5), rtol=1e-2, atol=1e-2)
    with pytest.raises(SolveError, match="NON_FINITE"):
        compiled(y0, 2 * t1)
    with pytest.raises(ValueError, match="t1: expected finite times"):
        compiled(y0, math.nan * t1)
