"""What `odeint_adjoint` differentiates, and arguments that torchdiffeq and dise coerce."""

import warnings

import pytest
import torch
import torchdiffeq
from torch import nn
from torch.autograd import grad
from torch.testing import assert_close

import dise.torchdiffeq
from dise.torchdiffeq import odeint, odeint_adjoint
from dise.torchdiffeq.methods import ADAPTIVE, FIXED

T = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
MODULES = (dise.torchdiffeq, torchdiffeq)


class Pair(nn.Module):
    """A tuple of states: y' = tanh(W y), z' = −z mean(y²)."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3, 3, generator=draw, dtype=torch.float64))
        self.calls = 0

    def forward(self, t, state):
        y, z = state
        self.calls += 1
        return torch.tanh(y @ self.weight) * torch.cos(t), -z * y.square().mean(1)


@pytest.fixture
def pair(starts):
    return Pair(), (starts(4, 3).requires_grad_(), torch.ones(4, dtype=torch.float64))


@pytest.mark.host
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "adaptive_heun", "fehlberg2", *FIXED])
def test_it_calls_func_as_often_as_torchdiffeq(method, pair):
    """Up to a step per interval: there the last step of an interval is beyond its end."""
    f, y0 = pair
    options = {"step_size": 0.1} if method in FIXED else {}
    calls, gradients = [], []
    for module in MODULES:
        f.calls = 0
        y, z = module.odeint_adjoint(f, y0, T, method=method, rtol=1e-5, atol=1e-5, options=options)
        before, wanted = f.calls, (y0[0], *f.parameters())
        gradients.append(grad(y[-1].sum() + z.sum(), wanted))
        calls.append((before, f.calls - before))
    bound = 1e-12 if method in FIXED else 3e-3 if method in ("bosh3", "fehlberg2", "adaptive_heun") else 1e-4
    assert_close(*gradients, rtol=bound, atol=bound)
    for ours, theirs in zip(*calls, strict=True):
        assert ours == theirs if method in FIXED else ours <= 1.1 * theirs


@pytest.mark.parametrize("atol", [(1e-7, 1e-7), [1e-7, 1e-3], (torch.full((3,), 1e-7), 1e-4)])
def test_tolerances_of_a_tuple_serve_the_backward_solve(atol, pair):
    """Of y and of its adjoint; torchdiffeq refuses them there (stevenygd/PointFlow and others pass them)."""
    f, y0 = pair
    wanted = (y0[0], *f.parameters())
    ours = odeint_adjoint(f, y0, T, rtol=[1e-7, 1e-7], atol=atol)
    exact = odeint(f, y0, T, rtol=1e-10, atol=1e-10)
    assert_close(grad(ours[0].sum(), wanted), grad(exact[0].sum(), wanted), rtol=1e-5, atol=1e-5)


def test_tolerances_of_all_parts_of_the_backward_solve(pair):
    f, y0 = pair
    tolerances = {"adjoint_rtol": (1e-7,) * 4, "adjoint_atol": torch.full((4,), 1e-7)}  # t, y, adjoint, weight
    ours, theirs = (
        grad(module.odeint_adjoint(f, y0, T, rtol=1e-7, atol=1e-7, **tolerances)[0].sum(), f.weight)
        for module in MODULES
    )
    assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [None, {}, {"norm": "seminorm"}], ids=str)
def test_it_takes_torchdiffeqs_backward_steps(options, tanh_field, starts):
    """The parameters' integrals count in the error test, but not in a seminorm.

    So does the gradient of t: there always, here if it is wanted.
    """
    f, y0, steps = tanh_field(3, scale=1.0), starts(4, 3).requires_grad_(), []
    t = T[[0, -1]].requires_grad_()
    for module in MODULES:
        lengths = []
        f.callback_accept_step_adjoint = lambda t, state, dt, lengths=lengths: lengths.append(dt.item())
        y = module.odeint_adjoint(f, y0, t, rtol=1e-5, atol=1e-5, adjoint_options=options)
        y[-1].cos().sum().backward()
        steps.append(lengths)
    assert len(steps[0]) == len(steps[1])
    # the forward solves end differently, and with them where the backward ones start; the last step is cut here
    assert_close(torch.tensor(steps[0][:-1]), torch.tensor(steps[1][:-1]), rtol=1e-2, atol=0)


def test_complex_parameters_of_a_real_state():
    weight = torch.tensor([0.3 + 0.4j, -0.2 + 1.0j], dtype=torch.complex128, requires_grad=True)
    f = lambda t, y: -y * (weight * torch.exp(1j * t)).real  # noqa: E731
    y0 = torch.ones(2, dtype=torch.float64)
    ours, direct = (
        grad(solver(f, y0, T, rtol=1e-9, atol=1e-9, **more)[-1].sum(), weight)
        for solver, more in ((odeint_adjoint, {"adjoint_params": (weight,)}), (odeint, {}))
    )
    assert_close(ours, direct, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_of_another_dtype(dtype):
    weight = torch.tensor([0.3, -0.2], dtype=dtype, requires_grad=True)
    y0 = torch.ones(2, dtype=torch.float64)
    y = odeint_adjoint(lambda t, y: -y * weight, y0, T, adjoint_params=(weight,), rtol=1e-6, atol=1e-6)
    (of_weight,) = grad(y[-1].sum(), weight)
    assert of_weight.dtype == dtype
    assert_close(of_weight.double(), -torch.exp(-weight.detach().double()), rtol=1e-2, atol=1e-3)


def test_a_tensor_that_func_uses_later_is_named():
    """Of those it uses at the start it gets the gradients; torchdiffeq leaves both out without a word."""

    class Late(nn.Module):
        def forward(self, t, y):
            return -y * (early if t < 0.5 else late)

    early, late = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.0, 2.0))
    y0 = torch.ones(1, dtype=torch.float64)
    y = odeint_adjoint(Late(), y0, torch.tensor([0.0, 0.4]).double(), rtol=1e-9, atol=1e-9)
    assert grad(y[-1].sum(), early)[0].item() == pytest.approx(-0.4 * torch.tensor(-0.4).exp().item(), rel=1e-6)
    y = odeint_adjoint(Late(), y0, T, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"adjoint_params: func uses a tensor of shape \(\) that requires a gradient"):
        y[-1].sum().backward()


def test_second_derivatives_are_refused(pair):
    f, y0 = pair
    for value in (torch.square, torch.abs):  # the gradient of a sum of absolute values requires none itself
        y = odeint_adjoint(f, y0, T, rtol=1e-4, atol=1e-4)[0]
        (of_y0,) = grad(value(y).sum(), y0[0], create_graph=True)
        with pytest.raises(RuntimeError, match="odeint_adjoint has no second derivatives; use"):
            (y.sum() + of_y0.square().sum()).backward()


def test_transforms_are_refused(pair):
    y0 = pair[1][0]
    with pytest.raises(ValueError, match=r"torch.func's transforms cannot differentiate") as error:
        torch.func.grad(lambda y: odeint_adjoint(lambda t, y: -y, y, T, adjoint_params=())[-1].sum())(y0)
    assert "Instead of odeint_adjoint use" in error.value.__notes__[0]


def test_a_norm_does_not_see_frozen_parameters(pair):
    f, y0 = pair
    f.frozen = nn.Parameter(torch.ones(2).double(), requires_grad=False)
    seen = set()

    def norm(parts):
        seen.add(len(parts))
        return max(part.abs().max() for part in parts)

    for module, message in zip(MODULES, ("does not see those", "will be excluded"), strict=True):
        with pytest.warns(UserWarning, match=message):
            module.odeint_adjoint(f, y0, T, rtol=1e-4, atol=1e-4, adjoint_options={"norm": norm})[0].sum().backward()
    assert seen == {1 + 2 + 2 + 1}


def test_without_gradients_it_is_odeint(pair):
    f, y0 = pair
    with torch.no_grad():
        y, z = odeint_adjoint(f, y0, T)
    assert not y.requires_grad
    assert_close((y, z), odeint(f, y0, T))


# ---- coerced arguments


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED, "implicit_adams"])
def test_a_tuples_tensors_may_differ_in_dtype(method):
    """As there func gets them all in the widest one."""
    seen = set()

    def f(t, y):
        seen.add((t.dtype, *(part.dtype for part in y)))
        return -y[0], -2 * y[1]

    y = odeint(f, (torch.ones(3), torch.ones(2).double()), T.float(), method=method, rtol=1e-4, atol=1e-4)
    assert seen == {(torch.float64,) * 3}
    assert {part.dtype for part in y} == {torch.float64}


@pytest.mark.parametrize("f", [
    lambda t, y: torch.ones(()).double(), lambda t, y: torch.ones(3).double(), lambda t, y: torch.cos(t),
], ids=["number", "row", "of t"])  # fmt: skip
def test_a_value_of_fewer_dimensions_is_broadcast(f):
    ours, theirs = (module.odeint(f, torch.zeros(2, 3).double(), T, method="rk4") for module in MODULES)
    assert_close(ours, theirs)
    with pytest.raises(ValueError, match="f: expected dy/dt of shape"):
        odeint(lambda t, y: y[:1], torch.zeros(2, 3).double(), T)


@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
def test_a_tuples_values_may_have_other_dimensions_of_one(interface):
    y0 = (torch.ones(4, 2).double().requires_grad_(), torch.zeros(4, 1).double())
    f = lambda t, y: [-y[0], y[0].sum(1)]  # noqa: E731
    more = {"adjoint_params": ()} if interface == "odeint_adjoint" else {}
    values = []
    for module in MODULES:
        y, z = getattr(module, interface)(f, y0, T, **more)
        values.append((y, z, grad(z[-1].sum() + y.sum(), y0[0])[0]))
    assert_close(*values, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="f: expected dy/dt of shape"):
        odeint(lambda t, y: (y[0].T, y[1]), y0, T)


def test_no_warnings_of_the_backward_solve(pair):
    f, y0 = pair
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        odeint_adjoint(f, y0, T, method="dopri5", options={"max_step": 0.5})[0].sum().backward()
    assert not caught
