"""`Adams`: own steps at one evaluation of f per step."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn
from torch.testing import assert_close

from dise import (
    Adams,
    Bosh3,
    Dopri5,
    Dopri8,
    Event,
    IController,
    KineticEnergy,
    NeuralODE,
    PIController,
    Status,
    resume,
    solve,
    step,
)

DOUBLE = torch.float64
ORDERS = tuple(range(2, 9))
TIGHT = Adams(5, rtol=1e-9, atol=1e-9)


def linear(t, y):
    """y' = cos(t)·y, whose solution is y0·exp(sin t − sin t0)."""
    return torch.cos(t) * y


def pendulum(t, y):
    return torch.stack([y[:, 1], -y[:, 0].sin()], 1)


def exact(y0, t0, t1):
    return y0 * (t1.sin() - t0.sin()).exp()[:, None]


@pytest.fixture
def spans():
    """Forwards, backwards, empty: y0 [5, 2], t0 [5], t1 [5]."""
    draw = torch.Generator().manual_seed(0)
    y0 = torch.randn(5, 2, generator=draw, dtype=DOUBLE)
    return y0, torch.tensor([0.0, 3.0, 1.0, -2.0, 1.0]).double(), torch.tensor([3.0, 1.0, 1.0, -0.5, 4.0]).double()


# ---- order and accuracy


@pytest.mark.parametrize("order", ORDERS)
def test_order_by_halving(order):
    """Steps of one length after a start so short that its lower order does not matter; every step is accepted."""
    y0, errors = torch.tensor([[1.0, 0.5]], dtype=DOUBLE), []
    reference = solve(pendulum, y0, 0.0, 4.0, Dopri8(rtol=1e-14, atol=1e-14)).y
    grow = 2 if order < 6 else 1.1  # a method of high order loses digits where its steps soon become longer
    for h in (0.1, 0.05):
        method = Adams(order, rtol=1e6, atol=1e6, first_step=h / 2**12, dt_max=h, controller=IController(grow=grow))
        errors.append((solve(pendulum, y0, 0.0, 4.0, method).y - reference).norm().item())
    seen = np.log2(errors[-2] / errors[-1])
    assert seen > order - 0.15
    assert seen < order + 0.15 or order > 5  # whose errors are still falling faster


@pytest.mark.parametrize("order", ORDERS)
def test_tighter_tolerances_give_smaller_errors(spans, order):
    y0, t0, t1 = spans
    errors = []
    for tolerance in (1e-3, 1e-5) if order > 2 else (1e-2, 1e-3):
        solution = solve(linear, y0, t0, t1, Adams(order, rtol=tolerance, atol=tolerance))
        errors.append((solution.y - exact(y0, t0, t1)).abs().max().item())
        assert errors[-1] < 100 * tolerance
    assert all(b < a / 5 for a, b in pairwise(errors))


def test_fewer_evaluations_than_runge_kutta_at_equal_error():
    """A smooth field, such as a flow-matching sampler has; errors by a closed form."""
    y0, t1 = torch.linspace(-2, 2, 16, dtype=DOUBLE)[:, None], torch.tensor(3.0, dtype=DOUBLE)

    def cost(method):
        for k in range(2, 40):
            solution = solve(linear, y0, 0.0, t1, method(rtol=2 ** -(k / 2), atol=2 ** -(k / 2)))
            if (solution.y - exact(y0, torch.zeros(16), t1.expand(16))).abs().max() < 1e-3:
                return solution.nfe.double().mean().item()
        return math.inf

    assert cost(Adams) < 0.7 * min(cost(Bosh3), cost(Dopri5))


def test_a_row_alone_is_the_row_in_its_batch(spans):
    y0, t0, t1 = spans
    # where stability limits the steps, 40 per unit of time and more, a rounding may cost a step
    rate = torch.logspace(-1, 0.3, 5, dtype=DOUBLE)[:, None]
    f = lambda t, y, rate: torch.sin(3 * rate * t) - rate * y  # noqa: E731
    for method in (Adams(), Adams(5, rtol=1e-4, atol=1e-4)):
        batch = solve(f, y0, t0, t1, method, sample_args=(rate,), throw=False)
        for i in range(5):
            row = slice(i, i + 1)
            alone = solve(f, y0[row], t0[row], t1[row], method, sample_args=(rate[row],), throw=False)
            assert_close(alone.y, batch.y[row], rtol=1e-6, atol=1e-6)
            assert alone.nfe.item() == batch.nfe[i].item()


def test_one_evaluation_per_attempted_step(spans, record):
    y0, t0, t1 = spans
    f = record(lambda t, y: torch.sin(5 * t) - 3 * y)
    for first_step, extra in (("scale", 0), ("span", 0), (0.3, 0), ("heuristic", 1)):
        f.times.clear()
        solution = solve(f, y0, t0, t1, Adams(first_step=first_step), throw=False)
        assert f.rows == solution.nfe.sum()
        assert torch.equal(solution.nfe, torch.where(t0 == t1, 0, 1 + extra + solution.n_steps))
        if first_step == "span":
            assert (solution.n_steps > solution.n_accepted).any()


def test_scale_of_the_first_step():
    """½ √(2 T/‖f‖) with T = ‖y‖/‖f‖ where y0 tells it, else the span; it grows with the tolerance."""
    first = lambda y0, **options: solve(  # noqa: E731
        lambda t, y: 0 * y + 2.0, y0, 0.0, 1.0, Adams(rtol=0, atol=1e-2, first_step="scale", **options), record=True
    ).steps.t[0, 0]
    assert_close(first(torch.tensor([[0.5]], dtype=DOUBLE)), torch.tensor(0.5 * (2 * 0.25 / 200) ** 0.5).double())
    assert_close(first(torch.tensor([[0.0]], dtype=DOUBLE)), torch.tensor(0.5 * (2 * 1.0 / 200) ** 0.5).double())
    still = solve(lambda t, y: 0 * y, torch.ones(1, 1), 0.0, 1.0, Adams(first_step="scale"))
    assert still.n_steps.item() == 1


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_last_steps(direction):
    """The last step is up to 1/safety times as long as the controller's; else the last two are equal."""

    def lengths(span, **options):
        steady = IController(grow=1 + 1e-9, safety=0.65)
        method = Adams(rtol=1e6, atol=1e6, first_step=0.3, controller=steady, **options)
        end = 2 + direction * torch.tensor([span], dtype=DOUBLE)
        t = solve(pendulum, torch.ones(1, 2, dtype=DOUBLE), 2.0, end, method, record=True).steps.t[0]
        return (direction * torch.diff(t, prepend=torch.tensor([2.0], dtype=DOUBLE))).tolist()

    assert lengths(1.0) == pytest.approx([0.3, 0.3, 0.4])
    assert lengths(0.8) == pytest.approx([0.3, 0.25, 0.25])
    assert lengths(0.95) == pytest.approx([0.3, 0.3, 0.35])
    assert lengths(1.2) == pytest.approx([0.3] * 4)
    assert lengths(0.4) == pytest.approx([0.3, 0.1])  # a first step is as long as told
    assert lengths(1.0, dt_max=0.35) == pytest.approx([0.3, 0.3, 0.35, 0.05])
    assert lengths(0.8, dt_min=0.26) == pytest.approx([0.3, 0.26, 0.24])


def test_a_rejected_last_step_is_not_repeated():
    f = lambda t, y: torch.exp(20 * t)  # noqa: E731
    method = Adams(rtol=1e-3, atol=1e-3, first_step=0.3, controller=IController(shrink=0.9, safety=0.65))
    solution = solve(f, torch.zeros(1, 1, dtype=DOUBLE), 0.0, 1.0, method)
    assert (solution.n_steps > solution.n_accepted).all()
    assert_close(solution.y.item(), (math.exp(20) - 1) / 20, rtol=1e-2, atol=0)


def test_a_solve_in_parts_keeps_its_steps():
    """Where a part ends, its step size is kept, not that of the last step."""
    y0, method = torch.ones(1, 2, dtype=DOUBLE), Adams(rtol=1e6, atol=1e6, first_step=0.3, dt_max=0.3)
    part = solve(pendulum, y0, 0.0, 0.61, method)
    assert part.n_steps == 3
    assert resume(part, pendulum, 1.0, method).n_steps.item() == 2


# ---- where it is hard


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rate", [10.0, 40.0])
def test_decay_does_not_blow_up(order, rate):
    y0 = torch.ones(3, 2, dtype=DOUBLE)
    solution = solve(lambda t, y: -rate * y, y0, 0.0, 3.0, Adams(order))
    assert (solution.y.abs() < 1e-2).all()
    # the higher the order, the smaller the region of stability
    assert (solution.nfe < (30 if order < 6 else 150) * rate).all()


def test_a_stiff_relaxation_follows_its_slow_solution():
    f = lambda t, y: -50 * (y - torch.cos(t)) - torch.sin(t)  # noqa: E731
    solution = solve(f, torch.zeros(1, 1, dtype=DOUBLE), 0.0, 3.0, Adams(rtol=1e-4, atol=1e-4))
    assert_close(solution.y.item(), math.cos(3), rtol=0, atol=1e-3)


def test_statuses():
    y0 = torch.ones(2, 1, dtype=DOUBLE)
    explodes = lambda t, y, power: torch.where(power > 0, y**2, -y)  # noqa: E731 — infinite at t = 1
    power = torch.tensor([[1.0], [0.0]], dtype=DOUBLE)

    def statuses(f=explodes, start=y0, **options):
        solution = solve(f, start, 0.0, 2.0, Adams(**options), sample_args=(power,), throw=False)
        assert_close(solution.y[1].item(), math.exp(-2.0), rtol=0, atol=1e-2)
        assert solution.status[1] == Status.SUCCESS
        return Status(solution.status[0].item())

    assert statuses(max_steps=30) == Status.MAX_STEPS
    assert statuses(dt_min=1e-3) == Status.DT_MIN
    assert statuses(max_steps=100_000) in (Status.STEP_UNDERFLOW, Status.NON_FINITE)
    beyond = lambda t, y, power: torch.where((power > 0) & (t > 0.5), torch.nan, -y)  # noqa: E731
    assert statuses(beyond) == Status.NON_FINITE
    assert statuses(start=torch.tensor([[torch.nan], [1.0]], dtype=DOUBLE)) == Status.NON_FINITE


def test_points_close_together_do_not_disturb_the_next_steps():
    """A step of 1e-7 before a break point: differences of float32 values over it would be rounding alone."""
    y0 = torch.rand(4, 2, generator=torch.Generator().manual_seed(0)) + 0.5
    breaks = torch.tensor([1.0, 1.0 + 1e-7, 2.0, 2.0 + 1e-6], dtype=DOUBLE)
    plain, stepped = (solve(linear, y0, 0.0, 3.0, Adams(rtol=1e-4, atol=1e-4), **o) for o in ({}, {"step_at": breaks}))
    assert (stepped.nfe <= plain.nfe + 8).all()
    assert_close(stepped.y, plain.y, rtol=1e-3, atol=1e-3)


# ---- output


def test_dense_output_save_points_and_records_against_scipy(spans):
    y0, t0, t1 = spans
    inside = torch.lerp(t0[:, None], t1[:, None], torch.tensor([0.9, 0.1, 0.0, 0.55, 1.0]).double())
    solution = solve(pendulum, y0, t0, t1, TIGHT, save_at=inside, dense=True, record=True)
    assert_close(solution.evaluate(inside), solution.saved, rtol=1e-12, atol=1e-12)
    for i in (0, 1, 4):
        order = inside[i].argsort(descending=bool(t1[i] < t0[i]))
        theirs = solve_ivp(
            lambda t, y: [y[1], -np.sin(y[0])],
            (t0[i].item(), t1[i].item()),
            y0[i].numpy(),
            t_eval=inside[i][order].numpy(),
            rtol=1e-11,
            atol=1e-11,
        )
        assert_close(solution.saved[i][order], torch.tensor(theirs.y.T), rtol=1e-7, atol=1e-7)
        steps = solution.steps.t[i]
        assert steps.isfinite().sum() == solution.n_accepted[i]
        assert (solution.steps.ratio[i][steps.isfinite()] <= 1).all()


@pytest.mark.parametrize("order", ORDERS)
def test_dense_output_is_as_accurate_as_the_steps(spans, order):
    y0, t0, t1 = spans
    tolerance = 1e-6 if order > 2 else 1e-4
    inside = torch.lerp(t0[:, None], t1[:, None], torch.linspace(0, 1, 41, dtype=DOUBLE))
    solution = solve(linear, y0, t0, t1, Adams(order, rtol=tolerance, atol=tolerance), save_at=inside)
    expected = y0[:, None] * (inside.sin() - t0.sin()[:, None]).exp()[..., None]
    assert_close(solution.saved, expected, rtol=0, atol=20 * tolerance)


def test_what_is_read_within_steps_does_not_change_their_ends(spans):
    """Values within a step are computed where something reads them."""
    y0, t0, t1 = spans
    plain = solve(linear, y0, t0, t1, TIGHT)
    for options in ({"dense": True}, {"event": lambda t, y: y[:, 0] - 1e3}, {"accumulate": KineticEnergy.accumulate}):
        other = solve(linear, y0, t0, t1, TIGHT, **options)
        assert torch.equal(other.y, plain.y)
        assert torch.equal(other.nfe, plain.nfe)


def test_events_stop_and_change():
    """A ball of height 1 falls with g = 2: it lands at t = 1 with speed 2, and bounces with half the speed."""
    fall = lambda t, y: torch.stack([y[:, 1], torch.full_like(y[:, 1], -2.0)], 1)  # noqa: E731
    y0 = torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    ground = lambda t, y: y[:, 0]  # noqa: E731
    landed = solve(fall, y0, 0.0, math.inf, Adams(), event=Event(ground, "falling"))
    assert_close(landed.t, torch.ones(1, dtype=DOUBLE), rtol=1e-9, atol=1e-9)
    bounce = Event(ground, "falling", change=lambda t, y: torch.stack([0 * y[:, 0], -0.5 * y[:, 1]], 1))
    up = solve(fall, y0, 0.0, 1.5, Adams(rtol=1e-6, atol=1e-6), event=bounce)
    assert_close(up.y, torch.tensor([[0.25, 0.0]], dtype=DOUBLE), rtol=1e-6, atol=1e-6)
    assert up.nfe.item() == 2 + up.n_steps.item()  # f is evaluated again after the bounce


def test_event_times_against_scipy():
    y0 = torch.tensor([[1.0, 0.3], [-0.4, 1.2]], dtype=DOUBLE)
    solution = solve(pendulum, y0, 0.0, 9.0, TIGHT, event=lambda t, y: y[:, 1])
    event = lambda t, y: y[1]  # noqa: E731
    event.terminal = True
    for i in range(2):
        theirs = solve_ivp(
            lambda t, y: [y[1], -np.sin(y[0])], (0, 9), y0[i].numpy(), events=event, rtol=1e-11, atol=1e-11
        )
        assert solution.t[i].item() == pytest.approx(theirs.t[-1], abs=1e-7)


def test_a_jump_starts_the_history_again():
    """Before the jump f is 100·cos; were its values used after it, the first steps there would be rejected often."""
    f = lambda t, y: torch.where(t > 1, torch.ones_like(y), 100 * torch.cos(t)).expand_as(y)  # noqa: E731
    y0 = torch.zeros(2, 1, dtype=DOUBLE)
    solution = solve(f, y0, 0.0, 2.0, Adams(rtol=1e-6, atol=1e-6), jump_at=[1.0], record=True)
    assert_close(solution.y, torch.full_like(y0, 100 * math.sin(1) + 1), rtol=1e-6, atol=1e-6)
    assert ((solution.steps.t > 1).sum(1) < 20).all()
    assert torch.equal(solution.nfe, 2 + solution.n_steps)


def test_sums_over_steps_are_those_of_other_methods(spans):
    y0, t0, t1 = spans
    ours, theirs = (
        solve(pendulum, y0, t0, t1, m(rtol=1e-7, atol=1e-7), accumulate=KineticEnergy.accumulate).accumulated
        for m in (Adams, Dopri5)
    )
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_resume_continues(spans):
    y0, t0, t1 = (x[[0, 1, 3]] for x in spans)
    method = Adams(rtol=1e-7, atol=1e-7)
    first = solve(linear, y0, t0, t1, method)
    second = resume(first, linear, t1 + 1, method)
    assert_close(second.y, exact(y0, t0, t1 + 1), rtol=1e-5, atol=1e-5)
    assert torch.equal(second.nfe, second.n_steps)


# ---- gradients


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, t, y):
        return self.net(y) + torch.sin(t)


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
def test_gradients_are_those_of_dopri5(spans, gradient):
    y0, t0, t1 = spans
    t1 = torch.lerp(t0, t1, 0.25)
    tolerance = 1e-5 if gradient == "backsolve" else 1e-7
    f, weights = Field(), torch.linspace(-1, 1, 10, dtype=DOUBLE).reshape(5, 2)

    def grads(method, gradient):
        leaves = [x.clone().requires_grad_() for x in (y0, t0, t1)]
        solution = solve(f, *leaves, method, gradient=gradient, save_at=torch.lerp(t0, t1, 0.5)[:, None])
        loss = (weights * solution.y).sum() + solution.saved.square().sum()
        return torch.autograd.grad(loss, [*leaves, *f.parameters()])

    expected = grads(Dopri5(rtol=1e-8, atol=1e-8), "direct")
    for got, want in zip(grads(Adams(rtol=tolerance, atol=tolerance), gradient), expected, strict=True):
        assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_checkpoint_recomputes_the_same_gradients(spans):
    y0, t0, t1 = spans
    f = Field()
    method, found = Adams(rtol=1e-4, atol=1e-4), []
    for gradient in ("direct", "checkpoint"):
        y = solve(f, y0, t0, t1, method, gradient=gradient).y
        found.append(torch.autograd.grad(y.square().sum(), tuple(f.parameters())))
    assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_gradients_of_the_discrete_solve():
    """Against finite differences, with the step sizes held: a fixed length that every step accepts."""
    method = Adams(rtol=1e3, atol=1e3, first_step=0.1, dt_max=0.1)
    y0 = torch.tensor([[0.7, -0.2]], dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: solve(pendulum, y, 0.0, 1.0, method).y, (y0,))


def test_gradients_through_step_sizes():
    y0 = torch.tensor([[0.7, -0.2]], dtype=DOUBLE, requires_grad=True)
    solve_ = lambda y: solve(pendulum, y, 0.0, 2.0, Adams(rtol=1e-4, atol=1e-4), differentiate_step_sizes=True).y  # noqa: E731
    assert torch.autograd.gradcheck(solve_, (y0,), eps=1e-7, atol=1e-4)


# ---- states, blocks, arguments


@pytest.mark.parametrize("order", ORDERS)
def test_states_of_every_kind(order):
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.complex128):
        y0 = torch.ones(3, 2, 2, dtype=dtype)
        y = solve(lambda t, y: -y, y0, 0.0, 1.0, Adams(order)).y
        assert y.dtype == dtype
        assert_close(y.abs().double(), torch.full(y0.shape, math.exp(-1)).double(), rtol=2e-2, atol=2e-2)
    parts = solve(
        lambda t, y: {"a": -y["a"], "b": y["a"]}, {"a": torch.ones(3, 1), "b": torch.zeros(3, 1)}, 0, 1, TIGHT
    )
    assert_close(parts.y["b"], torch.full((3, 1), 1 - math.exp(-1)), rtol=1e-5, atol=1e-5)
    assert solve(lambda t, y: -y, torch.ones(0, 2), 0.0, 1.0, Adams(order)).y.shape == (0, 2)
    one = solve(lambda t, y: -y, torch.ones(2, 2), 0.0, 1.0, Adams(order), batched=False)
    assert one.nfe.ndim == 0


def test_a_block_takes_it():
    block = NeuralODE(Field(), Adams(rtol=1e-5, atol=1e-5))
    y0 = torch.rand(6, 2, dtype=DOUBLE)
    expected = NeuralODE(block.f, Dopri5(rtol=1e-8, atol=1e-8))(y0)
    assert_close(block(y0), expected, rtol=1e-3, atol=1e-3)


def test_values_print_and_compare():
    assert str(Adams()) == "Adams"
    assert str(Adams(3, rtol=1e-2)) == "Adams(rtol=0.01, order=3)"
    assert str(Adams(7)) == "Adams(order=7)"
    assert replace(Adams(7), order=4) == Adams()
    assert len({Adams(), Adams(3), Adams(order=3)}) == 2


def test_high_orders_take_longer_steps():
    """Than with the controller of the others, which stays that of `Adams(4)`."""
    steady = PIController(safety=0.65, proportional=0.1, integral=0.9)
    y0 = torch.rand(6, 2, dtype=DOUBLE)
    for order in (4, 7):
        own, other = (
            solve(Field(), y0, 0.0, 1.0, Adams(order, rtol=1e-8, atol=1e-8, controller=controller))
            for controller in (None, steady)
        )
        assert_close(own.y, other.y, rtol=1e-6, atol=1e-6)
        assert (own.nfe < other.nfe).all() if order == 7 else (own.nfe == other.nfe).all()


@pytest.mark.parametrize("order", [1, 9, 0, 2.0, True, "4"])
def test_orders_that_there_are_not(order):
    with pytest.raises(ValueError, match="order: expected a whole number from 2 to 8, got"):
        Adams(order)


def test_one_step_alone_is_refused():
    with pytest.raises(TypeError, match="integrator: expected one Runge–Kutta method"):
        step(linear, 0.0, torch.ones(1, 1), 0.1, Adams())
