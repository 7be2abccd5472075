"""What compiled steps do otherwise than torch's own backend."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._higher_order_ops.while_loop import while_loop
from torch.testing import assert_close

from dise import Dopri5, Heun, Ralston, solve
from dise.integrate.compile.backend import addmm, by_feature, cat, inductor, mm, tanh
from dise.integrate.compile.cache import _to_be_checked
from dise.integrate.stepping.method import Method


def test_tanh_is_exact_to_some_units_in_the_last_place():
    tiny = 10.0 ** torch.linspace(-37, 1, 100_000, dtype=torch.float64)
    x = torch.cat([torch.linspace(-12, 12, 1_000_001, dtype=torch.float64), tiny, -tiny]).float()
    exact = torch.tanh(x.double())
    unit = torch.nextafter(exact.abs().float(), torch.tensor(torch.inf)).double() - exact.abs().float().double()
    value = tanh(x)
    assert ((value.double() - exact).abs() / unit).max() <= 6
    assert value.abs().max() <= 1


def test_tanh_of_what_is_not_a_number():
    value = tanh(torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0]))
    assert value[0].isnan()
    assert value[1:].tolist() == [1.0, -1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_tanh_of_other_dtypes_is_left_to_torch(dtype):
    assert tanh(torch.zeros(2, dtype=dtype)) is NotImplemented


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "k", "n"), [(5, 1, 7), (5, 3, 7), (5, 3, 2), (5, 9, 1), (5, 40, 3), (1, 40, 2)])
def test_products_with_few_columns(m, k, n, dtype):
    torch.manual_seed(0)
    a, b, c = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype), torch.randn(n, dtype=dtype)
    for right in (b, b.t().contiguous().t(), torch.randn(k, 2 * n, dtype=dtype)[:, ::2]):
        assert_close(mm(a, right), torch.mm(a, right))
        assert_close(addmm(c, a, right), torch.addmm(c, a, right))
        assert mm(a, right).is_contiguous()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(5, 4), torch.zeros(4, 4)),  # k and n are large
        (torch.zeros(5, 4096), torch.zeros(4096, 2)),  # sums are long
        (torch.zeros(8, 5).t(), torch.zeros(8, 2)),  # sums are across rows
        (torch.zeros(5, 0), torch.zeros(0, 3)),
        (torch.zeros(5, 2).bfloat16(), torch.zeros(2, 3).bfloat16()),
    ],
)
def test_other_products_are_left_to_torch(a, b):
    assert mm(a, b) is NotImplemented
    assert addmm(b[:1], a, b) is NotImplemented


def test_scaled_products_are_left_to_torch():
    a, b, c = torch.zeros(5, 2), torch.zeros(2, 3), torch.zeros(3)
    assert addmm(c, a, b, beta=0.5) is NotImplemented
    assert addmm(c, a, b, alpha=2) is NotImplemented


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("rows", "features", "hidden"), [(5, 3, 16), (1, 1, 16), (3, 6, 3), (40, 8, 16)])
def test_backend_computes_values_and_gradients(rows, features, hidden, dynamic):
    torch.manual_seed(0)
    torch.compiler.reset()  # or it counts as one more shape of the same function
    net = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, features, bias=False)).double()
    x = torch.randn(rows, features, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(net, backend=inductor, fullgraph=True, dynamic=dynamic)
    inputs = (x, *net.parameters())
    assert_close(compiled(x), net(x))
    assert_close(
        torch.autograd.grad(compiled(x).square().sum(), inputs), torch.autograd.grad(net(x).square().sum(), inputs)
    )


def test_backward_pass_keeps_few_activations():
    """Of a network called several times in a graph, it computes all again but those of the last call, its first."""
    rows, hidden = 32, 64
    net = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    @torch.compile(backend=inductor, fullgraph=True)
    def called_often(x):
        for _ in range(4):
            x = x + net(x)
        return x

    node = called_often(torch.randn(rows, 2, requires_grad=True)).grad_fn
    kept = [*node.saved_tensors, *getattr(node, "_tensors_no_vc_check", ())]  # torch's two lists of them
    assert kept
    assert sum(x.numel() >= rows * hidden for x in kept) <= 1


def test_backend_takes_options_of_torch():
    with pytest.raises(Exception, match="no_such_option"):
        torch.compile(torch.sin, backend=inductor, options={"no_such_option": True})(torch.ones(3))


@pytest.mark.parametrize("options", [True, {"backend": "inductor"}, {"mode": "default"}])
def test_ways_to_compile_agree(options):
    y0 = torch.linspace(0.5, 1.5, 6).reshape(3, 2)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        eager, compiled = (solve(lambda t, y: net(y), y0, 0.0, 1.0, Dopri5(), compile=c) for c in (False, options))
    assert_close(compiled.y, eager.y)
    assert compiled.nfe.tolist() == eager.nfe.tolist()


def test_tableau_is_not_guarded_but_told_apart():
    """Methods whose tableaus differ in their numbers alone have graphs of their own."""
    y0 = torch.linspace(0.5, 1.5, 6).reshape(3, 2)

    def f(t, y):
        return y.cos() * y

    with torch.no_grad():
        for method in (Heun(2), Ralston(2), Heun(2)):
            eager, compiled = (solve(f, y0, 0.0, 2.0, method, compile=c) for c in (False, True))
            assert_close(compiled.y, eager.y)


def test_guards_of_the_tableau_are_left_out():
    seen = []

    def backend(graph, inputs):
        return graph

    def count(guards):
        kept = _to_be_checked(guards)
        seen.append((sum(kept), len(kept)))
        return kept

    def first(method, x):
        return x * method.tableau.a[1][0]

    compiled = torch.compile(first, backend=backend, fullgraph=True, options={"guard_filter_fn": count})
    assert compiled(Method(Heun(2).tableau, None), torch.ones(2)).tolist() == [1.0, 1.0]
    ((kept, number),) = seen
    assert kept < number


@pytest.mark.parametrize(("options", "own"), [(True, True), ({"options": {}}, True), ({"backend": "eager"}, False)])
def test_backend_is_used_unless_another_is_named(options, own, monkeypatch):
    calls = []

    def backend(graph, inputs, *, options=None):
        calls.append(options)
        return graph

    monkeypatch.setattr("dise.integrate.compile.cache.inductor", backend)
    with torch.no_grad():
        solve(lambda t, y: -y, torch.ones(3, 2), 0.0, 1.0, Dopri5(), compile=options)
    assert bool(calls) == own


def test_backend_generates_its_own_tanh(monkeypatch):
    dtypes = []

    def spy(x):
        dtypes.append(x.dtype)
        return tanh(x)

    monkeypatch.setattr("dise.integrate.compile.backend.tanh", spy)
    x, anew = torch.linspace(-3, 3, 7), {"force_disable_caches": True}
    with torch.no_grad():
        compiled = torch.compile(lambda x: torch.tanh(x) + 0.25, backend=inductor, options=anew)
        assert_close(compiled(x), torch.tanh(x) + 0.25)
    assert torch.float32 in dtypes


def test_narrow_states_lie_feature_by_feature():
    x, wide = torch.randn(5, 2), torch.randn(5, 9)
    assert by_feature(x) is x  # with gradients
    with torch.no_grad():
        assert torch.equal(by_feature(x), x)
        assert by_feature(x).t().is_contiguous()
        assert by_feature(wide) is wide


def test_joined_columns_lie_feature_by_feature():
    x, y = torch.randn(5, 2), torch.randn(5, 1)
    joined = cat([x, y], 1)
    assert torch.equal(joined, torch.cat([x, y], 1))
    assert joined.t().is_contiguous()
    assert cat([x, y], -1).t().is_contiguous()


@pytest.mark.parametrize(
    ("tensors", "dim"),
    [
        ([torch.zeros(2, 3)] * 2, 0),
        ([torch.zeros(2, 5)] * 2, 1),
        ([torch.zeros(2, 3, 1)] * 2, 1),
        ([torch.zeros(3)], 0),
    ],
)
def test_other_joins_are_left_to_torch(tensors, dim):
    assert cat(tensors, dim) is NotImplemented


def test_graphs_and_loops_are_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    y, found = torch.arange(4.0), []

    def after_three_steps(rate, shift):
        shifts = torch.tensor([shift, 0.0, 0.0, 0.0])

        def body(left, y):
            return left - 1, y * rate + shifts

        return lambda y: while_loop(lambda left, y: left > 0, body, (torch.tensor(3), y.tanh()))[1]

    for rate, shift in [(0.5, 1.0), (0.5, 1.0), (0.25, 1.0), (0.5, 2.0)]:
        torch.compiler.reset()
        counters.clear()
        function = after_three_steps(rate, shift)
        assert_close(torch.compile(function, backend=inductor)(y), function(y))
        found.append((counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"]))
    assert found[:3] == [(0, 1), (1, 0), (0, 1)]
