"""Generated code: torch's own functions with compile=True, kernels within their stated bound with "fast"."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.testing import assert_close

from dise import Bosh3, Euler, solve
from dise.integrate.compile import kernels, private
from dise.integrate.compile.backend import fast_inductor, inductor

KEEPS_LOOPS = bool(private.known_options({"unsafe_marked_cacheable_functions": {}}))
BOSH = Bosh3(rtol=1e-4, atol=1e-4, first_step="span")


def field(t, y, gain=1.0):
    """Nonlinear and time-dependent."""
    return torch.tanh(2 * gain * y.flip(1) + 0.5) + torch.sin(3 * t) - y


class Parts(nn.Module):
    """tanh of two features, a narrow linear layer of two others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 2)

    def forward(self, t, y):
        return torch.cat([torch.tanh(y[:, :2]), self.layer(y[:, 2:])], 1)


# ---- solves


def test_results_differ_from_eager_ones_by_their_stated_bounds(monkeypatch):
    """In one step, y1 = y0 + 1000 f(y0): the errors are those of f and of one sum.

    A kernel's tanh is within 2 units, torch's own without kernels; with "fast", and no kernel, it is within its bound.
    Products are other sums of the same numbers.
    """
    monkeypatch.setattr("dise.integrate.compile.field.EAGER_PER_SOLVE", 0)
    x = torch.cat([torch.linspace(-9, 9, 4096), torch.logspace(-4, 0, 4096)]).reshape(-1, 2)
    y0, f = torch.cat([x, torch.randn(len(x), 2)], 1), Parts()
    with torch.no_grad():
        eager, exact, fast = (solve(f, y0, 0.0, 1000.0, Euler(1), compile=c).y for c in (False, True, "fast"))
    unit = torch.nextafter(eager.abs(), torch.tensor(torch.inf)) - eager.abs()  # in the last place
    if hasattr(torch._inductor.config.cpp, "use_decompose_tanh"):  # torch 2.6 generates another formula
        assert ((exact - eager).abs() <= 2 * unit)[:, :2].all()
    else:
        assert ((exact - eager).abs() <= 2 * unit + 1000 * 3e-7)[:, :2].all()
    assert ((fast - eager).abs() <= (2 + kernels.TANH_ULPS) * unit)[:, :2].all()
    unit = unit[:, 2:].max()
    assert ((exact - eager).abs() <= 2 * unit)[:, 2:].all()
    assert ((fast - eager).abs() <= 4 * unit)[:, 2:].all()


def test_generated_loops_are_eager(starts):
    with torch.no_grad():
        eager, compiled = (solve(field, starts(9, 2), 0.0, 3.0, BOSH, compile=c) for c in (False, True))
    assert_close(compiled.y, eager.y, rtol=1e-9, atol=1e-11)
    assert torch.equal(compiled.nfe, eager.nfe)
    assert len(eager.nfe.unique()) > 3


@pytest.mark.long
def test_generated_gradients_are_eager(starts):
    """Forward and backward."""
    outcomes = []
    for setting in (False, "fast"):
        y0, gain = starts(9, 2).requires_grad_(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        solution = solve(field, y0, 0.0, 1.0, BOSH, args=(gain,), compile=setting)
        loss = solution.y.square().sum() + solution.error.sum()
        outcomes.append((solution.y, torch.autograd.grad(loss, (y0, gain))))
    assert_close(outcomes[1], outcomes[0], rtol=1e-9, atol=1e-11)


# ---- backends


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("backend", "fast"), [(inductor, False), (fast_inductor, True)])
def test_only_the_fast_backend_replaces_functions(backend, fast, grad, monkeypatch):
    """Layouts are for graphs without gradients."""
    table, passed = {"an operator": "its decomposition"}, {}
    generator = private.CodeGenerator(lambda graph, inputs, **keywords: passed.update(keywords), lambda: table)
    monkeypatch.setattr(private, "code_generator", lambda: generator)
    with torch.set_grad_enabled(grad):
        backend("graph", [torch.ones(3)], options={"max_autotune": True, "guard_filter_fn": None})
    replaced = {**(kernels.FAST if fast else {}), **({} if grad else kernels.LAYOUTS)}
    assert passed["decompositions"] == table | replaced
    assert passed["config_patches"]["max_autotune"] is True
    assert passed["config_patches"]["cpp_wrapper"] is True
    assert passed["config_patches"].get("cpp.vec_isa_ok", False) is private.vectors_work()
    assert "guard_filter_fn" not in passed["config_patches"]


@pytest.mark.long
def test_backward_pass_keeps_few_activations():
    """A cheap function called several times in a graph is computed again, from its first input."""

    def called_often(x):
        for _ in range(4):
            x = x + torch.sin(x) * torch.cos(x)
        return x

    x = torch.randn(32, 64, requires_grad=True)
    y = torch.compile(called_often, backend=inductor, fullgraph=True)(x)
    kept = [*y.grad_fn.saved_tensors, *getattr(y.grad_fn, "_tensors_no_vc_check", ())]  # torch's two lists of them
    assert kept
    assert sum(other.numel() >= x.numel() for other in kept) <= 1
    assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(called_often(x).sum(), x))


def test_backend_takes_options_of_torch():
    with pytest.raises(Exception, match="no_such_option"):
        torch.compile(torch.sin, backend=inductor, options={"no_such_option": True})(torch.ones(3))


@pytest.mark.long
@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="torch 2.6 keeps no graphs of this backend")
def test_graphs_are_kept_on_disk(tmp_path, monkeypatch):
    """One backend's graphs are not the other's, which torch's cache would not tell apart by itself.

    Graphs with loops too, where torch can be told so; the body of a loop counts.
    """
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    y, found, while_loop = torch.arange(4.0), [], private.while_loop()

    def after_three_steps(rate):
        def body(left, y):
            return left - 1, y * rate

        return lambda y: while_loop(lambda left, y: left > 0, body, (torch.tensor(3), y.tanh()))[1]

    def scaled(rate):
        return lambda y: y.tanh() * rate

    function = after_three_steps if KEEPS_LOOPS else scaled
    for backend, rate in [(inductor, 0.5), (inductor, 0.5), (fast_inductor, 0.5), (inductor, 0.25)]:
        torch.compiler.reset()
        counters.clear()
        assert_close(torch.compile(function(rate), backend=backend)(y), function(rate)(y))
        found.append((counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"]))
    assert found == [(0, 1), (1, 0), (0, 1), (0, 1)]
