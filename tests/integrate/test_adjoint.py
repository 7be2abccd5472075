"""Gradients by the adjoint equation: against finite differences, direct gradients, closed forms and torchdiffeq."""

import math

import pytest
import torch
import torchdiffeq
from torch import nn
from torch.autograd import grad, gradcheck
from torch.testing import assert_close

from dise import RK4, Backsolve, Dopri5, Dynamic, Euler, Event, SolveError, max_norm, solve

TIGHT = Dopri5(rtol=1e-10, atol=1e-10)
FINE = RK4(200)
integrators = pytest.mark.parametrize("integrator", [TIGHT, FINE], ids=str)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def field(t, y, weight, gain, shift):
    """Nonlinear in all that it depends on; `gain` is an args, `shift` a sample_args."""
    return torch.tanh(y @ weight + gain * t) + shift * torch.sin(2 * t + y)


@pytest.fixture
def inputs():
    """y0, t0, t1, save times, weight, gain, shift of three samples: forwards, backwards, and of no length."""
    draw = torch.Generator().manual_seed(1)
    y0, shift = (torch.randn(3, 2, generator=draw, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(2, 2, generator=draw, dtype=torch.float64)
    t0, t1 = rows(0.1, 1.2, 0.4), rows(1.0, 0.3, 0.4)
    times = t0[:, None] + (t1 - t0)[:, None] * torch.rand(3, 4, generator=draw, dtype=torch.float64)
    return tuple(x.requires_grad_() for x in (y0, t0, t1, times, weight, rows(0.7)[0], shift))


def loss(integrator, gradient, y0, t0, t1, times, weight, gain, shift, *, mask=None, drop_finished=True):
    """Weighs all states differently, so that none can hide."""
    options = {"args": (weight, gain), "sample_args": (shift,), "gradient": gradient, "drop_finished": drop_finished}
    s = solve(field, y0, t0, t1, integrator, save_at=times, save_mask=mask, **options)
    scale = torch.arange(1.0, 1 + s.saved.numel(), dtype=y0.dtype).view_as(s.saved).cos()
    return (scale * s.saved).sum() + s.y.square().sum()


# ---- against direct gradients and finite differences


@integrators
@pytest.mark.parametrize("drop_finished", [True, False])
def test_gradients_of_everything_are_the_direct_ones(inputs, integrator, drop_finished):
    """States, times, save times, args and sample_args; three samples with their own spans, one of no length."""
    ours, direct = (
        grad(loss(integrator, gradient, *inputs, drop_finished=drop_finished), inputs)
        for gradient in ("backsolve", "direct")
    )
    # of a span of no length, neither end may be moved alone without giving it one
    assert_close(ours[0], direct[0], rtol=1e-7, atol=1e-7)
    for mine, theirs in zip(ours[3:], direct[3:], strict=True):
        assert_close(mine[:2] if mine.shape == (3, 4) else mine, theirs[:2] if mine.shape == (3, 4) else theirs,
                     rtol=1e-5, atol=1e-5)  # fmt: skip
    for mine, theirs in zip(ours[1:3], direct[1:3], strict=True):
        assert_close(mine[:2], theirs[:2], rtol=1e-6, atol=1e-6)


def test_gradcheck(inputs):
    moving = [x[:2].detach().requires_grad_() for x in inputs[:4]] + list(inputs[4:6]) + [inputs[6][:2].detach()]
    assert gradcheck(lambda *x: loss(TIGHT, "backsolve", *x), moving, eps=1e-5, atol=1e-6, rtol=1e-5)


def test_masked_save_points_have_none(inputs):
    mask = torch.tensor([[True, False, True, True], [False, False, True, True], [True] * 4])
    padded = torch.where(mask, inputs[3], torch.nan).detach()
    parts = (*inputs[:3], padded.requires_grad_(), *inputs[4:])
    ours, direct = (
        grad(loss(TIGHT, gradient, *parts, mask=mask), (inputs[0], *inputs[4:])) for gradient in ("backsolve", "direct")
    )
    assert_close(ours, direct, rtol=1e-7, atol=1e-7)
    (of_times,) = grad(loss(TIGHT, "backsolve", *parts, mask=mask), parts[3])
    assert (of_times[~mask] == 0).all()


@pytest.mark.parametrize("steps", [1, 4])
def test_a_linear_field_in_closed_form(steps):
    """y' = λy: dy(T)/dy0 = e^(λT), dy(T)/dλ = T y0 e^(λT), dy(T)/dT = λ y(T) = −dy(T)/dt0."""
    y0, rate = rows([1.5], [-0.5]).requires_grad_(), rows([0.3], [-0.8]).requires_grad_()
    t0, t1 = rows(0.0, 1.0).requires_grad_(), rows(2.0, 0.0).requires_grad_()
    times = torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else None
    options = {} if times is None else {"save_at": t0.detach()[:, None] + times * (t1 - t0).detach()[:, None]}
    f = lambda t, y, rate: rate * y  # noqa: E731
    y = solve(f, y0, t0, t1, TIGHT, sample_args=(rate,), gradient="backsolve", **options).y
    of_y0, of_rate, of_t0, of_t1 = grad(y.sum(), (y0, rate, t0, t1))
    span = (t1 - t0).detach()[:, None]
    growth = (rate * span).exp().detach()
    assert_close(of_y0, growth, rtol=1e-8, atol=1e-8)
    assert_close(of_rate, span * y0.detach() * growth, rtol=1e-8, atol=1e-8)
    assert_close(of_t1, (rate * y0 * growth).flatten().detach(), rtol=1e-8, atol=1e-8)
    assert_close(of_t0, -(rate * y0 * growth).flatten().detach(), rtol=1e-8, atol=1e-8)


# ---- modules, tuples, one system


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("save_at", [None, [0.0, 0.4, 1.0, 1.5]])
def test_parameters_of_a_module(tanh_field, starts, batched, save_at):
    f, y0 = tanh_field(3, scale=1.0), starts(4, 3).requires_grad_()

    def gradients(gradient):
        s = solve(f, y0, 0.0, 1.5, TIGHT, batched=batched, save_at=save_at, gradient=gradient)
        total = s.y.sin().sum() + (0 if save_at is None else s.saved.square().mean())
        return grad(total, (y0, *f.parameters()))

    assert_close(gradients("backsolve"), gradients("direct"), rtol=1e-6, atol=1e-7)


def test_one_system_is_torchdiffeqs_adjoint(tanh_field, starts):
    f, y0, times = tanh_field(3, scale=1.0), starts(4, 3).requires_grad_(), torch.linspace(0, 1.5, 4).double()
    times.requires_grad_()
    theirs = torchdiffeq.odeint_adjoint(f, y0, times, rtol=1e-9, atol=1e-9, method="dopri5")
    options = {"batched": False, "save_at": times, "gradient": "backsolve"}
    ours = solve(f, y0, times[0], times[-1], Dopri5(rtol=1e-9, atol=1e-9), **options).saved
    assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    wanted = (y0, times, *f.parameters())
    assert_close(grad(ours.cos().sum(), wanted), grad(theirs.cos().sum(), wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batched", [True, False])
def test_tuple_states(batched):
    a, b = (torch.full((2, n), 0.3 * n, dtype=torch.float64, requires_grad=True) for n in (1, 3))
    f = lambda t, y: (y[1].sum(1, keepdim=True) * y[0], torch.cos(y[1] * t))  # noqa: E731
    ours, direct = (
        solve(f, (a, b), 0.1, 0.5, TIGHT, batched=batched, gradient=gradient).y for gradient in ("backsolve", "direct")
    )
    assert_close(ours, direct, rtol=0, atol=0)
    assert_close(
        grad(ours[0].sum() + ours[1].sin().sum(), (a, b)),
        grad(direct[0].sum() + direct[1].sin().sum(), (a, b)),
        rtol=1e-8,
        atol=1e-8,
    )


def test_each_sample_is_on_its_own(inputs):
    together = grad(loss(TIGHT, "backsolve", *inputs), (inputs[0], inputs[6]))
    y0, t0, t1, times, weight, gain, shift = (x.detach() for x in inputs)
    for i in range(3):
        row = slice(i, i + 1)
        alone = [x[row].clone().requires_grad_() for x in (y0, t0, t1, times)] + [weight, gain]
        shift_i = shift[row].clone().requires_grad_()
        s = solve(field, *alone[:3], TIGHT, args=(weight, gain), sample_args=(shift_i,), save_at=alone[3],
                  gradient="backsolve")  # fmt: skip
        scale = torch.arange(1.0, 25, dtype=torch.float64).view(3, 4, 2).cos()[row]
        one = grad((scale * s.saved).sum() + s.y.square().sum(), (alone[0], shift_i))
        assert_close(one, tuple(x[row] for x in together), rtol=1e-10, atol=1e-10)


def test_memory_of_the_forward_solve_is_that_of_its_ends(tanh_field, starts):
    """What autograd saves does not depend on the number of steps."""

    def saved(steps):
        count = 0

        def pack(x):
            nonlocal count
            count += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            solve(tanh_field(3), starts(4, 3), 0.0, 1.0, RK4(steps), gradient="backsolve")
        return count

    assert saved(2) == saved(50)


def test_the_forward_values_and_counts_are_the_direct_ones(tanh_field, starts):
    f, y0 = tanh_field(3), starts(4, 3)
    ours, direct = (solve(f, y0, 0.0, 1.0, Dopri5(), gradient=gradient) for gradient in ("backsolve", "direct"))
    for name in ("y", "t", "nfe", "n_steps", "n_accepted", "error", "status"):
        assert torch.equal(getattr(ours, name), getattr(direct, name)), name
    assert ours.calls == direct.calls


# ---- states of other kinds, norms and tolerances


@pytest.mark.parametrize("batched", [True, False])
def test_complex_dicts(batched):
    """y' = iωy beside a driven w: gradients in ω, y0 and the times are the direct ones."""
    y0 = {"y": torch.tensor([[1 + 2j], [-0.5j]], dtype=torch.complex128), "w": torch.ones(2, 3, dtype=torch.complex128)}
    rate, t1 = rows(1.7)[0].requires_grad_(), rows(0.9)[0].requires_grad_()
    for part in y0.values():
        part.requires_grad_()

    def f(t, y, rate):
        return {"y": 1j * rate * y["y"], "w": y["y"].abs() * torch.sin(t) * y["w"].conj()}

    def gradients(gradient):
        options = {"args": (rate,), "batched": batched, "save_at": torch.stack([0.5 * t1, t1]), "gradient": gradient}
        s = solve(f, y0, 0.1, t1, TIGHT, **options)
        total = s.y["y"].real.sum() + (s.saved["w"] ** 2).imag.sum() + s.saved["y"].abs().sum()
        return grad(total, (*y0.values(), rate, t1))

    assert_close(gradients("backsolve"), gradients("direct"), rtol=1e-6, atol=1e-7)


def test_half_precision():
    y0 = torch.tensor([[0.5, -1.0]], dtype=torch.bfloat16, requires_grad=True)
    y = solve(lambda t, y: -y, y0, 0.0, 1.0, Dopri5(), gradient="backsolve").y
    assert y.dtype == grad(y.sum(), y0, retain_graph=True)[0].dtype == torch.bfloat16
    assert grad(y.sum(), y0)[0].tolist() == [[pytest.approx(math.exp(-1), rel=1e-2)] * 2]


@pytest.mark.parametrize("atol", [{"a": [1e-9, 1e-8], "b": 1e-9}, 1e-9])
def test_tolerances_and_norms_of_the_state_serve_its_adjoint(atol):
    """The norm is asked of the state and of the adjoint, each in the state's structure; the larger value counts."""
    seen = []

    def norm(error):
        assert {name: part.shape[1:] for name, part in error.items()} == {"b": (), "a": (2,)}
        seen.append(len(error["a"]))
        return max_norm(error)

    y0 = {"b": rows(0.3, 0.7, -1.0).requires_grad_(), "a": rows([1.0, 2.0], [0.1, -0.3], [2.0, 2.0]).requires_grad_()}
    f = lambda t, y: {"a": torch.sin(y["a"]) * y["b"][:, None], "b": -y["b"] * torch.cos(t[:])}  # noqa: E731
    integrator = Dopri5(rtol=1e-8, atol=atol, norm=norm)
    ours, direct = (
        grad(solve(f, y0, 0.0, 1.0, integrator, gradient=gradient).y["a"].sum(), tuple(y0.values()))
        for gradient in ("backsolve", "direct")
    )
    assert set(seen) >= {3}
    assert_close(ours, direct, rtol=1e-6, atol=1e-7)


# ---- what is differentiated


def test_tensors_that_f_only_closes_over_are_found():
    weight = rows([0.5, 0.1], [0.2, -0.3]).requires_grad_()
    f, y0 = lambda t, y: torch.tanh(y @ weight), rows([1.0, 2.0]).requires_grad_()
    direct = grad(solve(f, y0, 0.0, 1.0, TIGHT).y.sum(), (y0, weight))
    for gradient in ("backsolve", Backsolve(params=[weight])):
        y = solve(f, y0, 0.0, 1.0, TIGHT, gradient=gradient).y
        assert_close(grad(y.sum(), (y0, weight)), direct, rtol=1e-8, atol=1e-8)


def test_tensors_that_f_uses_later_are_named():
    weight, early = rows([0.5, 0.1], [0.2, -0.3]).requires_grad_(), rows(0.7)[0].requires_grad_()
    f, y0 = lambda t, y: torch.where(t < 0.3, early * y, y) if t.max() < 0.3 else y @ weight, rows([1.0, 2.0])
    y = solve(f, y0, 0.0, 1.0, Euler(10), gradient="backsolve").y
    with pytest.raises(ValueError, match=r"gradient: f uses a tensor of shape \(2, 2\) .*params="):
        y.sum().backward()
    named = Backsolve(params=[weight, early], integrator=RK4(100))
    ours = grad(solve(f, y0, 0.0, 1.0, RK4(100), gradient=named).y.sum(), (weight, early))
    assert_close(ours, grad(solve(f, y0, 0.0, 1.0, RK4(100)).y.sum(), (weight, early)), rtol=1e-2, atol=1e-2)


def test_a_tensor_calculated_outside_may_be_a_parameter():
    """As a hypernetwork makes it: named itself, or by the leaf it comes from."""
    leaf = rows([0.5, 0.1], [0.2, -0.3]).requires_grad_()
    weight = leaf @ leaf
    f = lambda t, y: torch.tanh(y @ weight)  # noqa: E731
    expected = grad(solve(f, rows([1.0, 2.0]), 0.0, 1.0, TIGHT).y.sum(), leaf, retain_graph=True)
    for params in ([weight], [leaf], weight):
        y = solve(f, rows([1.0, 2.0]), 0.0, 1.0, TIGHT, gradient=Backsolve(params=params)).y
        assert_close(grad(y.sum(), leaf, retain_graph=True), expected, rtol=1e-8, atol=1e-8)


def test_a_field_of_nothing_has_a_gradient_in_y0():
    y0 = rows([1.0, 2.0]).requires_grad_()
    y = solve(lambda t, y: torch.ones_like(y), y0, 0.0, 1.0, RK4(2), gradient="backsolve").y
    assert grad(y.sum(), y0)[0].tolist() == [[1.0, 1.0]]


def test_unused_parameters_have_zero():
    used, unused = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
    f = nn.ModuleList([used, unused])
    f.forward = lambda t, y: torch.tanh(used(y))
    y = solve(f, rows([1.0, 2.0]), 0.0, 1.0, TIGHT, gradient="backsolve").y
    assert grad(y.sum(), unused.weight)[0].tolist() == [[0.0] * 2] * 2


def test_no_graph_without_gradients(tanh_field, starts):
    with torch.no_grad():
        assert not solve(tanh_field(3), starts(2, 3), 0.0, 1.0, TIGHT, gradient="backsolve").y.requires_grad
    y = solve(lambda t, y: -y, starts(2, 3), 0.0, 1.0, TIGHT, gradient="backsolve").y
    assert not y.requires_grad


def test_another_integrator_goes_back(tanh_field, starts):
    f, y0 = tanh_field(3, scale=1.0), starts(2, 3)
    y = solve(f, y0, 0.0, 1.0, Euler(1), gradient=Backsolve(integrator=TIGHT)).y
    assert_close(y, y0 + f(torch.zeros(2, 1), y0))
    candidates = Dynamic((Euler(1), RK4(1)), lambda h0, k1: torch.zeros(2, 2))
    with pytest.raises(ValueError, match="gradient: backsolve integrates with one integrator, but Dynamic"):
        solve(f, y0, 0.0, 1.0, candidates, gradient="backsolve")
    solve(f, y0, 0.0, 1.0, candidates, gradient=Backsolve(integrator=RK4(9))).y.sum().backward()
    assert f.W.grad.isfinite().all()


def test_fixed_steps_are_shared_out_between_save_points(record):
    """Ten forward steps, ten backward ones, whatever the save points; stages of k1 and of the quadrature included."""
    f, calls = record(lambda t, y, rate: rate * y), {}
    for times in ([], [0.5], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]):
        rate = rows([-1.0]).requires_grad_()
        s = solve(f, rows([1.0]), 0.0, 1.0, Euler(10), save_at=times, sample_args=(rate,), gradient="backsolve")
        before = f.calls
        (s.saved.sum() + s.y.sum()).backward()
        calls[len(times)] = f.calls - before
        assert rate.grad.isfinite().all()
    assert calls == {0: 20, 1: 20, 9: 20}


# ---- events


@pytest.mark.parametrize("direction", ["any", "falling"])
def test_an_events_time_and_state_have_gradients(direction):
    """The decay of test_events: t* = ln(y0/c)/r, y* = c, for a level c."""
    y0, rate = rows([2.0], [5.0], [0.5]).requires_grad_(), rows([0.5], [1.0], [2.0]).requires_grad_()
    level = rows(1.0)[0].requires_grad_()
    event = Event(lambda t, y, level, rate: y[:, 0] - level, direction)
    f = lambda t, y, level, rate: -rate * y  # noqa: E731
    s = solve(f, y0, 0.0, 10.0, TIGHT, args=(level,), sample_args=(rate,), event=event, gradient="backsolve")
    assert s.event.tolist() == [True, True, False]
    exact = ((y0[:2] / level).log() / rate[:2]).flatten()
    assert_close(s.t[:2], exact, rtol=1e-8, atol=1e-8)
    inputs = (y0, rate, level)
    for ours, theirs in ((s.t[:2].sin().sum(), exact.sin().sum()), (s.y[:2].sum(), 2 * level)):
        expected = grad(theirs, inputs, retain_graph=True, materialize_grads=True)
        assert_close(grad(ours, inputs, retain_graph=True, materialize_grads=True), expected, rtol=1e-6, atol=1e-8)


# ---- failures


def test_a_failed_samples_neighbours_have_their_gradients():
    y0 = rows([1.0], [math.nan], [2.0]).requires_grad_()
    s = solve(lambda t, y: -y, y0, 0.0, 1.0, TIGHT, throw=False, gradient="backsolve", save_at=[0.5, 1.0])
    of_y0 = grad(s.y[[0, 2]].sum() + s.saved[[0, 2]].sum(), y0)[0]
    assert_close(of_y0[[0, 2]], torch.full((2, 1), math.exp(-0.5) + 2 * math.exp(-1)).double(), rtol=1e-7, atol=1e-7)


def test_an_unstable_way_back_is_named():
    """y' = −50 y³ comes in from far away: going back over [0, 1] it explodes before it is at 0."""
    y0 = rows([5.0]).requires_grad_()
    y = solve(
        lambda t, y: -50 * y**3, y0, 0.0, 1.0, Dopri5(rtol=1e-3, atol=1e-3, max_steps=300), gradient="backsolve"
    ).y
    with pytest.raises(SolveError, match="1 of 1 samples failed") as caught:
        y.sum().backward()
    assert "gradient='checkpoint'" in "".join(caught.value.__notes__)


def test_second_derivatives_are_refused():
    """A penalty on a first derivative among them, whose gradient torch's `once_differentiable` leaves out."""
    y0, rate = rows([1.0]).requires_grad_(), torch.ones((), dtype=torch.float64, requires_grad=True)
    for value in (torch.sum, lambda y: y.square().sum()):
        y = solve(lambda t, y: -rate * (y**2), y0, 0.0, 1.0, TIGHT, gradient="backsolve").y
        (first,) = grad(value(y), y0, create_graph=True)
        for source in (y0, rate):
            with pytest.raises(RuntimeError, match="gradient='backsolve' has no second derivatives; use"):
                grad(first.sum(), source, allow_unused=True, retain_graph=True)
        with pytest.raises(RuntimeError, match="gradient='backsolve' has no second derivatives; use"):
            (y.sum() + first.square().sum()).backward()


@pytest.mark.parametrize("name", ["error", "accumulated"])
def test_what_has_no_gradient_says_so(tanh_field, starts, name):
    s = solve(tanh_field(3), starts(2, 3), 0.0, 1.0, Dopri5(), gradient="backsolve", accumulate=lambda step: step.dt)
    with pytest.raises(RuntimeError, match=rf"Solution.{name} has no gradient .*use gradient='direct' or 'checkpoint'"):
        getattr(s, name).sum().backward()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"gradient": "adjoint"}, ValueError, "gradient: expected 'direct', 'checkpoint', 'backsolve' or a"),
        ({"gradient": None}, ValueError, "gradient: expected .* got None"),
        ({"gradient": Backsolve}, ValueError, "gradient: expected .* got <class"),
        ({"gradient": "backsolve", "differentiate_step_sizes": True}, ValueError, "step_sizes: backsolve keeps"),
        ({"gradient": "backsolve", "dense": True}, ValueError, "dense: backsolve keeps no steps"),
    ],
)  # fmt: skip
def test_bad_options(options, kind, message):
    with pytest.raises(kind, match=message):
        solve(lambda t, y: -y, torch.ones(2, 3), 0.0, 1.0, Dopri5(), **options)


def test_bad_parameters_and_integrators():
    with pytest.raises(TypeError, match=r"params\[1\]: expected a tensor, got float"):
        Backsolve(params=[torch.ones(1), 1.0])
    with pytest.raises(TypeError, match="params: expected tensors, got int"):
        Backsolve(params=3)
    with pytest.raises(TypeError, match="integrator: expected an integrator such as"):
        Backsolve(integrator="dopri5")
