"""Kernels for rows: torch's operators in C++, equal to torch's own."""

import math

import mpmath
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close
from torch.testing._internal.two_tensor import TwoTensor

from dise import RK4, Adams, Bosh3, Event, HeunEuler, PIController, solve
from dise.integrate.compile import private
from dise.integrate.compile.rounds import GraphRounds
from dise.integrate.compile.rowwise.build import FLAGS, built
from dise.integrate.compile.rowwise.function import Kernel, Spec
from dise.integrate.compile.rowwise.graphs import with_kernel
from dise.integrate.compile.rowwise.values import UnsupportedError

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in FLAGS, reason="no kernels for this CPU's vectors"
)
N = 37  # rows: two blocks and a part of one


def kernel(function, *inputs, rows="n"):
    """A kernel of a function that returns a tensor or some; inputs with N rows are per row."""
    specs = [Spec((rows, *x.shape[1:]) if len(x) == N else tuple(x.shape), x.dtype, x.requires_grad) for x in inputs]

    def outputs(*values):
        results = function(*values)
        return (results if isinstance(results, tuple) else (results,)), None

    return Kernel(outputs, specs, rows)


def both(function, *inputs, **options):
    """A kernel's results and the function's."""
    expected = function(*inputs)
    return kernel(function, *inputs, **options)(inputs)[0], list(
        expected if isinstance(expected, tuple) else (expected,)
    )


def numbers(dtype, *shape):
    torch.manual_seed(0)
    return torch.randn(N, *shape, dtype=dtype)


SPECIAL = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 0.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elementwise_operators(dtype):
    x, y = numbers(dtype, 3), numbers(dtype, 3).flip(1)
    x[: len(SPECIAL), 0] = SPECIAL.to(dtype)
    y[: len(SPECIAL), 1] = SPECIAL.to(dtype)
    calls = ("tanh", "exp", "expm1", "sin", "cos", "tan", "atan", "sinh", "cosh", "erf", "relu", "neg", "abs", "sign")
    plain = ("reciprocal", "isnan", "isinf", "isfinite", "square", "sigmoid")
    binary = ("add", "sub", "mul", "div", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge")

    def everything(x, y):
        unary = [getattr(torch, name)(x) for name in (*calls, *plain)]
        positive = [getattr(torch, name)(x.abs()) for name in ("sqrt", "rsqrt", "log", "log1p")]
        powers = [x.abs() ** p for p in (-0.2, 2.5, 0.5, 2, 3, -1)] + [x.abs() ** y, 2.0**x, 3.0**x]
        limited = [x.clamp(-0.5, 0.5), x.clamp(min=0.1), x.clamp(max=0.1), x.nan_to_num(nan=0.2), x.nan_to_num()]
        mixed = [torch.lerp(x, y, 0.3), torch.lerp(x, y, 0.8), torch.addcmul(x, x, y, value=0.7)]
        logic = [(x > 0) & (y > 0), (x > 0) | (y > 0), ~(x > 0), (x > 0) ^ (y > 0), torch.logical_not(x)]
        other = [torch.where(x > y, x, y), x.masked_fill(y > 0, 7.0), torch.add(x, y, alpha=0.3), 1 - x, x + 1, 2 / x]
        pairs = [getattr(torch, name)(x, y) for name in binary]
        return (*unary, *positive, *powers, *limited, *mixed, *logic, *other, *pairs)

    assert_close(*both(everything, x, y), equal_nan=True)


def test_operators_on_integers():
    x, n = numbers(torch.float32, 3), (10 * numbers(torch.float64)).long()
    assert_close(
        *both(
            lambda x, n: (x.long(), n + 1, n / 3, n * x[:, 0], n.double(), ~n, n.abs(), n == 4, n.bool(), n + (n > 2)),
            x,
            n,
        )
    )


def test_operators_of_rows():
    x, weight, bias = numbers(torch.float64, 3, 4), torch.randn(5, 4).double(), torch.randn(5).double()

    def function(x, weight, bias):
        a = x[:, 1]
        return (
            x.sum((1, 2)), x.mean(1), x.amax(2), x.amin((1,), keepdim=True), torch.linalg.vector_norm(x, dim=2),
            (x > 0).any(1), (x > 0).all(1), torch.cat([a, x[:, :, 0]], 1), torch.stack([a, 2 * a], 2),
            functional.linear(a, weight, bias), a @ weight.t(), x.flatten(1)[:, 2:7], x.transpose(1, 2) + 1,
            a[:, None] * x, functional.softplus(a), functional.silu(a), functional.gelu(a), functional.elu(a),
            functional.softmax(a, 1), torch.zeros_like(a) + a, (weight.exp() * bias[:, None]).sum(0) * a,
            a[:, :1].expand(-1, 3), bias.tanh()[:4] * a, a.flip(1) - x[:, 0].flip((1,))[:, 1:2], a.t().contiguous().t(),
        )  # fmt: skip

    found, expected = both(function, x, weight, bias)
    assert_close(found, expected)
    assert found[-1].stride() == expected[-1].stride()


def test_sums_over_rows():
    x, y = numbers(torch.float64, 3), numbers(torch.float64, 5)

    def function(x, y):
        return (x.t() @ y).t(), x.sum(0), x.sum() + 1, (x * x).sum(0, keepdim=True), (x.t() @ y) + (x.t() @ y), y.max()

    assert_close(*both(function, x, y))


@pytest.mark.parametrize("layers", [(2, 64, 2), (5, 7, 3)], ids=str)
@pytest.mark.parametrize("rows", [1, 16, 500])
def test_networks_on_any_number_of_rows_and_threads(layers, rows):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(*layers[:2]), nn.Tanh(), nn.Linear(*layers[1:]))
    weights = [p.detach() for p in net.parameters()]

    def function(x, a, b, c, d):
        y = functional.linear(functional.linear(x, a, b).tanh(), c, d)
        return y, y.sum(0)

    compiled = kernel(function, torch.ones(N, layers[0]), *weights)
    x, threads = torch.randn(rows, layers[0]), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert_close(compiled([x, *weights])[0], list(function(x, *weights)), rtol=1e-5, atol=1e-4)
        assert_close(compiled([x.t().contiguous().t(), *weights])[0][0], function(x, *weights)[0], rtol=1e-5, atol=1e-4)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_is_within_two_units_in_the_last_place(dtype):
    exponents = torch.linspace(-30, 5, N * 3000, dtype=torch.float64).exp2()
    x = torch.cat([exponents, torch.linspace(0.5, 0.6, N * 3000, dtype=torch.float64)]).to(dtype).reshape(N, -1)
    (found,) = kernel(torch.tanh, x)([x])[0]
    (mirrored,) = kernel(torch.tanh, x)([-x])[0]
    assert torch.equal(mirrored, -found)
    if dtype is torch.float32:
        exact = x.double().tanh()
        error = (found.double() - exact).abs()
    else:
        some = x.flatten()[:: x.numel() // 3000]
        exact = [mpmath.tanh(v) for v in some.tolist()]
        found = found.flatten()[:: x.numel() // 3000]
        error = torch.tensor([float(abs(a - b)) for a, b in zip(found.tolist(), exact, strict=True)])
        exact = torch.tensor([float(v) for v in exact], dtype=dtype)
    rounded = exact.to(dtype)
    unit = torch.nextafter(rounded, torch.tensor(2.0, dtype=dtype)) - rounded
    assert 0.5 < (error / unit).max() < 1.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_of_special_numbers(dtype):
    tiny = torch.finfo(dtype).smallest_normal
    x = torch.cat([SPECIAL.to(dtype), torch.tensor([tiny, tiny / 8, -tiny / 8, 50, -1e30], dtype=dtype)])
    x = torch.cat([x, torch.zeros(N - len(x), dtype=dtype)])
    (found,), (expected,) = both(torch.tanh, x)
    assert torch.equal(found.nan_to_num(nan=7), expected.nan_to_num(nan=7))
    assert torch.equal(found.signbit(), expected.signbit())


def test_what_changes_in_place_is_what_torch_changes():
    def function(x):
        z = 2 * x
        before = z + 1
        view = z[:, :1]
        z.mul_(3.0)
        return z, view + 0, before

    assert_close(*both(function, numbers(torch.float64, 2)))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.cumsum(0),
        lambda x: x - x.mean(0),
        lambda x: x.sort(1).values,
        lambda x: x[1:],
        lambda x: x.reshape(-1),
        lambda x: x * x.shape[0],
        lambda x: x * torch.linspace(0, x.shape[0], 2),
        lambda x: x + torch.arange(x.shape[0])[:, None],
        lambda x: x * x[0, 0].item(),
        lambda x: x if x[0, 0] > 0 else -x,
        lambda x: torch.rand_like(x),
        lambda x: x + torch.randn(2),
        lambda x: x.mul_(2),
        lambda x: x.clone()[:, :1].mul_(2),
        lambda x: x.to(torch.bfloat16),
        lambda x: torch.complex(x, x),
        lambda x: x[:, [1, 0]],
        lambda x: torch.zeros(x.shape),
        lambda x: x[:, :0],
        lambda x: x @ torch.ones(2, 10_000),
        lambda x: x @ x.t(),
    ],
)
def test_what_has_no_code_is_said(function):
    with pytest.raises((UnsupportedError, RuntimeError), match=r"\w"):
        kernel(function, torch.ones(N, 2))


def test_a_fixed_number_of_rows():
    x = numbers(torch.float64, 2)
    assert_close(*both(lambda x: x * x.shape[0] + torch.zeros(x.shape, dtype=x.dtype), x, rows=N))
    with pytest.raises(UnsupportedError, match="rows"):
        kernel(lambda x: x.reshape(2, -1), x, rows=N)
    others = torch.randn(N + 1, 2, dtype=torch.float64)
    for add in (lambda x, y: x + y[:N], lambda x, y: torch.addmm(y[:N], x, y[:2])):
        with pytest.raises(UnsupportedError, match="other rows"):
            kernel(add, x, others, rows=N)


def test_a_compiler_that_fails_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(private, "cache_folder", lambda: str(tmp_path))
    for compiler in ("false", "no-such-compiler"):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(UnsupportedError, match=compiler):
            kernel(lambda x: x * 1.2345, torch.ones(N, 2))
    assert not list(tmp_path.rglob("*.so"))


def test_rows_after_the_last_one_count_for_nothing():
    x = numbers(torch.float64, 3)
    x[-1, 0] = math.inf
    assert_close(*both(lambda x: (x.sum(0), (x * x).t() @ x.abs(), x.abs() ** -0.5), x))


@pytest.mark.parametrize("dtype", [torch.int32, torch.float64])
def test_memory_read_as_other_numbers_is_refused(dtype):
    with pytest.raises((UnsupportedError, RuntimeError), match=r"numbers|setStorage"):
        kernel(lambda x: x.view(dtype) + 1, torch.ones(N, 2))
    with pytest.raises(UnsupportedError, match="numbers"):
        kernel(lambda x: torch._neg_view(x) + 1, torch.ones(N, 2))


def test_inputs_with_a_lazy_sign():
    x, weight = numbers(torch.float64, 2), torch.randn(2).double()
    compiled = kernel(lambda x, weight: x * weight, x, weight)
    lazy = [torch.complex(torch.zeros_like(v), -v).conj().imag for v in (x, weight)]
    assert lazy[0].is_neg()
    assert_close(compiled(lazy)[0][0], x * weight)


def test_tensors_without_memory_are_refused():
    graph = torch.fx.symbolic_trace(lambda rows_y: (rows_y * 2,))
    next(iter(graph.graph.nodes)).meta["example_value"] = TwoTensor(torch.ones(N, 2), torch.ones(N, 2))
    with pytest.raises(UnsupportedError, match="memory"):
        with_kernel(graph)


def test_diagonals_across_a_fixed_number_of_rows_are_refused():
    with pytest.raises(UnsupportedError, match="each row"):
        kernel(lambda x: x.diagonal()[:, None] * x, torch.randn(N, N), rows=N)


def test_large_values_are_refused():
    """They would lie on the stack."""
    for function in (lambda x, w: x * w.exp().sum(0), lambda x, w: x * (w.exp() + w).amax(0)):
        with pytest.raises(UnsupportedError, match="large"):
            kernel(function, torch.ones(N, 2), torch.ones(450_000, 2))
    with pytest.raises(UnsupportedError, match="large"):
        kernel(lambda x: x + 1, torch.ones(N, 40_000, dtype=torch.float64))


def test_damaged_files_are_made_again(monkeypatch, tmp_path):
    x = numbers(torch.float64, 2)
    for size in (None, 5000, 0):  # of what is found, all but the first time
        folder = tmp_path / str(size)
        for library in (tmp_path / "None").rglob("*.so"):
            folder.joinpath("dise").mkdir(parents=True)
            folder.joinpath("dise", library.name).write_bytes(library.read_bytes()[:size])
        monkeypatch.setattr(private, "cache_folder", lambda folder=folder: str(folder))
        built.cache_clear()
        assert_close(*both(lambda x: x * 2.5, x))
        assert size is None or library.stat().st_size == folder.joinpath("dise", library.name).stat().st_size


# ---- solves


def only_kernels(graph, inputs):
    """A backend that has no other way."""
    return with_kernel(graph)


def kernel_or_eager(graph, inputs):
    """A backend that runs a graph as it is where there is no code for it."""
    try:
        return with_kernel(graph)
    except UnsupportedError:
        return graph


KERNELS = {"backend": only_kernels}
BOSH = Bosh3(rtol=1e-5, atol=1e-5)
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def field(t, y, gain=1.0):
    """Nonlinear and time-dependent."""
    return torch.tanh(2 * gain * y.flip(1) + 0.5) + torch.sin(3 * t) - y


def decay(t, y, rate):
    return -rate * y * torch.cos(t)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, t, y, gain):
        return self.net(y) * gain.exp() + torch.sin(3 * t) - y


def assert_equal(compiled, eager):
    assert_close(compiled.y, eager.y, **CLOSE)
    for name in ("t", "nfe", "n_steps", "n_accepted", "error", "status", "dt"):
        assert_close(getattr(compiled, name), getattr(eager, name), **CLOSE, equal_nan=True)


@pytest.mark.parametrize(
    ("f", "integrator", "options"),
    [
        (field, Bosh3(rtol=1e-5, atol=(1e-5, 1e-6), controller=PIController()), {"throw": False}),
        (field, HeunEuler(rtol=1e-3, atol=1e-3, first_step="span"), {"drop_finished": False}),
        (
            decay,
            BOSH,
            {"sample_args": (torch.linspace(0.1, 9, 40).double()[:, None],), "accumulate": lambda s: s.dt.abs()},
        ),
    ],
    ids=["control", "all rows", "samples"],
)
def test_loops_are_eager(starts, f, integrator, options):
    with torch.no_grad():
        eager, compiled = (
            solve(f, starts(40, 2), 0.0, 3.0, integrator, compile=c, **options) for c in (False, KERNELS)
        )
    assert_equal(compiled, eager)
    assert compiled.calls == eager.calls or integrator is not BOSH  # others evaluate k1 again in all rows
    assert len(eager.nfe.unique()) > 3
    if eager.accumulated is not None:
        assert_close(compiled.accumulated, eager.accumulated, **CLOSE)


def test_a_number_that_changes_between_solves_counts(starts):
    """torch makes it an input of its second graph."""
    f = Network()
    f.rate = 1.0
    f.forward = lambda t, y: f.rate * f.net(y)
    with torch.no_grad():
        for f.rate in (1.0, 2.0, 3.0):
            eager, compiled = (
                solve(f, starts(40, 2), 0.0, 1.0, BOSH, compile=c) for c in (False, {"backend": kernel_or_eager})
            )
            assert_equal(compiled, eager)


def test_a_failing_row_fails_alone(starts):
    y0 = torch.cat([starts(40, 1), (torch.arange(40) == 17).double()[:, None]], 1)

    def f(t, y):
        return torch.where((y[:, 1:] == 1) & (t > 0.5), math.nan, torch.stack([-y[:, 0], 0 * y[:, 1]], 1))

    with torch.no_grad():
        eager, compiled = (solve(f, y0, 0.0, 1.0, BOSH, throw=False, compile=c) for c in (False, KERNELS))
    assert_equal(compiled, eager)
    assert compiled.status.unique(return_counts=True)[1].tolist() == [39, 1]


# ---- several rounds per call


@pytest.fixture
def rounds_per_call(monkeypatch):
    """A list to which the number of rounds of each call is added; first calls do few."""
    for name in ("FEWEST_ROUNDS", "FEWEST_WITH_EVENTS"):
        monkeypatch.setattr(f"dise.integrate.compile.rounds.{name}", 4)
    numbers, attempt = [], GraphRounds._some_rounds

    def counted(*args):
        done = attempt(*args)
        numbers.append(done.number)
        return done

    monkeypatch.setattr(GraphRounds, "_some_rounds", counted)
    return numbers


def backward_and_forward():
    """Spans of 40 samples, one of them empty, and three save points in each."""
    t0 = torch.linspace(0.0, 0.8, 40, dtype=torch.float64)
    length = torch.linspace(-2.0, 3.0, 40, dtype=torch.float64)
    length[7] = 0
    return t0, t0 + length, t0[:, None] + torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64) * length[:, None]


EVENTS = {
    "stop": Event(lambda t, y, gain: y[:, 0] - 0.3, "rising"),
    "pass": Event(lambda t, y, gain: y[:, 0] - 0.2, terminal=False),
    "third": Event(lambda t, y, gain: (3 * y[:, 1]).sin(), terminal=3),
}
KEPT = {"steps": {"record": True, "dense": True}, "events": {"event": EVENTS, "accumulate": lambda step: step.dt.abs()}}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize(
    "gradients", [False, pytest.param(True, marks=pytest.mark.long)], ids=["inference", "training"]
)
def test_rounds_that_are_kept_are_eager(starts, rounds_per_call, kept, gradients):
    """Forward, backward and empty spans; what is kept of them, and gradients of all of it."""
    (t0, t1, times), f, outcomes = backward_and_forward(), Network(), []
    for setting in (False, KERNELS):
        y0, gain = starts(40, 2).requires_grad_(gradients), torch.tensor(0.1, dtype=torch.float64)
        with torch.set_grad_enabled(gradients):
            solution = solve(f, y0, t0, t1, BOSH, args=(gain,), save_at=times, compile=setting, **KEPT[kept])
        found = {name: getattr(solution, name) for name in ("saved", "steps", "which", "accumulated")}
        if solution.events is not None:
            found |= {"times": solution.events.t, "states": solution.events.y, "events": solution.events.which}
        if solution.interpolant is not None:
            found["middle"] = solution.evaluate((t0 + t1)[:, None] / 2)
        if gradients:
            kinds = ("saved", "times", "states", "middle", "accumulated")
            loss = sum(found[name].nan_to_num().square().sum() for name in kinds if found.get(name) is not None)
            loss = loss + solution.y.square().sum() + solution.error.sum()
            found["gradients"] = torch.autograd.grad(loss, (y0, *f.parameters()))
        outcomes.append((solution, {name: x for name, x in found.items() if x is not None}))
    (eager, found), (compiled, compared) = outcomes
    assert_equal(compiled, eager)
    assert_close(compared, found, rtol=1e-8, atol=1e-9, equal_nan=True)
    assert rounds_per_call[:3] == [4, 4, 8]
    if kept == "events":
        assert set(eager.which.tolist()) == {-1, 0, 2}


def test_progress_is_shown_round_by_round(starts, rounds_per_call):
    shown, options = {}, {"save_every": 3}
    for setting in (False, KERNELS):
        seen = shown[str(setting)] = []
        with torch.no_grad():
            solution = solve(
                field, starts(40, 2), 0.0, 3.0, BOSH, compile=setting, **options,
                progress=lambda p, seen=seen: seen.append((p.rounds, p.t)),
            )  # fmt: skip
        seen.append(solution.saved)
    eager, compiled = shown.values()
    assert len(rounds_per_call) < len(eager) / 4
    assert_close(compiled, eager, **CLOSE, equal_nan=True)


def test_the_most_rounds_are_kept_to(starts, rounds_per_call):
    with torch.no_grad():
        eager, compiled = (
            solve(field, starts(40, 2), 0.0, 3.0, Bosh3(rtol=1e-5, atol=1e-5, max_steps=7), compile=c, record=True,
                  throw=False) for c in (False, KERNELS)
        )  # fmt: skip
    assert_equal(compiled, eager)
    assert rounds_per_call == [4, 3]


def test_large_states_keep_a_round(starts, rounds_per_call, monkeypatch):
    monkeypatch.setattr("dise.integrate.compile.rowwise.steps.LOG_BYTES", 2**10)
    with torch.no_grad():
        eager, compiled = (
            solve(field, starts(40, 2), 0.0, 3.0, BOSH, compile=c, save_at=[1.0, 2.0]) for c in (False, KERNELS)
        )
    assert_equal(compiled, eager)
    assert_close(compiled.saved, eager.saved, **CLOSE)
    assert set(rounds_per_call) == {1}


# ---- gradients


@pytest.mark.parametrize(
    ("integrator", "options"),
    [
        (BOSH, {}),
        (BOSH, {"differentiate_step_sizes": True, "gradient": "checkpoint"}),
        pytest.param(HeunEuler(rtol=1e-3, atol=1e-3), {"gradient": "checkpoint"}, marks=pytest.mark.long),
        (RK4(1), {}),
    ],
    ids=["adaptive", "step sizes", "segments", "one step"],
)
def test_gradients_are_eager(starts, integrator, options):
    f, outcomes = Network(), []
    for setting in (False, KERNELS):
        y0, gain = starts(40, 2).requires_grad_(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        solution = solve(f, y0, 0.0, 1.0, integrator, args=(gain,), compile=setting, **options)
        loss = solution.y.square().sum() + solution.error.nan_to_num().sum()
        outcomes.append((solution.y, torch.autograd.grad(loss, (y0, gain, *f.parameters()))))
    assert_close(outcomes[1], outcomes[0], rtol=1e-8, atol=1e-9)


def test_gradients_of_gradients_are_refused(starts):
    """Also where other paths of second derivatives, those of the eager first evaluation, reach the start."""
    y0, gain = starts(40, 2).requires_grad_(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    y = solve(Network(), y0, 0.0, 1.0, BOSH, args=(gain,), compile=KERNELS).y
    (gradient,) = torch.autograd.grad(y.square().sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(gradient.square().sum(), y0)


@pytest.mark.parametrize("setting", [True, "fast"])
def test_forward_mode_is_refused(starts, setting):
    """Kernels and inductor would drop the tangents."""
    with torch.autograd.forward_ad.dual_level(), pytest.raises(ValueError, match="forward-mode"):
        solve(field, torch.autograd.forward_ad.make_dual(starts(4, 2), starts(4, 2)), 0.0, 1.0, BOSH, compile=setting)


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="torch 2.6 compiles one row's history wrongly")
@pytest.mark.parametrize("batched", [True, False])
def test_gradients_of_one_row_by_adams(batched):
    """What counts as contiguous in one row may be a part of another tensor."""
    y0 = torch.tensor([[0.5, -0.25, 1.0]], dtype=torch.float64)

    def f(t, y):
        return torch.cos(2 * t) * y.tanh() - 0.3 * y

    def solved(compile):
        start = y0.clone().requires_grad_()
        solution = solve(f, start, 0.0, 1.5, Adams(5, rtol=1e-5, atol=1e-5), batched=batched, compile=compile)
        return solution.y, solution.nfe, torch.autograd.grad(solution.y.sum(), start)[0]

    for compiled, eager in zip(solved(True), solved(False), strict=True):
        assert_close(compiled, eager, rtol=1e-9, atol=1e-12)
