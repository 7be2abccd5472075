"""A bounded number of graphs, kept between solves; what torch cannot compile is named."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.testing import assert_close

from dise import RK4, Bosh3, Euler, Heun, Multistep, Ralston, SolveError, solve
from dise.integrate.compile import cache
from dise.integrate.compile.backend import fast_inductor, inductor
from dise.integrate.stepping.method import Method

FACTOR = 1.0  # of a field
OLDEST = torch.__version__.startswith("2.6.")
TRACED = {"backend": "eager"}  # traces
DIFFERENTIATED = {"backend": "aot_eager"}  # and differentiates
BOSH = Bosh3(rtol=1e-5, atol=1e-5)


@pytest.fixture
def y0(starts):
    return starts(9, 2)


def field(t, y):
    return torch.tanh(2 * y.flip(1) + 0.5) + torch.sin(3 * t) - y


def graphs():
    """Graphs compiled since the last call of this function."""
    number = counters["stats"]["unique_graphs"]
    counters["stats"]["unique_graphs"] = 0
    return number


@pytest.fixture(autouse=True)
def count_from_zero():
    graphs()


# ---- arguments of torch.compile


@pytest.mark.parametrize(
    ("setting", "backend"),
    [(True, inductor), ({"options": {"max_autotune": True}}, inductor), ("fast", fast_inductor)],
    ids=["True", "options", "fast"],
)
def test_backend_is_ours(setting, backend):
    arguments = cache._arguments(setting)
    assert arguments["backend"] is backend
    assert arguments["fullgraph"] is True
    assert arguments["options"]["guard_filter_fn"] is cache._checked_guards
    assert arguments["options"].get("max_autotune", False) == isinstance(setting, dict)


@pytest.mark.parametrize("setting", [{"backend": "inductor"}, {"mode": "default"}, {"backend": "eager"}], ids=str)
def test_backend_is_the_one_that_is_named(setting):
    assert cache._arguments(setting) == {"fullgraph": True, **setting}


@pytest.mark.parametrize(
    ("options", "own"), [(True, True), ("fast", False), ({"options": {}}, True), ({"backend": "eager"}, False)]
)
def test_solves_pass_their_setting_on(options, own, monkeypatch):
    calls = []

    def backend(graph, inputs, *, options=None):
        calls.append(options)
        return graph

    monkeypatch.setattr("dise.integrate.compile.cache.inductor", backend)
    monkeypatch.setattr("dise.integrate.compile.cache.fast_inductor", lambda graph, inputs, *, options=None: graph)
    with torch.no_grad():
        solve(lambda t, y: -y, torch.ones(3, 2), 0.0, 1.0, RK4(1), compile=options)
    assert bool(calls) == own


# ---- the number of graphs


def test_a_second_solve_compiles_nothing(y0):
    with torch.no_grad():
        solve(field, y0, 0.0, 3.0, BOSH, compile=TRACED)
        assert graphs() > 0
        solve(field, y0 + 1, 0.5, 4.0, Bosh3(rtol=1e-5, atol=1e-5), compile=TRACED)
        assert graphs() == 0


def test_lambdas_of_one_line_are_one_f(y0):
    for _ in range(3):
        with torch.no_grad():
            solve(lambda t, y: field(t, y), y0, 0.0, 3.0, BOSH, compile=TRACED)
    assert graphs() <= 4


@pytest.mark.parametrize("per_sample", [pytest.param(False, marks=pytest.mark.long), True])
def test_any_number_of_samples_is_one_graph(starts, per_sample):
    """As samples end, and in the next solve."""
    rate = torch.linspace(0.5, 2, 64, dtype=torch.float64)

    def f(t, y, *rates):
        return field(t, y) * rates[0][:, None] if rates else field(t, y)

    def run(rows):
        own = (rate[:rows],) if per_sample else ()
        return solve(f, starts(64, 2)[:rows], 0.0, 3.0, BOSH, sample_args=own, compile=TRACED)

    with torch.no_grad():
        assert len(run(64).n_steps.unique()) > 4
        assert graphs() == 1
        run(50)
        assert graphs() == 0
    run(64)
    assert graphs() <= 1 + per_sample
    run(50)
    assert graphs() == 0


def test_compaction_does_happen():
    """Rows of f are fewer than without, and at most two fifths more than what samples need."""
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
        solve(rated, y0, 0.0, 1.0, BOSH, compile={"backend": backend})
    assert sizes[0] == 64
    assert sizes[-1] < 16
    loops = len(sizes)
    sizes.clear()
    work.clear()
    solution = solve(rated, y0, 0.0, 1.0, BOSH, compile={"backend": backend})
    assert sizes[0] == 64
    assert sizes[-1] < 16
    assert loops < solution.n_steps.max()
    needed = int(solution.nfe.sum()) - 2 * 64  # the evaluations before the first step are eager
    assert needed <= sum(work) <= 1.4 * needed


def test_any_number_of_fixed_steps_is_three_graphs(y0):
    with torch.no_grad():
        for steps in (5, 9):
            solve(field, y0, 0.0, 3.0, Heun(steps), compile=TRACED)
            assert graphs() <= 3  # the first, the last, and those between


def test_training_is_as_many_graphs_as_inference(y0):
    f = torch.nn.Linear(2, 2).double()
    for _ in range(2):
        solve(lambda t, y: f(y), y0, 0.0, 3.0, BOSH, compile=DIFFERENTIATED).y.sum().backward()
    assert graphs() == 1


def test_more_fs_than_torch_recompiles_for(y0):
    class Pointwise:
        def __init__(self, function):
            self.function = function

        def __call__(self, t, y):
            return self.function(y)

    with torch.no_grad(), torch._dynamo.config.patch(cache_size_limit=2):
        for function in (torch.sin, torch.cos, torch.tanh):
            end = solve(Pointwise(function), y0[:2], 0.0, 0.1, Euler(1), compile=TRACED).y
            assert_close(end, y0[:2] + 0.1 * function(y0[:2]))


def test_a_graph_of_f_alone_is_made_where_f_is_requested_often(y0):
    """Not for the evaluations before the first step, which precede a graph of steps."""
    table = Multistep.adams(6)
    with torch.no_grad():
        eager, first, later = (solve(field, y0, 0.0, 1.0, table, compile=c) for c in (False, TRACED, TRACED))
    assert graphs() == 1
    for compiled in (first, later):
        assert_close(compiled.y, eager.y, rtol=1e-9, atol=1e-11)
        assert compiled.calls == eager.calls


def test_a_graph_of_f_alone_is_made_in_the_end(y0, monkeypatch):
    """Also where each solve requests f once."""
    monkeypatch.setattr("dise.integrate.compile.field.EAGER_IN_ALL", 2)
    seen = []
    with torch.no_grad():
        for _ in range(4):
            solve(lambda t, y: 0.3 * field(t, y), y0, 0.0, 1.0, Euler(1), compile=TRACED)
            seen.append(graphs())
    assert seen == [1, 0, 1, 0]


def test_the_log_says_once_what_was_compiled(y0, caplog):
    def uncompiled(t, y):
        return -0.7 * y

    with caplog.at_level("INFO", logger="dise"), torch.no_grad():
        for _ in range(2):
            solve(uncompiled, y0, 0.0, 1.0, BOSH, compile=TRACED)
    (message,) = caplog.messages
    assert re.fullmatch(r"compiled a loop of steps of .*uncompiled in \d+\.\d s", message)


# ---- guards


def test_tableau_is_not_guarded_but_told_apart(y0, monkeypatch):
    """Methods whose tableaus differ in their numbers alone have graphs of their own."""
    monkeypatch.setattr("dise.integrate.compile.cache.inductor", lambda graph, inputs, *, options=None: graph)
    with torch.no_grad():
        for method in (Heun(2), Ralston(2), Heun(2)):
            eager, compiled = (solve(field, y0, 0.0, 2.0, method, compile=c) for c in (False, True))
            assert_close(compiled.y, eager.y, rtol=1e-9, atol=1e-11)


@pytest.mark.skipif(OLDEST, reason="torch 2.6 checks all guards")
def test_guards_of_the_tableau_are_left_out():
    seen = []

    def count(guards):
        kept = cache._checked_guards(guards)
        seen.append((sum(kept), len(kept)))
        return kept

    def first(method, x):
        return x * method.tableau.a[1][0]

    compiled = torch.compile(
        first, backend=lambda graph, inputs: graph, fullgraph=True, options={"guard_filter_fn": count}
    )
    assert compiled(Method(Heun(2).tableau, None), torch.ones(2)).tolist() == [1.0, 1.0]
    ((kept, number),) = seen
    assert kept < number


@pytest.mark.skipif(OLDEST, reason="torch 2.6 checks all guards")
def test_guards_of_the_solver_s_modules_are_left_out(monkeypatch, y0):
    """But not those of what f reads, its own module's and torch's."""
    left_out = set()

    def checked(guards):
        kept = cache._checked_guards(guards)
        left_out.update(guard.name for guard, k in zip(guards, kept, strict=True) if not k)
        return kept

    def f(t, y):
        return -FACTOR * torch.pi * y

    def both(factor, pi):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        monkeypatch.setattr(torch, "pi", pi)
        options = {"guard_filter_fn": checked}
        with torch.no_grad():
            return (solve(f, y0, 0.0, 0.5, BOSH, compile=c).y for c in (False, {"options": options}))

    monkeypatch.setattr("dise.integrate.compile.cache.inductor", lambda graph, inputs, *, options=None: graph)
    for factor, pi in ((1.0, torch.pi), (2.0, torch.pi), (2.0, 1.0)):
        eager, compiled = both(factor, pi)
        assert_close(compiled, eager, rtol=1e-9, atol=1e-11)
    assert any("stepping_dot_control'].StepEnd" in name for name in left_out)


@pytest.mark.parametrize("of", ["one", "all"])
@pytest.mark.parametrize("register", ["forward_hook", "forward_pre_hook"])
@pytest.mark.parametrize("kind", ["module", "function"])
def test_hooks_of_modules_are_noticed(register, kind, of):
    """torch does not guard them: registered and removed between solves, also on a module that a function calls."""
    layer, y0 = torch.nn.Linear(1, 1, bias=False), torch.ones(3, 1)
    torch.nn.init.constant_(layer.weight, 0.5)

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, t, y):
            return self.layer(y)

    f = Field() if kind == "module" else lambda t, y: layer(y)

    def end():
        with torch.no_grad():
            return float(solve(f, y0, 0.0, 1.0, Euler(2), compile=TRACED).y[0])

    def doubled(module, inputs, *output):
        return 2 * output[0] if output else (2 * inputs[0],)

    def on_layer_alone(module, *values):
        return doubled(module, *values) if module is layer else None

    assert end() == pytest.approx(1.25**2)
    for _ in range(2):
        if of == "one":
            handle = getattr(layer, f"register_{register}")(doubled)
        else:
            handle = getattr(torch.nn.modules.module, f"register_module_{register}")(on_layer_alone)
        assert end() == pytest.approx(1.5**2)
        handle.remove()
        assert end() == pytest.approx(1.25**2)


# ---- bad input


def test_an_f_with_branches_on_data_is_told(y0):
    def f(t, y):
        return -y if y.sum() > 0 else -2 * y

    with pytest.raises(RuntimeError) as caught:
        solve(f, y0, 0.0, 1.0, BOSH, compile=TRACED)
    assert "compile: f works, but torch.compile cannot make a single graph of it" in "".join(caught.value.__notes__)


def test_errors_of_f_are_its_own(y0):
    with pytest.raises(ValueError, match=r"f: expected dy/dt of shape \(9, 2\) like y, got \(1, 2\)"):
        solve(lambda t, y: y[:1], y0, 0.0, 1.0, BOSH, compile=TRACED)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_compile_is_checked(y0, value):
    with pytest.raises(TypeError, match="compile: expected True, False, 'fast' or a mapping"):
        solve(lambda t, y: y, y0, 0.0, 1.0, BOSH, compile=value)


def assert_failures_are_told(integrator):
    """The compilation of a model around a solve breaks at the solve, which runs as it is."""

    def model(y, t1):
        return 2 * solve(lambda t, y: torch.where(t < 0.8, -y, math.nan), y, 0.0, t1, integrator).y

    compiled, y0 = torch.compile(model, backend="eager"), torch.ones(9, 2, dtype=torch.float64)
    t1 = torch.full((9,), 0.5, dtype=torch.float64)
    assert_close(compiled(y0, t1), 2 * y0 * math.exp(-0.5), rtol=1e-2, atol=1e-2)
    with pytest.raises(SolveError, match="NON_FINITE"):
        compiled(y0, 2 * t1)
    with pytest.raises(ValueError, match="t1: expected finite times"):
        compiled(y0, math.nan * t1)


@pytest.mark.skipif(OLDEST, reason="torch 2.6 traces generators wrongly")
def test_in_a_model_that_is_compiled_around_it_failures_are_told():
    assert_failures_are_told(RK4(1))


@pytest.mark.long
@pytest.mark.skipif(OLDEST, reason="torch 2.6 traces generators wrongly")
def test_so_are_those_of_adaptive_solves():
    """In a process of its own: torch cannot trace an adaptive solve whose shapes are checked."""
    script = "import dise, test_cache; test_cache.assert_failures_are_told(dise.Bosh3())"
    folder = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
