"""torchdiffeq's functions on this solver: its own test scenarios, and side by side with it."""

import math
import warnings

import pytest
import torch
import torchdiffeq
from torch import nn
from torch.autograd import grad, gradcheck
from torch.testing import assert_close
from torchdiffeq._impl.odeint import SOLVERS as PEER_SOLVERS

import dise.torchdiffeq
from dise import SolveError
from dise.torchdiffeq import odeint, odeint_adjoint, odeint_dense, odeint_event
from dise.torchdiffeq.methods import ADAPTIVE, FIXED

PEERS = sorted(set(ADAPTIVE) - {"tsit5"})  # its 0.2.5 has no tsit5
T = torch.tensor([0.0, 1.0])
every = pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])


# ---- closed forms: f(t, y) and the solution at times [T], from a start of any shape


def constant(t):
    """y' = a + (y − (a t + b))⁵ is solved by the line a t + b."""
    return (0.2 * t + 3)[:, None].expand(-1, 2)


def constant_field(t, y):
    return 0.2 + (y - (0.2 * t + 3)) ** 5


def sine(t):
    return (
        -0.5 * t**4 * (2 * t).cos() + 0.5 * t**3 * (2 * t).sin() + 0.25 * t**2 * (2 * t).cos() - t**3 + 2 * t**4
        + (math.pi - 0.25) * t**2
    )[:, None]  # fmt: skip


def sine_field(t, y):
    return 2 * y / t + t**4 * torch.sin(2 * t) - t**2 + 4 * t**3


SKEW = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SKEW = 0.3 * (SKEW - SKEW.T)


def linear(t):
    """y' = A y with a skew A: y = exp(A t)·1."""
    return torch.stack([torch.matrix_exp(SKEW.to(t) * s) @ torch.ones(4).to(t) for s in t])


def linear_field(t, y):
    return SKEW.to(y) @ y


def exponential(t):
    return t.exp()[:, None]


def exponential_field(t, y):
    return y


PROBLEMS = {
    "constant": (constant_field, constant),
    "sine": (sine_field, sine),
    "linear": (linear_field, linear),
    "exp": (exponential_field, exponential),
}
LOW = {"bosh3", "adaptive_heun", "fehlberg2"}


@pytest.mark.host
@pytest.mark.parametrize("problem", PROBLEMS)
@directions
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods_reach_the_exact_solution(problem, reverse, dtype, method):
    f, exact = PROBLEMS[problem]
    t = torch.linspace(1, 4, 7, dtype=dtype)
    t = t.flip(0) if reverse else t
    tolerance = 1e-4 if method == "adaptive_heun" else 1e-5 if dtype == torch.float32 or method in LOW else 1e-8
    y = odeint(f, exact(t)[0], t, method=method, rtol=tolerance, atol=tolerance)
    assert y.dtype == dtype
    assert y.shape == exact(t).shape
    bound = 8e-3 if method == "fehlberg2" else 4e-3 if method in LOW else 3e-4
    assert ((y - exact(t)) / exact(t).abs().clamp(min=1)).abs().max() < bound


@pytest.mark.host
@pytest.mark.parametrize("problem", ["constant", "linear", "exp"])
@directions
@pytest.mark.parametrize(
    ("method", "bound"), [("euler", 5e-2), ("midpoint", 3e-4), ("heun2", 3e-4), ("heun3", 1e-5), ("rk4", 1e-6)]
)
def test_fixed_methods_approach_it(problem, reverse, method, bound):
    f, exact = PROBLEMS[problem]
    t = torch.linspace(1, 3, 5, dtype=torch.float64)
    t = t.flip(0) if reverse else t
    y = odeint(f, exact(t)[0], t, method=method, options={"step_size": 0.02})
    assert ((y - exact(t)) / exact(t).abs().clamp(min=1)).abs().max() < bound


# ---- side by side


def pendulum(t, y):
    return torch.stack([y[1], -torch.sin(y[0]) - 0.2 * y[1] + torch.cos(2 * t)])


@pytest.fixture
def start():
    return torch.tensor([0.5, -1.0], dtype=torch.float64)


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("options", [{}, {"step_size": 0.13}, {"step_size": 0.13, "interp": "cubic"},
                                     {"grid_constructor": lambda f, y0, t: torch.cat([t[:1], t[1:] - 0.02, t[-1:]])}],
                         ids=["t", "step_size", "cubic", "grid"])  # fmt: skip
@directions
def test_fixed_methods_are_torchdiffeqs_to_rounding(method, options, reverse, start, record):
    """The grid is t or step_size's; between its points it interpolates as it does."""
    t = torch.tensor([0.0, 0.3, 0.4, 1.1, 2.0], dtype=torch.float64)
    t = 1 - t if reverse else t
    if reverse and "grid_constructor" in options:
        options = {"grid_constructor": lambda f, y0, t: torch.cat([t[:1], t[1:] + 0.02, t[-1:]])}
    f, g = record(pendulum), record(pendulum)
    ours = odeint(f, start, t, method=method, options=dict(options))
    theirs = torchdiffeq.odeint(g, start, t, method=method, options=dict(options))
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    if "interp" not in options:
        assert f.calls == g.calls


@pytest.mark.parametrize("method", PEERS)
@directions
def test_adaptive_methods_take_its_steps(method, reverse, start, record):
    """Where it is made to end a step at the last time, as this solver always does."""
    t = torch.tensor([0.0, 2.0 if not reverse else -2.0], dtype=torch.float64)
    beyond = torch.cat([t, 1.001 * t[1:]])
    f, g = record(pendulum), record(pendulum)
    ours = odeint(f, start, t, method=method, rtol=1e-6, atol=1e-6)
    at_end = []
    g.callback_step = lambda time, y, dt: at_end.append((y, g.calls)) if time == t[1] else None
    torchdiffeq.odeint(g, start, beyond, method=method, rtol=1e-6, atol=1e-6, options={"step_t": t[1:]})
    y, calls = at_end[0]
    assert_close(ours[1], y, rtol=0, atol=1e-10)
    assert f.calls == calls


@pytest.mark.host
@pytest.mark.parametrize("method", PEERS)
def test_adaptive_methods_agree_with_it_within_the_tolerance(method, start):
    t = torch.linspace(0, 3, 9, dtype=torch.float64)
    tolerance = 1e-5 if method in LOW else 1e-9
    ours, theirs = (
        solver(pendulum, start, t, method=method, rtol=tolerance, atol=tolerance)
        for solver in (odeint, torchdiffeq.odeint)
    )
    exact = torchdiffeq.odeint(pendulum, start, t, rtol=1e-11, atol=1e-11)
    assert (ours - exact).abs().max() <= max(2 * (theirs - exact).abs().max().item(), 1e-7)


@pytest.mark.parametrize("options", [
    {"first_step": 0.01}, {"max_step": 0.05}, {"min_step": 0.2}, {"safety": 0.5}, {"ifactor": 1.5},
    {"dfactor": 0.9, "first_step": 2.0}, {"max_num_steps": 500}, {"norm": lambda x: x.abs().max()},
])  # fmt: skip
def test_options_act_as_there(options, start):
    """The accepted steps are the same ones."""
    t = torch.tensor([0.0, 3.0, 3.001], dtype=torch.float64)
    steps = {}
    for name, solver, more in (("ours", odeint, {}), ("theirs", torchdiffeq.odeint, {"step_t": t[1:2]})):
        times = []

        class Field(nn.Module):
            def forward(self, t, y):
                return pendulum(t, y)

            def callback_accept_step(self, t, y, dt, times=times):
                times.append((t.item(), dt.item()))

        span = t[:2] if name == "ours" else t
        solver(Field(), start, span, method="dopri5", rtol=1e-6, atol=1e-6, options={**options, **more})
        steps[name] = [step for step in times if step[0] < 3]
    assert len(steps["ours"]) == len(steps["theirs"])
    assert_close(torch.tensor(steps["ours"]), torch.tensor(steps["theirs"]), rtol=1e-9, atol=1e-9)


@pytest.mark.host
@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize(
    ("method", "ignored"),
    [("dopri5", "'step_size', 'max_iters'"), ("adaptive_heun", "'step_size'"), ("rk4", "'max_iters'")],
)
def test_options_of_another_method_are_ignored_with_a_warning(interface, method, ignored, start):
    """As there: one dictionary of options for all methods (twitter-research/graph-neural-pde)."""
    t, options = torch.tensor([0.0, 1.0]).double(), {"step_size": 0.25, "max_iters": 100}
    more = {"adjoint_params": ()} if interface == "odeint_adjoint" else {}
    call = {"method": method, "rtol": 1e-6, "atol": 1e-6} | more
    with pytest.warns(UserWarning, match=f"options: {method} ignores {ignored}"):
        ours = getattr(dise.torchdiffeq, interface)(pendulum, start, t, options=options, **call)
    with pytest.warns(UserWarning, match="Unexpected arguments"):
        theirs = getattr(torchdiffeq, interface)(pendulum, start, t, options=options, **call)
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_dtype_of_times_is_accepted(start):
    """What a float32 state is asked for there by default."""
    ours = odeint(pendulum, start.float(), torch.tensor([0.0, 1.0]), method="dopri5", options={"dtype": torch.float64})
    assert_close(ours, odeint(pendulum, start.float(), torch.tensor([0.0, 1.0])))


def test_tolerances_for_each_element(start):
    """Ten times looser where it does not matter: fewer steps than with the tight one everywhere."""

    def count(atol):
        calls = 0

        def f(t, y):
            nonlocal calls
            calls += 1
            return torch.stack([-y[0], 50 * torch.cos(50 * t) + 0 * y[1]])

        odeint(f, start, torch.tensor([0.0, 2.0]).double(), rtol=0.0, atol=atol)
        return calls

    assert count(torch.tensor([1e-9, 1e3])) < count(1e-9)


# ---- discontinuities


@directions
def test_jump_t(reverse):
    """y' = 1 before t = 1, 2 from there on. Either side of the jump sees its own f, so two steps are enough."""
    t = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    t = t.flip(0) if reverse else t
    exact = torch.where(t < 1, t, 2 * t - 1)[:, None]
    times = []

    def f(t, y):
        times.append(t.item())
        return torch.where(t < 1, 1.0, 2.0) + 0 * y

    y = odeint(f, exact[0], t, options={"jump_t": torch.tensor([1.0])})
    assert_close(y, exact, rtol=1e-12, atol=1e-12)
    assert 1.0 not in times
    assert len(times) < 80


def test_jump_t_in_a_dense_solution():
    f = lambda t, y: torch.where(t < 1, 1.0, 2.0) + 0 * y  # noqa: E731
    at = odeint_dense(f, torch.zeros(1).double(), 0.0, 2.0, options={"jump_t": torch.tensor([1.0])})
    t = torch.tensor([0.0, 0.4, 1.0, 1.7]).double()
    assert_close(at(t)[:, 0], torch.where(t < 1, t, 2 * t - 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "adaptive_heun"])
def test_jump_t_costs_no_more_than_torchdiffeqs(method):
    def solved(solver):
        calls = []

        def f(t, y):
            calls.append(t)
            return torch.stack([y[1], -4 * y[0]]) + (t > 1)

        t, options = torch.tensor([0.0, 3.0]), {"jump_t": torch.tensor([1.0, 2.0])}
        y = solver(f, torch.tensor([1.0, 0.5]), t, method=method, rtol=1e-5, atol=1e-5, options=options)
        return y[-1], len(calls)

    (ours, calls), (theirs, other_calls) = solved(odeint), solved(torchdiffeq.odeint)
    assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert calls <= 1.1 * other_calls


def test_numbers_keep_their_digits(start):
    """Python's numbers are float64, whatever torch's default dtype is."""
    at = odeint_dense(pendulum, start, 0.1, 0.7, rtol=1e-9, atol=1e-9)
    exact = odeint(pendulum, start, torch.tensor([0.1, 0.7]).double(), rtol=1e-9, atol=1e-9)
    again = odeint(pendulum, start, torch.tensor([0.1, 0.7], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert_close(at(0.7), again[1], rtol=1e-12, atol=0)
    assert not torch.equal(exact, again)
    ends = []

    class Field(nn.Module):
        def forward(self, t, y):
            return pendulum(t, y)

        def callback_accept_step(self, t, y, dt):
            ends.append(float(t + dt))

    odeint(Field(), start, torch.tensor([0.0, 1.0]).double(), options={"step_t": [0.3], "jump_t": 0.1})
    assert min(abs(end - 0.3) for end in ends) < 1e-15
    assert min(abs(end - 0.1) for end in ends) < 1e-15


def test_step_t_ends_steps_there(start):
    t, stops, ends = torch.tensor([0.0, 2.0]).double(), torch.tensor([0.7, 0.31, 5.0]).double(), []

    class Field(nn.Module):
        def forward(self, t, y):
            return pendulum(t, y)

        def callback_accept_step(self, t, y, dt):
            ends.append((t + dt).item())

    y = odeint(Field(), start, t, options={"step_t": stops})
    assert {0.31, 0.7, 2.0} <= {round(end, 6) for end in ends}
    assert_close(y, odeint(pendulum, start, t), rtol=1e-6, atol=1e-6)


# ---- gradients


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_gradcheck_in_y0_and_t(problem, interface):
    f, exact = PROBLEMS[problem]
    t = torch.tensor([1.0, 1.4, 2.0], dtype=torch.float64, requires_grad=True)
    y0 = exact(t.detach())[0].clone().requires_grad_()
    more = {"adjoint_params": ()} if interface is odeint_adjoint else {}
    function = lambda y0, t: interface(f, y0, t, rtol=1e-9, atol=1e-9, **more)  # noqa: E731
    assert gradcheck(function, (y0, t), eps=1e-5, atol=1e-4, rtol=1e-4)


@every
@directions
def test_the_adjoint_is_the_direct_gradient(method, reverse, tanh_field, start):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tanh_field(2, scale=0.7)

        def forward(self, t, y):
            return self.inner(t, y[None])[0]

    f = Field()
    t = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    t = (1 - t if reverse else t).requires_grad_()
    start = start.requires_grad_()
    options = {"step_size": 0.05, "interp": "cubic"} if method in FIXED else {}  # a linear piece's slope is no f
    tolerance = 1e-5 if method in LOW else 1e-7
    wanted = (start, t, *f.parameters())
    gradients = []
    for interface in (odeint, odeint_adjoint):
        y = interface(f, start, t, method=method, options=options, rtol=tolerance, atol=tolerance)
        gradients.append(grad(y.sin().sum(), wanted))
    bound = 5e-2 if method == "euler" else 1e-2 if method in LOW or method in FIXED else 1e-5
    assert_close(gradients[1], gradients[0], rtol=bound, atol=bound)


def test_the_adjoint_is_torchdiffeqs(tanh_field, starts):
    f, y0 = tanh_field(3, scale=1.0), starts(4, 3).requires_grad_()
    t = torch.linspace(0, 1.5, 4, dtype=torch.float64).requires_grad_()
    wanted = (y0, t, *f.parameters())
    ours, theirs = (
        grad(interface(f, y0, t, rtol=1e-9, atol=1e-9, adjoint_options={"norm": "seminorm"}).cos().sum(), wanted)
        for interface in (odeint_adjoint, torchdiffeq.odeint_adjoint)
    )
    assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_adjoint_options_are_the_backward_solves(tanh_field, starts, record):
    f, y0 = tanh_field(3, scale=1.0), starts(4, 3).requires_grad_()
    counted = record(f)
    t = torch.linspace(0, 1, 2, dtype=torch.float64)
    params = {"adjoint_params": tuple(f.parameters())}

    def backward_calls(**options):
        y = odeint_adjoint(counted, y0, t, rtol=1e-6, atol=1e-6, **params, **options)
        before = counted.calls
        y.sum().backward()
        return counted.calls - before

    assert backward_calls(adjoint_rtol=1e-3, adjoint_atol=1e-3) < backward_calls()
    assert backward_calls(adjoint_method="euler", adjoint_options={"step_size": 0.5}) == 2
    with pytest.raises(ValueError, match="adjoint_options"):
        odeint_adjoint(counted, y0, t, method="dopri5", options={"safety": 0.8}, adjoint_method="bosh3", **params)
    with pytest.raises(ValueError, match="adjoint_params"):
        odeint_adjoint(lambda t, y: -y, y0, t)


def test_tensors_left_out_of_adjoint_params_get_no_gradient():
    weight, other = torch.tensor(0.5, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    f = lambda t, y: -weight * y + other  # noqa: E731
    odeint_adjoint(f, torch.ones(2), torch.tensor([0.0, 1.0]), adjoint_params=(weight,)).sum().backward()
    assert weight.grad is not None
    assert other.grad is None


# ---- callbacks


@pytest.mark.parametrize("method", ADAPTIVE)
@directions
def test_accepted_and_rejected_are_all_steps(method, reverse, start):
    calls = {"step": [], "accept_step": [], "reject_step": []}

    class Field(nn.Module):
        def forward(self, t, y):
            return torch.tanh(8 * pendulum(t, y[0])), torch.cos(y[1])

    f = Field()
    for name, times in calls.items():

        def callback(t, y, dt, times=times):
            assert t.shape == dt.shape == ()
            assert [part.shape for part in y] == [(2,), ()]
            assert dt > 0
            times.append(t.item())

        setattr(f, f"callback_{name}", callback)
    t = torch.tensor([0.0, 1.0 if not reverse else -1.0], dtype=torch.float64)
    odeint(f, (start, torch.tensor(0.3).double()), t, method=method, rtol=1e-3, atol=1e-3, options={"first_step": 0.9})
    assert len(calls["accept_step"]) + len(calls["reject_step"]) == len(calls["step"])
    assert calls["reject_step"] or method == "fehlberg2"  # whose estimate is a small part of its error
    assert calls["accept_step"] == sorted(calls["accept_step"], reverse=reverse)


@pytest.mark.parametrize("method", FIXED)
def test_fixed_methods_call_back_for_each_step(method, start):
    times = []

    class Field(nn.Module):
        def forward(self, t, y):
            return pendulum(t, y)

        def callback_step(self, t, y, dt):
            times.append(round(t.item(), 9))

    odeint(Field(), start, torch.tensor([0.0, 1.0]).double(), method=method, options={"step_size": 0.25})
    assert times == [0.0, 0.25, 0.5, 0.75]

    Field.callback_accept_step = lambda self, t, y, dt: None
    with pytest.warns(UserWarning, match="callback_step only"):
        odeint(Field(), start, torch.tensor([0.0, 1.0]).double(), method=method)


def test_adjoint_callbacks_are_the_backward_solves(tanh_field, starts):
    f, calls = tanh_field(3), {"step": 0, "accept_step": 0, "reject_step": 0}
    for name in calls:

        def callback(t, state, dt, name=name):
            of_t, y, adjoint, *of_params = state
            assert of_t.shape == t.shape == dt.shape == ()
            assert y.shape == adjoint.shape == (4, 3)
            assert [x.shape for x in of_params] == [x.shape for x in f.parameters()]
            calls[name] += 1

        setattr(f, f"callback_{name}_adjoint", callback)
    y = odeint_adjoint(f, starts(4, 3).requires_grad_(), torch.tensor([0.0, 1.0]).double(), rtol=1e-5, atol=1e-5)
    assert calls["step"] == 0
    y.sum().backward()
    assert calls["accept_step"] + calls["reject_step"] == calls["step"] > 0


# ---- tuples and norms


@every
def test_tuples(method, start):
    t = torch.linspace(0, 1, 3, dtype=torch.float64)
    y0 = (start, torch.ones(2, 3, dtype=torch.float64), torch.tensor(0.5).double())
    f = lambda t, y: [pendulum(t, y[0]), -y[1] * y[2], torch.cos(t) * y[2]]  # a list will do  # noqa: E731
    options = {"step_size": 0.1} if method in FIXED else {}
    y = odeint(f, y0, t, method=method, rtol=1e-5, atol=1e-5, options=options)
    assert isinstance(y, tuple)
    assert [part.shape for part in y] == [(3, 2), (3, 2, 3), (3,)]
    flat = lambda t, y: torch.cat([pendulum(t, y[:2]), -y[2:8] * y[8], torch.cos(t) * y[8:]])  # noqa: E731
    whole = odeint(flat, torch.cat([part.reshape(-1) for part in y0]), t, method=method, rtol=1e-5, atol=1e-5,
                   options=options)  # fmt: skip
    bound = 1e-12 if method in FIXED else 5e-3  # the norm of a tuple is another one
    assert_close(torch.cat([part.reshape(3, -1) for part in y], 1), whole, rtol=bound, atol=bound)


@pytest.mark.parametrize("rtol", [(1e-6, 1e-3), torch.tensor([1e-6, 1e-3]), (torch.full((2,), 1e-6), 1e-3)])
def test_tolerances_for_each_of_a_tuple(rtol, start):
    y = odeint(lambda t, y: (pendulum(t, y[0]), y[1]), (start, start[:1]), torch.tensor([0.0, 1.0]).double(), rtol=rtol)
    assert_close(y[1][1], math.e * start[:1], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="rtol: expected one for each of the state's 2 tensors, got 3"):
        odeint(lambda t, y: y, (start, start), torch.tensor([0.0, 1.0]), rtol=(1e-3, 1e-3, 1e-3))


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
@pytest.mark.parametrize("is_tuple", [False, True])
def test_norms_see_the_states_shapes(interface, is_tuple, start):
    seen = []

    def norm(state):
        seen.append([tuple(part.shape) for part in (state if is_tuple else (state,))])
        return max(part.abs().max() for part in (state if is_tuple else (state,)))

    y0 = (start.requires_grad_(), torch.ones(2, 3).double()) if is_tuple else start.requires_grad_()
    f = (lambda t, y: (pendulum(t, y[0]), -y[1])) if is_tuple else pendulum
    more = {"adjoint_params": ()} if interface is odeint_adjoint else {}
    y = interface(f, y0, torch.tensor([0.0, 1.0]).double(), method="dopri5", options={"norm": norm}, **more)
    forwards = len(seen)
    (y[0] if is_tuple else y).sum().backward()
    assert set(map(tuple, seen)) == {((2,), (2, 3)) if is_tuple else ((2,),)}
    assert (len(seen) > forwards) == (interface is odeint_adjoint)


@pytest.mark.parametrize("is_tuple", [False, True])
def test_a_norm_of_the_adjoint_sees_what_it_sees_there(is_tuple, tanh_field, starts):
    """(t, y, adjoint, parameters), a tuple's tensors one by one; the errors of t and of parameters do not count."""
    inner, y0 = tanh_field(3), starts(4, 3).requires_grad_()
    state = (y0, torch.ones(2).double()) if is_tuple else y0
    f = (lambda t, y: (inner(t, y[0]), -y[1])) if is_tuple else inner
    params, shapes, gradients = tuple(inner.parameters()), {}, {}
    for name, module in (("ours", dise.torchdiffeq), ("theirs", torchdiffeq)):
        seen = shapes[name] = set()

        def norm(parts, seen=seen):
            seen.add(tuple(part.shape for part in parts))
            return max(part.abs().max() for part in parts)

        y = module.odeint_adjoint(f, state, T.double(), rtol=1e-7, atol=1e-7, adjoint_params=params,
                                  adjoint_options={"norm": norm})  # fmt: skip
        gradients[name] = grad((y[0] if is_tuple else y)[1].sin().sum(), (y0, *params))
    assert shapes["ours"] == shapes["theirs"]
    assert_close(gradients["ours"], gradients["theirs"], rtol=1e-5, atol=1e-6)


def test_a_norm_of_the_adjoint_sets_the_backward_steps(tanh_field, starts, record):
    """One that counts errors a thousandfold takes more steps."""
    f, y0 = tanh_field(3, scale=1.0), starts(4, 3).requires_grad_()
    counted, params, calls = record(f), tuple(f.parameters()), []
    for factor in (1, 1000):
        norm = lambda parts, factor=factor: factor * max(part.abs().max() for part in parts if part.numel())  # noqa: E731
        y = odeint_adjoint(counted, y0, T.double(), rtol=1e-4, atol=1e-4, adjoint_params=params,
                           adjoint_options={"norm": norm})  # fmt: skip
        before = counted.calls
        y.sum().backward()
        calls.append(counted.calls - before)
    assert calls[1] > 1.5 * calls[0]


# ---- SciPy's solvers


@pytest.mark.parametrize("solver", [None, "RK45", "BDF"])
@directions
def test_scipys_solvers_are_those_there(solver, reverse, start):
    t = torch.tensor([0.0, 0.4, 1.0, 2.5], dtype=torch.float64)
    t = 1 - t if reverse else t
    call = {"method": "scipy_solver", "rtol": 1e-6, "atol": 1e-8, "options": {"solver": solver} if solver else None}
    ours, theirs = (module.odeint(pendulum, start, t, **call) for module in (dise.torchdiffeq, torchdiffeq))
    # there backwards is forwards in −t, of which not every rounding is the same, and func gets LSODA's times in float32
    same = solver is not None and not reverse
    assert_close(ours, theirs, rtol=1e-12 if same else 1e-5, atol=1e-12 if same else 1e-6)


def test_scipys_solvers_get_times_in_double_precision():
    f = lambda t, y: torch.cos(10 * (t - 1e8)) + 0 * y  # noqa: E731
    t = 1e8 + torch.tensor([0.0, 1.0], dtype=torch.float64)
    y = odeint(f, torch.zeros(1).double(), t, method="scipy_solver", rtol=1e-8, atol=1e-10)
    assert y[1].item() == pytest.approx(math.sin(10) / 10, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex64])
def test_scipys_solvers_take_tuples_and_dtypes(dtype):
    seen = []

    def f(t, y):
        seen.append((t.dtype, t.shape, [part.dtype for part in y], [part.shape for part in y]))
        return [-y[0], y[1]]

    y0 = (torch.ones(2, 3, dtype=dtype), torch.ones((), dtype=dtype))
    options = {"solver": "RK45", "step_size": 1.0}
    with pytest.warns(UserWarning, match="options: scipy_solver ignores 'step_size'"):
        a, b = odeint(f, y0, T, method="scipy_solver", options=options, rtol=(1e-5, 1e-6), atol=torch.tensor(1e-6))
    assert seen[0] == (dtype.to_real(), (), [dtype] * 2, [(2, 3), ()])
    assert (a.dtype, a.shape, b.shape) == (dtype, (2, 2, 3), (2,))
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    assert_close(a[1], torch.full_like(y0[0], math.exp(-1)), rtol=tolerance, atol=tolerance)
    assert_close(b[1], torch.full_like(y0[1], math.e), rtol=tolerance, atol=tolerance)


def test_gradients_through_scipys_solvers_are_odeint_adjoints(tanh_field, starts):
    """As there: its backward solve is SciPy's, too."""
    f, y0 = tanh_field(3), starts(4, 3).requires_grad_()
    call = {"method": "scipy_solver", "rtol": 1e-9, "atol": 1e-9, "options": {"solver": "RK45"}}
    assert not odeint(f, y0, T.double(), **call).requires_grad
    wanted = (y0, *f.parameters())
    ours, theirs = (grad(m.odeint_adjoint(f, y0, T.double(), **call)[1].sin().sum(), wanted)
                    for m in (dise.torchdiffeq, torchdiffeq))  # fmt: skip
    assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="method: scipy_solver has no dense output"):
        odeint_dense(f, y0, 0.0, 1.0, method="scipy_solver")


@pytest.mark.parametrize(("name", "own"), [("RK45", "dopri5"), ("RK23", "bosh3"), ("DOP853", "dopri8")])
def test_methods_of_scipys_that_dise_has_itself(name, own, start):
    """By the name that SciPy gives them, with gradients; DOP853 is another method of the same order."""
    y0, call = start.requires_grad_(), {"rtol": 1e-7, "atol": 1e-9}
    y = odeint(pendulum, y0, T.double(), method=name, **call)
    assert torch.equal(y, odeint(pendulum, y0, T.double(), method=own, **call))
    scipys = odeint(pendulum, y0, T.double(), method="scipy_solver", options={"solver": name}, **call)
    assert_close(y, scipys, rtol=1e-5, atol=1e-6)
    assert grad(y[1].sum(), y0)[0].isfinite().all()


def test_scipys_failures_are_errors():
    with pytest.raises(RuntimeError, match="scipy_solver: RK45 failed: Required step size is less than spacing"):
        odeint(lambda t, y: y**2, torch.ones(1).double(), 2 * T, method="scipy_solver", options={"solver": "RK45"})


def test_solvers_has_the_methods_names():
    """Scripts offer them as choices (facebookresearch/flow_matching)."""
    assert set(dise.torchdiffeq.SOLVERS) - {"tsit5"} == set(PEER_SOLVERS)


# ---- events

THROWN = {"g": 9.81}


def thrown(t, y):
    return torch.stack([y[1], -9.81 + 0 * y[1]])


def ground(t, y):
    return y[0]


@every
@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_an_events_time_and_state(method, interface):
    """A ball from 10 m at rest: t* = √(2h/g), and dt*/dh = 1/√(2 g h)."""
    y0 = torch.tensor([10.0, 0.0], dtype=torch.float64, requires_grad=True)
    options = {"step_size": 0.05, "interp": "cubic"} if method in FIXED else {}
    tolerance = 1e-4 if method in LOW else 1e-8  # the solution is a parabola
    more = {"adjoint_params": ()} if interface is odeint_adjoint else {}
    t, y = odeint_event(thrown, y0, torch.tensor(0.0).double(), event_fn=ground, odeint_interface=interface,
                        method=method, options=options, rtol=tolerance, atol=tolerance, **more)  # fmt: skip
    bound = 5e-2 if method == "euler" else 1e-5
    assert t.shape == ()
    assert y.shape == (2, 2)
    assert t.item() == pytest.approx(math.sqrt(20 / 9.81), rel=bound)
    assert_close(y[1], torch.tensor([0.0, -math.sqrt(20 * 9.81)]).double(), rtol=bound, atol=bound)
    of_h = grad(t, y0, retain_graph=True)[0][0]
    assert of_h.item() == pytest.approx(1 / math.sqrt(2 * 9.81 * 10), rel=2 * bound)
    assert grad(y[1, 1], y0)[0][0].item() == pytest.approx(-math.sqrt(9.81 / 20), rel=2 * bound)


@directions
def test_its_events_and_ours(reverse, start):
    """First of two functions to reach zero, in either direction of time; gradients in y0 and t0."""
    event = lambda t, y: torch.stack([y[0] - 0.1, y.norm() - 1.6 + 0.1 * t])  # noqa: E731
    start, t0 = start.requires_grad_(), torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    results = []
    for module in (odeint_event, torchdiffeq.odeint_event):
        t, y = module(pendulum, start, t0, event_fn=event, reverse_time=reverse, rtol=1e-10, atol=1e-10)
        results.append((t, y, *grad(t + y[1].sum(), (start, t0))))
    assert (results[0][0] < 0.3) == reverse
    assert_close(results[0][:2], results[1][:2], rtol=1e-7, atol=1e-7)
    assert_close(results[0][2:], results[1][2:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun3", "rk4"])
def test_its_events_and_ours_in_equal_steps(method, start):
    """The field changes from step to step, so each needs its own first stage."""
    options = {"method": method, "options": {"step_size": 0.05}}
    t0, event = torch.tensor(0.3).double(), lambda t, y: y[0] + 0.4
    ours, theirs = (m(pendulum, start, t0, event_fn=event, **options) for m in (odeint_event, torchdiffeq.odeint_event))
    assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


def test_an_event_at_the_start_is_at_the_start(start):
    t0 = torch.tensor(0.7, dtype=torch.float64)
    t, y = odeint_event(pendulum, start, t0, event_fn=lambda t, y: y[0] - 0.5)
    assert (t.item(), y.tolist()) == (0.7, [start.tolist()] * 2)


def test_odeint_with_an_event_takes_its_direction_from_t(start):
    for sign in (1, -1):
        t, y = odeint(pendulum, start, torch.tensor([0.0, sign]).double(), event_fn=lambda t, y: t.abs() - 2)
        assert t.item() == pytest.approx(2 * sign, rel=1e-12)
        assert_close(y[1], odeint(pendulum, start, torch.tensor([0.0, 2.0 * sign]).double())[1], rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="t: expected two times with event_fn"):
        odeint(pendulum, start, torch.linspace(0, 1, 3).double(), event_fn=lambda t, y: t - 2)


def test_an_event_that_never_comes_is_an_error(start):
    with pytest.raises(SolveError):
        odeint_event(lambda t, y: -y, start, torch.tensor(0.0), event_fn=lambda t, y: y.norm() + 1,
                     options={"max_num_steps": 300}, method="dopri5")  # fmt: skip
    with pytest.raises(SolveError):
        odeint_event(lambda t, y: 0 * y, start, torch.tensor(0.0), event_fn=lambda t, y: y.norm() + 1)
    with pytest.raises(ValueError, match="step_size"):
        odeint_event(lambda t, y: -y, start, torch.tensor(0.0), event_fn=lambda t, y: y.norm() - 1, method="rk4")


def test_events_beyond_a_jump():
    f = lambda t, y: torch.where(t < 1, 1.0, 2.0) + 0 * y  # noqa: E731
    options = {"jump_t": torch.tensor([1.0])}
    t, _ = odeint_event(f, torch.zeros(1).double(), torch.tensor(0.0), event_fn=lambda t, y: y[0] - 4, options=options)
    assert t.item() == pytest.approx(2.5, rel=1e-12)


# ---- the rest


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_dense_output(method, start):
    at = odeint_dense(
        pendulum, start, 0.0, 2.0, method=method, options={"step_size": 0.01} if method == "rk4" else None
    )
    exact = odeint(pendulum, start, torch.tensor([0.0, 0.3, 1.7]).double(), rtol=1e-10, atol=1e-10)
    assert_close(at(torch.tensor([0.3, 1.7]).double()), exact[1:], rtol=1e-3, atol=1e-3 if method == "rk4" else 1e-6)
    assert_close(at(0.3), at(torch.tensor([0.3]).double())[0])


def test_one_time_is_the_start(start):
    assert odeint(pendulum, start, torch.tensor([0.3])).tolist() == [start.tolist()]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_any_shape_and_dtype(shape, dtype):
    y = odeint(lambda t, y: -y, torch.ones(shape, dtype=dtype), torch.tensor([0.0, 1.0]), rtol=1e-5, atol=1e-5)
    assert y.dtype == dtype
    assert_close(y[1], torch.full(shape, math.exp(-1), dtype=dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "dopri5"])
@pytest.mark.parametrize("t_dtype", [torch.float32, None], ids=["float32", "half"])
def test_half_states_get_a_half_t(dtype, method, t_dtype):
    """A network that sees t beside the state wants one dtype (SWivid/F5-TTS)."""
    net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 2)).to(dtype)
    seen = set()

    def f(t, y):
        seen.add((t.dtype, t.shape))
        return net(torch.cat([y, t.expand(len(y), 1)], 1))

    y0, t = torch.ones(4, 2, dtype=dtype), torch.linspace(0, 1, 5).to(t_dtype or dtype)
    with torch.no_grad():
        ours, theirs = (
            m.odeint(f, y0, t, method=method, rtol=1e-2, atol=1e-2) for m in (dise.torchdiffeq, torchdiffeq)
        )
    assert seen == {(dtype, torch.Size([]))}
    assert ours.dtype == dtype
    assert_close(ours, theirs, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "euler"])
def test_func_may_change_its_t(method):
    """Time embeddings scale t in place; y' = −y cos 2t has a closed form. There fixed steps would go wrong."""

    def f(t, y):
        t *= 2
        return -y * torch.cos(t)

    points = {"dopri5": 2, "rk4": 51, "euler": 1001}[method]
    t = torch.linspace(0.5, 1.5, points, dtype=torch.float64)
    y = odeint(f, torch.ones(1).double(), t, method=method, rtol=1e-8, atol=1e-8)[-1]
    assert_close(y.item(), math.exp((math.sin(1) - math.sin(3)) / 2), rtol=1e-3 if method == "euler" else 1e-6, atol=0)


def test_f_is_never_called_outside_of_the_span(start):
    times = []

    def f(t, y):
        times.append(t.item())
        return pendulum(t, y)

    for ends in ([0.0, 0.37, 1.1], [1.1, 0.0]):
        odeint(f, start, torch.tensor(ends, dtype=torch.float64))
    assert min(times) >= 0
    assert max(times) <= 1.1


def test_no_warnings(start):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for method in (*ADAPTIVE, *FIXED):
            odeint(pendulum, start.requires_grad_(), torch.tensor([0.0, 1.0]), method=method, rtol=1e-3, atol=1e-3)
    assert not caught


# ---- what is wrong is named


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"method": "rk45"},
            ValueError,
            "method: expected one of dopri8, dopri5, .*, RK23, DOP853, got 'rk45'",
        ),
        ({"method": "scipy_solver", "t": T.flip(0)[None]}, ValueError, r"t: expected shape \[T\], got \(1, 2\)"),
        ({"method": "scipy_solver", "event_fn": lambda t, y: t}, ValueError, "event_fn: scipy_solver looks for none"),
        (
            {"method": "implicit_adams", "options": {"max_order": 13}},
            ValueError,
            "max_order: expected at most 12",
        ),
        ({"method": "explicit_adams", "options": {"max_order": 4.5}}, ValueError, "max_order: expected a whole number"),
        ({"method": "implicit_adams", "options": {"max_iters": 0}}, ValueError, "max_iters: expected a whole number"),
        ({"method": "implicit_adams", "atol": -1.0}, ValueError, "atol: expected a finite number of at least 0"),
        ({"method": "rk4", "options": {"interp": "spline"}}, ValueError, "options: interp is 'linear' or 'cubic'"),
        ({"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": len}}, ValueError, "give one"),
        ({"method": "rk4", "options": {"step_size": 0.0}}, ValueError, "step_size: expected a positive number, got 0"),
        ({"method": "rk4", "options": {"grid_constructor": lambda f, y0, t: t[:1]}}, ValueError, "grid_constructor"),
        ({"method": "rk4", "options": {"grid_constructor": lambda f, y0, t: t + 1}}, ValueError, "grid_constructor"),
        ({"options": {"norm": "rms"}}, ValueError, "options: expected a function as norm, got 'rms'"),
        ({"options": {"norm": lambda y: y}}, ValueError, "options: expected a norm that returns one number"),
        ({"options": {"step_t": torch.tensor([0.5, 0.5])}}, ValueError, "step_t and jump_t must not have a time twice"),
        ({"options": {"safety": 2.0}}, ValueError, "options: safety: expected"),
        ({"options": {"first_step": -1.0}}, ValueError, "options: first_step: expected"),
        ({"options": {"dfactor": 2.0}}, ValueError, "options: dfactor: expected a number between 0 and 1"),
        ({"options": {"ifactor": "fast"}}, TypeError, "options: ifactor: expected a number, got 'fast'"),
        ({"options": {"jump_t": ["a"]}}, TypeError, "options: jump_t: expected real numbers, got list"),
        ({"options": ["max_num_steps"]}, TypeError, "options: expected a dict from names of options, got list"),
        ({"method": "rk4", "options": {"step_size": 1e-30}}, ValueError, "options: step_size: 1e-30 makes too many"),
        ({"method": "scipy_solver", "options": {"solver": "RK46"}}, ValueError, "options: solver: expected one of"),
        ({"method": ["dopri5"]}, ValueError, "method: expected one of"),
        ({"event_fn": 1.0}, TypeError, "event_fn: expected a function"),
        ({"event_fn": lambda t, y: t.long()}, TypeError, "event_fn: expected real numbers, got torch.int64"),
        ({"options": {"max_num_steps": 0}}, ValueError, "options: max_num_steps: expected"),
        ({"t": [0.0, 1.0]}, TypeError, "t: expected a tensor of real times, got list"),
        ({"t": torch.tensor([0, 1])}, TypeError, "t: expected a tensor of real times, got torch.int64"),
        ({"t": torch.tensor(1.0)}, ValueError, r"t: expected shape \[T\], got \(\)"),
        ({"t": torch.zeros(0)}, ValueError, r"t: expected shape \[T\], got \(0,\)"),
        ({"t": torch.tensor([0.0, 1.0, 0.5])}, ValueError, "t: expected strictly increasing or decreasing times"),
        ({"t": torch.tensor([0.0, 0.0])}, ValueError, "t: expected strictly increasing or decreasing times"),
        ({"t": torch.tensor([0.0, math.nan])}, ValueError, "t: expected strictly increasing or decreasing times"),
        ({"t": torch.tensor([0.0, math.inf])}, ValueError, "expected finite times"),
        ({"y0": 1.0}, TypeError, "y0: expected a tensor or a tuple of tensors, got float"),
        ({"y0": {"y": torch.ones(2)}}, TypeError, "y0: expected a tensor or a tuple of tensors, got dict"),
        ({"y0": ()}, TypeError, "y0: expected a tensor or a tuple of tensors"),
        ({"y0": torch.ones(2, dtype=torch.int64)}, TypeError, "y0: expected a floating-point or complex dtype"),
        ({"rtol": torch.tensor(1e-3, requires_grad=True)}, ValueError, "rtol: a tolerance has no gradient"),
        ({"atol": -1.0}, ValueError, "atol: expected a finite number of at least 0"),
        ({"func": lambda t, y: y[:1]}, ValueError, "f: expected dy/dt of shape"),
        ({"func": lambda t, y: None}, ValueError, "f: expected dy/dt of shape"),
        ({"func": 3}, TypeError, r"func: expected a function of \(t, y\), got int"),
        ({"event_fn": lambda t, y: None}, TypeError, "event_fn: expected a tensor, got NoneType"),
    ],
)
def test_a_bad_argument_is_named(change, error, message):
    call = {"func": lambda t, y: -y, "y0": torch.ones(2), "t": T} | change
    with pytest.raises(error, match=message):
        odeint(call.pop("func"), call.pop("y0"), call.pop("t"), **call)


def test_an_unknown_norm_of_the_adjoint_is_named():
    with pytest.raises(ValueError, match="adjoint_options: expected 'seminorm' or a function as norm, got 'rms'"):
        odeint_adjoint(lambda t, y: -y, torch.ones(2), T, adjoint_params=(), adjoint_options={"norm": "rms"})


def test_a_bad_norm_of_the_adjoint_is_named():
    y0 = torch.ones(2, requires_grad=True)
    options = {"norm": lambda parts: parts[1]}
    y = odeint_adjoint(lambda t, y: -y, y0, T, adjoint_params=(), adjoint_options=options, method="dopri5")
    with pytest.raises(ValueError, match="options: expected a norm that returns one number"):
        y.sum().backward()


def test_failures_say_what_to_try():
    with pytest.raises(SolveError, match=r"MAX_STEPS.*What to try"):
        odeint(lambda t, y: -y, torch.ones(2), T, method="dopri5", options={"max_num_steps": 1})
    with pytest.raises(SolveError, match="NON_FINITE"):
        odeint(lambda t, y: y * math.nan, torch.ones(2), T)
