"""Adams methods and the option perturb: side by side with torchdiffeq, and by order."""

import math
import warnings

import pytest
import torch
import torchdiffeq
from torch import nn
from torch.autograd import grad, gradcheck
from torch.testing import assert_close

import dise.torchdiffeq
from dise import SolveError
from dise.torchdiffeq import odeint, odeint_adjoint, odeint_dense, odeint_event
from dise.torchdiffeq.methods import ADAMS, FIXED

T = torch.linspace(0, 2, 26, dtype=torch.float64)
LOOSE = {"rtol": 1e-6, "atol": 1e-6}  # the corrector converges
adams = pytest.mark.parametrize("method", ADAMS)
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
both = pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])


def pendulum(t, y):
    return torch.stack([y[1], -torch.sin(y[0]) - 0.2 * y[1] + torch.cos(2 * t)])


@pytest.fixture
def start():
    return torch.tensor([0.5, -1.0], dtype=torch.float64)


def each(function):
    return [function(module) for module in (dise.torchdiffeq, torchdiffeq)]


# ---- side by side


@adams
@directions
@pytest.mark.parametrize("options", [
    {}, {"step_size": 0.03}, {"step_size": 0.03, "interp": "cubic"}, {"max_order": 4}, {"max_order": 7, "max_iters": 2},
    {"step_size": 0.03, "perturb": True},
    {"grid_constructor": lambda f, y0, t: torch.cat([t[:1], (t[1:] + t[:-1]) / 2, t[-1:]])},
], ids=["t", "step_size", "cubic", "order 4", "order 7", "perturb", "grid"])  # fmt: skip
def test_adams_methods_are_torchdiffeqs_to_rounding(method, reverse, options, start, record):
    """The formulas are those for equal steps, whatever the grid, as there."""
    if method == "explicit_adams":
        options = {"max_order": 6, **options}
    t = T.flip(0) if reverse else T
    f, g = record(pendulum), record(pendulum)
    ours = odeint(f, start, t, method=method, options=dict(options), **LOOSE)
    theirs = torchdiffeq.odeint(g, start, t, method=method, options=dict(options), **LOOSE)
    assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    assert f.calls == g.calls or options.get("interp") == "cubic"


def test_the_highest_order(start):
    """Of order 11 Adams–Bashforth amplifies rounding errors soon: it is stable for tiny steps only."""
    for t in (torch.linspace(0, 0.5, 20).double(), torch.linspace(0.5, 0, 20).double()):
        ours, theirs = each(lambda module, t=t: module.odeint(pendulum, start, t, method="explicit_adams"))
        assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@adams
def test_a_corrector_that_does_not_converge_warns_as_there(method, start):
    """It goes on with the last iterate, and its order does not grow."""

    def run(module):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            y = module.odeint(pendulum, start, T, method=method, rtol=1e-12, atol=1e-14, options={"max_iters": 2})
        return y[:8], {"did not converge" in str(warning.message) for warning in caught}

    (ours, warned), (theirs, warned_there) = each(run)
    assert warned == warned_there == ({True} if ADAMS[method].implicit else set())
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("max_order", [1, 2, 3])
def test_below_order_4_it_is_the_3_8_rule(max_order, start):
    call = {"method": "implicit_adams", "options": {"max_order": max_order}}
    with pytest.warns(UserWarning, match=f"max_order is {max_order}, below 4"):
        y = odeint(pendulum, start, T, **call)
    assert_close(y, odeint(pendulum, start, T, method="rk4"), rtol=1e-13, atol=1e-13)
    if max_order > 1:  # there 1 is an IndexError
        with pytest.warns(UserWarning, match="max_order is below 4"):
            assert_close(y, torchdiffeq.odeint(pendulum, start, T, **call), rtol=1e-13, atol=1e-13)


@adams
@directions
def test_events_are_torchdiffeqs(method, reverse, start):
    event, t0 = lambda t, y: y[0] - 0.1, torch.tensor(0.3, dtype=torch.float64)
    call = {"method": method, "options": {"step_size": 0.05, "interp": "cubic"}, "reverse_time": reverse, **LOOSE}
    call["atol"] = 1e-12  # torchdiffeq bisects up to atol
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = each(lambda module: module.odeint_event(pendulum, start, t0, event_fn=event, **call))
    assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@adams
@both
def test_gradients_are_torchdiffeqs(method, interface, tanh_field, starts):
    f, y0 = tanh_field(3, scale=0.7), starts(4, 3).requires_grad_()
    t = T[:12].clone().requires_grad_()
    call = {"method": method, "options": {"step_size": 0.02, "max_order": 6}, **LOOSE}
    # there the times of points on the grid get no gradient by odeint
    wanted = (y0, *f.parameters()) + ((t,) if interface == "odeint_adjoint" else ())
    ours, theirs = each(lambda module: grad(getattr(module, interface)(f, y0, t, **call).cos().sum(), wanted))
    assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@adams
def test_tuples_tolerances_and_callbacks(method, start):
    """A tuple's tensors take the steps that they take as one tensor."""
    times, y0 = [], (start, torch.ones(2, 3).double())

    class Field(nn.Module):
        def forward(self, t, y):
            return pendulum(t, y[0]), -y[1]

        def callback_step(self, t, y, dt):
            times.append((t.item(), dt.item(), [part.shape for part in y]))

    options = {"step_size": 0.25}
    a, b = odeint(Field(), y0, T[[0, -1]], method=method, options=options, rtol=(1e-6, 1e-3), atol=1e-6)
    assert times == [(0.25 * i, 0.25, [(2,), (2, 3)]) for i in range(8)]
    flat = lambda t, y: torch.cat([pendulum(t, y[:2]), -y[2:]])  # noqa: E731
    whole = odeint(flat, torch.cat([start, torch.ones(6).double()]), T[[0, -1]], method=method, options=options,
                   rtol=torch.tensor([1e-6] * 2 + [1e-3] * 6), atol=1e-6)  # fmt: skip
    assert_close(torch.cat([a, b.reshape(2, -1)], 1), whole, rtol=1e-13, atol=1e-13)


# ---- closed forms


@pytest.mark.parametrize(("method", "order"), [("explicit_adams", 3), ("implicit_adams", 4)])
def test_they_have_their_order(method, order):
    """With three values of f: y' = −y cos t, twice as many steps. The first steps are of order 4."""
    exact, y0 = math.exp(-math.sin(2)), torch.ones(1, dtype=torch.float64)
    errors = [
        abs(odeint(lambda t, y: -y * torch.cos(t), y0, torch.linspace(0, 2, n + 1).double(), method=method,
                   rtol=1e-10, atol=1e-13, options={"max_order": 4, "max_iters": 50})[-1].item() - exact)
        for n in (40, 80)
    ]  # fmt: skip
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4)


@pytest.mark.host
@adams
@both
def test_gradcheck(method, interface, start):
    more = {"adjoint_params": ()} if interface == "odeint_adjoint" else {}
    options = {"step_size": 0.023, "max_order": 6}  # no step ends at a time of t, which moves

    def function(y0, t):
        return getattr(dise.torchdiffeq, interface)(pendulum, y0, t, method=method, options=options, **LOOSE, **more)

    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, (start.requires_grad_(), t), eps=1e-5, atol=1e-2, rtol=1e-2)


@adams
@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_an_events_time_and_its_gradient(method, interface):
    """A ball from 10 m at rest: t* = √(2h/g), and dt*/dh = 1/√(2 g h)."""
    y0 = torch.tensor([10.0, 0.0], dtype=torch.float64, requires_grad=True)
    more = {"adjoint_params": ()} if interface is odeint_adjoint else {}
    fall = lambda t, y: torch.stack([y[1], -9.81 + 0 * y[1]])  # noqa: E731
    t, y = odeint_event(fall, y0, torch.tensor(0.0).double(), event_fn=lambda t, y: y[0], odeint_interface=interface,
                        method=method, options={"step_size": 0.05, "interp": "cubic"}, **LOOSE, **more)  # fmt: skip
    assert t.item() == pytest.approx(math.sqrt(20 / 9.81), rel=1e-6)
    assert y[1, 0].item() == pytest.approx(0, abs=1e-6)
    assert grad(t, y0)[0][0].item() == pytest.approx(1 / math.sqrt(2 * 9.81 * 10), rel=1e-5)


@adams
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex128])
def test_dtypes(method, dtype):
    seen = set()

    def f(t, y):
        seen.add((t.dtype, y.dtype))
        return -y

    call = {"method": method, "rtol": 1e-3, "atol": 1e-3, "options": {"max_order": 6}}
    y = odeint(f, torch.ones(2, 3, dtype=dtype), torch.linspace(0, 1, 21), **call)
    assert seen == {(dtype.to_real(), dtype)}
    assert y.dtype == dtype
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert_close(y[-1], torch.full((2, 3), math.exp(-1), dtype=dtype), rtol=tolerance, atol=tolerance)


def test_failures_and_dense_output(start):
    with pytest.raises(SolveError, match="NON_FINITE"):
        odeint(lambda t, y: torch.where(t > 1, torch.nan, -y), start, T, method="explicit_adams")
    at = odeint_dense(pendulum, start, 0.0, 2.0, method="implicit_adams", options={"step_size": 0.01}, **LOOSE)
    exact = odeint(pendulum, start, torch.tensor([0.0, 0.3, 1.7]).double(), rtol=1e-10, atol=1e-10)
    assert_close(at(torch.tensor([0.3, 1.7]).double()), exact[1:], rtol=1e-6, atol=1e-6)


# ---- perturb


@pytest.mark.parametrize("method", [*FIXED, *ADAMS])
@pytest.mark.parametrize("interp", ["linear", "cubic"])
@directions
def test_perturb_is_torchdiffeqs(method, interp, reverse, start, record):
    """f jumps on the grid, and each step sees its own side."""
    f = lambda t, y: torch.where(t < 0.5, 1.0, 2.0) * pendulum(t, y)  # noqa: E731
    t = torch.tensor([0.0, 0.35, 1.0], dtype=torch.float64)
    t = t.flip(0) if reverse else t
    options, (ours, theirs) = {"step_size": 0.1, "perturb": True, "interp": interp}, (record(f), record(f))
    y = odeint(ours, start, t, method=method, options=options, **LOOSE)
    assert_close(
        y, torchdiffeq.odeint(theirs, start, t, method=method, options=options, **LOOSE), rtol=1e-11, atol=1e-11
    )
    if interp == "linear":
        assert_close(torch.cat(ours.times), torch.cat(theirs.times), rtol=0, atol=1e-15)
        assert not {0.0, 1.0, 0.5} & set(torch.cat(ours.times).tolist())


def test_perturb_makes_steps_up_to_a_jump_exact():
    """y' = 1 before t = 1/2, 3 from there on; without it the step to the jump sees both sides."""
    f = lambda t, y: torch.where(t < 0.5, 1.0, 3.0) + 0 * y  # noqa: E731
    call = {"method": "rk4", "options": {"step_size": 0.25, "perturb": True}}
    for dtype in (torch.float32, torch.float64):
        y = odeint(f, torch.zeros(1, dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype), **call)
        assert_close(y[1], torch.full((1,), 2.0, dtype=dtype))
