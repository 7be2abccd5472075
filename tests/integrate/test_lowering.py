"""What compiled steps do otherwise than torch's own backend."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import Dopri5, Heun, Ralston, solve
from dise.integrate.compiled import _to_be_checked
from dise.integrate.loop import Method
from dise.integrate.lowering import inductor, tanh


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


def test_backend_computes_values_and_gradients():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.randn(5, 3, requires_grad=True)
    compiled = torch.compile(net, backend=inductor, fullgraph=True)
    inputs = (x, *net.parameters())
    assert_close(compiled(x), net(x))
    assert_close(
        torch.autograd.grad(compiled(x).square().sum(), inputs), torch.autograd.grad(net(x).square().sum(), inputs)
    )


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

    monkeypatch.setattr("dise.integrate.compiled.inductor", backend)
    with torch.no_grad():
        solve(lambda t, y: -y, torch.ones(3, 2), 0.0, 1.0, Dopri5(), compile=options)
    assert bool(calls) == own


def test_backend_generates_its_own_tanh(monkeypatch):
    dtypes = []

    def spy(x):
        dtypes.append(x.dtype)
        return tanh(x)

    monkeypatch.setattr("dise.integrate.lowering.tanh", spy)
    x = torch.linspace(-3, 3, 7)
    with torch.no_grad():
        assert_close(torch.compile(lambda x: torch.tanh(x) + 0.25, backend=inductor)(x), torch.tanh(x) + 0.25)
    assert torch.float32 in dtypes
