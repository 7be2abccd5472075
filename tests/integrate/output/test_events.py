"""Events: where samples stop, when, and what that time's gradient is."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from dise import RK4, RKC1, Adams, Bosh3, Cascade, Dopri5, Dynamic, Euler, Event, NeuralODE, SolveError, Status, solve

TIGHT = Dopri5(rtol=1e-11, atol=1e-11)
COARSE = Dopri5(rtol=0.1, atol=0.1, first_step="span")
ALL = [Euler(3), RK4(3), RKC1(3), Bosh3(rtol=1e-3, atol=1e-3), Dopri5(rtol=1e-4, atol=1e-4), Adams()]
every = pytest.mark.parametrize("integrator", ALL, ids=str)


def rows(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def decay(t, y, rate):
    """y = y0·exp(−rate·t)."""
    return -rate * y


def level(t, y, rate):
    return y[:, 0] - 1


def thrown(t, y):
    """Height and speed of a ball, g = 9.81 m/s²."""
    return torch.stack([y[:, 1], -9.81 + 0 * y[:, 1]], 1)


def on_the_ground(t, y):
    return y[:, 0]


# ---- closed forms


def test_a_decay_reaches_a_level():
    """y0·exp(−r t) = 1 at t* = ln(y0)/r; dt*/dy0 = 1/(r y0), dt*/dr = −t*/r, and y* stays 1 whatever moves."""
    y0, rate = rows([2.0], [5.0], [9.0]).requires_grad_(), rows([0.5], [1.0], [2.0]).requires_grad_()
    solution = solve(decay, y0, 0.0, 10.0, TIGHT, sample_args=(rate,), event=level)
    start, r = y0.detach().flatten(), rate.detach().flatten()
    assert solution.event.tolist() == [True] * 3
    assert_close(solution.t, start.log() / r, rtol=1e-9, atol=1e-9)
    assert_close(solution.y.flatten(), torch.ones(3).double(), rtol=1e-12, atol=1e-12)
    of_y0, of_rate = torch.autograd.grad(solution.t.sum(), (y0, rate), retain_graph=True)
    assert_close(of_y0.flatten(), 1 / (r * start), rtol=1e-7, atol=1e-7)
    assert_close(of_rate.flatten(), -start.log() / r**2, rtol=1e-7, atol=1e-7)
    for gradient in torch.autograd.grad(solution.y.sum(), (y0, rate)):
        assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)


def test_second_derivatives_of_the_time():
    """d²t*/dy0² = −1/(r y0²)."""
    y0, rate = rows([2.0]).requires_grad_(), rows([0.5])
    t = solve(decay, y0, 0.0, 10.0, TIGHT, sample_args=(rate,), event=level).t
    (first,) = torch.autograd.grad(t.sum(), y0, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), y0)
    assert second.item() == pytest.approx(-1 / (0.5 * 4), rel=1e-5)


def test_a_ball_falls_for_a_known_time_and_arrives_at_a_known_speed():
    """From height h at speed v: t* = (v + √(v² + 2 g h))/g, and it arrives at −√(v² + 2 g h)."""
    start = rows([10.0, 0.0], [2.0, 3.0], [0.5, -4.0]).requires_grad_()
    solution = solve(thrown, start, 0.0, 20.0, Dopri5(rtol=1e-8, atol=1e-8), event=on_the_ground)
    exact = start.detach().requires_grad_()
    arrival = (exact[:, 1] ** 2 + 2 * 9.81 * exact[:, 0]).sqrt()
    t = (exact[:, 1] + arrival) / 9.81
    assert_close(solution.t, t, rtol=1e-12, atol=1e-12)
    assert_close(solution.y[:, 1], -arrival, rtol=1e-12, atol=1e-12)
    for ours, theirs in ((solution.t, t), (solution.y[:, 1], -arrival)):
        expected = torch.autograd.grad(theirs.sum(), exact, retain_graph=True)
        assert_close(torch.autograd.grad(ours.sum(), start, retain_graph=True), expected, rtol=1e-9, atol=1e-9)


def test_a_ball_bounces():
    """Restarting at each bounce with 0.8 of the speed gives the geometric series of bounce times."""
    y, t = rows([1.0, 0.0], [2.0, 0.0]), torch.zeros(2, dtype=torch.float64)
    times = []
    for _ in range(4):
        solution = solve(thrown, y, t, math.inf, Dopri5(), event=Event(on_the_ground, "falling"))
        t, y = solution.t, solution.y * rows([1.0, -0.8])
        times.append(t)
    first = (2 * rows(1.0, 2.0) / 9.81).sqrt()
    expected = torch.stack([first * (1 + 2 * sum(0.8**k for k in range(1, n + 1))) for n in range(4)])
    assert_close(torch.stack(times), expected, rtol=1e-9, atol=1e-9)


def test_an_event_in_time_alone():
    solution = solve(thrown, rows([1.0, 0.0]), 0.0, 3.0, RK4(4), event=lambda t, y: t[:, 0] - 1.3)
    assert solution.t.item() == pytest.approx(1.3, rel=1e-14)
    assert solution.y[0].tolist() == pytest.approx([1 - 9.81 / 2 * 1.3**2, -9.81 * 1.3])


# ---- beside SciPy


@pytest.mark.host
@pytest.mark.parametrize(("direction", "sign"), [("any", 0), ("rising", 1), ("falling", -1)])
@pytest.mark.parametrize("t1", [12.0, -12.0])
def test_scipys_events_agree(direction, sign, t1):
    starts = rows([2.0, 0.0], [0.3, -1.0], [-3.0, 2.0])

    def f(t, y):
        return torch.stack([y[:, 1], torch.cos(2 * t[:, 0]) - y[:, 0].sin()], 1)

    solution = solve(f, starts, 0.0, t1, TIGHT, event=Event(lambda t, y: y[:, 0] - 0.25, direction))
    assert solution.event.any()
    for i, y0 in enumerate(starts):
        crossing = lambda t, y: y[0] - 0.25  # noqa: E731
        crossing.terminal, crossing.direction = True, sign
        field = lambda t, y: (y[1], math.cos(2 * t) - math.sin(y[0]))  # noqa: E731
        options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-12, "events": crossing}
        theirs = scipy.integrate.solve_ivp(field, (0.0, t1), y0.numpy(), **options)
        assert bool(solution.event[i]) == (theirs.status == 1)
        np.testing.assert_allclose(solution.t[i].item(), theirs.t[-1], rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(solution.y[i].numpy(), theirs.y[:, -1], rtol=1e-7, atol=1e-7)


# ---- gradients against finite differences


@pytest.mark.host
@pytest.mark.parametrize(
    ("integrator", "batched"), [(Euler(3), True), (RK4(2), False), (COARSE, True), (COARSE, False)], ids=str
)
def test_gradients_in_all_that_the_time_depends_on(integrator, batched):
    """The function's own parameter, the state, f's parameter, and where the span starts and ends."""

    def function(y0, t0, t1, weight, threshold):
        def event(t, y, weight, threshold):
            return (y**2).sum(-1) + 0.1 * t.reshape(y.shape[:-1]) - threshold

        f = lambda t, y, weight, threshold: torch.tanh(y @ weight) + y + 0.1 * t  # noqa: E731
        options = {"args": (weight, threshold), "event": event, "batched": batched}
        s = solve(f, y0, t0, t1, integrator, **options)
        assert s.event.all()
        return s.t, s.y

    y0 = rows([0.5, -0.3], [0.2, 0.4]) if batched else rows(0.5, -0.3)
    times = (rows(0.1, 1.0), rows(2.0, 2.5)) if batched else (rows(0.1)[0], rows(2.0)[0])
    weight = rows([0.3, 0.1], [-0.2, 0.4])
    inputs = tuple(x.requires_grad_() for x in (y0, *times, weight, rows(0.9)[0]))
    assert gradcheck(function, inputs, atol=1e-7, rtol=1e-6)
    assert gradgradcheck(function, inputs, atol=1e-6, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("gradient", ["checkpoint", "backsolve"])
def test_other_gradients_are_the_direct_ones(gradient):
    y0, rate = rows([2.0], [5.0], [0.5]).requires_grad_(), rows([0.5], [1.0], [2.0]).requires_grad_()

    def gradients(gradient):
        options = {"sample_args": (rate,), "event": level, "save_at": [0.1, 0.5], "gradient": gradient}
        s = solve(decay, y0, 0.0, 4.0, TIGHT, **options)
        assert s.event.tolist() == [True, True, False]
        return torch.autograd.grad(s.t[:2].sin().sum() + s.y.sum() + s.saved.cos().sum(), (y0, rate))

    assert_close(gradients(gradient), gradients("direct"), rtol=1e-7, atol=1e-7)


def test_save_points_before_the_event_have_gradients_and_are_nan_after():
    y0, rate = rows([2.0], [5.0]).requires_grad_(), rows([0.5], [1.0])
    times = rows(0.5, 1.0, 3.0)
    solution = solve(decay, y0, 0.0, 4.0, TIGHT, sample_args=(rate,), event=level, save_at=times, dense=True)
    expected = y0[:, None] * torch.exp(-rate[:, None] * times[:, None])
    assert_close(solution.saved[:, :2], expected[:, :2], rtol=1e-7, atol=1e-7)
    assert solution.saved[:, 2].isnan().all()
    assert_close(solution.evaluate(solution.t.detach()[:, None])[:, 0], solution.y)
    assert_close(torch.autograd.grad(solution.saved[:, :2].sum(), y0), torch.autograd.grad(expected[:, :2].sum(), y0))


def test_without_a_slope_the_time_is_known_and_its_gradient_is_not_small():
    """g = (y − 1)³ touches 0 flatly: dt*/dy0 would be infinite."""
    y0 = rows([2.0]).requires_grad_()
    event = lambda t, y, rate: (y[:, 0] - 1) ** 3  # noqa: E731
    t = solve(decay, y0, 0.0, 9.0, TIGHT, args=(1.0,), event=event).t
    assert t.item() == pytest.approx(math.log(2), abs=1e-4)
    assert t.isfinite().all()


def test_no_graph_unless_something_needs_one():
    plain = solve(decay, rows([2.0]), 0.0, 9.0, TIGHT, args=(1.0,), event=level)
    assert not plain.t.requires_grad
    with torch.no_grad():
        assert not solve(decay, rows([2.0]).requires_grad_(), 0.0, 9.0, TIGHT, args=(1.0,), event=level).t.requires_grad
    with torch.inference_mode():
        assert_close(solve(decay, rows([2.0]), 0.0, 9.0, TIGHT, args=(1.0,), event=level).t, plain.t)


# ---- each sample on its own


@every
@pytest.mark.parametrize("drop_finished", [True, False])
def test_solo_is_batched(integrator, drop_finished):
    y0, rate = rows([2.0], [0.5], [9.0], [3.0]), rows([1.0], [1.0], [0.2], [-1.0])
    t0, t1 = rows(0.0, 1.0, 3.0, 2.0), rows(2.0, 2.0, 3.0, -4.0)
    options = {"event": level, "drop_finished": drop_finished}
    together = solve(decay, y0, t0, t1, integrator, sample_args=(rate,), **options)
    assert together.event.tolist() == [True, False, False, True]
    assert together.status.tolist() == [0] * 4
    assert together.t[1:3].tolist() == t1[1:3].tolist()
    for i in range(4):
        row = slice(i, i + 1)
        alone = solve(decay, y0[row], t0[row], t1[row], integrator, sample_args=(rate[row],), **options)
        for name in ("y", "t", "event", "n_steps", "nfe", "error"):
            assert_close(getattr(together, name)[row], getattr(alone, name), rtol=1e-12, atol=1e-12, equal_nan=True)


def test_a_stopped_sample_costs_nothing_more(record):
    f = record(decay)
    y0, options = rows([1.01], [1e9]), {"args": (1.0,), "event": level}
    solution = solve(f, y0, 0.0, 3.0, Dopri5(rtol=1e-6, atol=1e-6), **options)
    assert solution.event.tolist() == [True, False]
    assert f.rows == solution.nfe.sum()
    assert solution.nfe[0] < solution.nfe[1]


def test_a_failing_neighbour_is_not_noticed():
    y0 = rows([2.0], [math.nan], [3.0])
    beside = solve(decay, y0, 0.0, 9.0, TIGHT, args=(1.0,), event=level, throw=False)
    assert beside.event.tolist() == [True, False, True]
    assert beside.status.tolist() == [0, Status.NON_FINITE, 0]
    assert_close(beside.t[[0, 2]], rows(2.0, 3.0).log(), rtol=1e-9, atol=1e-9)


def test_a_block_and_dynamic_pass_it_on(tanh_field):
    y0 = torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    f, event = tanh_field(3), lambda t, y: y[:, 0] - t[:, 0]
    candidates = (RK4(5), Dopri5(rtol=1e-6, atol=1e-6))
    choice = torch.tensor([0, 1, 1, 0])
    scores = lambda h0, k1: 1.0 - torch.nn.functional.one_hot(choice, 2)  # noqa: E731
    solution = NeuralODE(f, Dynamic(candidates, scores), t1=3.0).solve(y0, event=event)
    assert solution.event.any()
    for i in range(4):
        alone = solve(f, y0[i : i + 1], 0.0, 3.0, candidates[choice[i]], event=event)
        assert_close(solution.t[i : i + 1], alone.t, rtol=1e-12, atol=1e-12)
        assert_close(solution.y[i : i + 1], alone.y, rtol=1e-12, atol=1e-12)


def test_tuple_states():
    f = lambda t, y: (y[1], -9.81 + 0 * y[1])  # noqa: E731
    y0 = (rows(10.0, 1.0), rows(0.0, 0.0))
    solution = solve(f, y0, 0.0, 20.0, Dopri5(), event=lambda t, y: y[0])
    assert_close(solution.t, (2 * y0[0] / 9.81).sqrt(), rtol=1e-12, atol=1e-12)


# ---- where crossings are


def circle(t, y):
    """y = (sin t, cos t) from (0, 1)."""
    return torch.stack([y[:, 1], -y[:, 0]], 1)


def test_a_start_on_the_surface_is_no_crossing():
    """sin t leaves 0 at t = 0 and comes back at π."""
    solution = solve(circle, rows([0.0, 1.0]), 0.0, 5.0, Dopri5(rtol=1e-9, atol=1e-9), event=on_the_ground)
    assert solution.t.item() == pytest.approx(math.pi, rel=1e-7)


@pytest.mark.parametrize(("direction", "t"), [("any", math.pi), ("falling", math.pi), ("rising", 2 * math.pi)])
def test_direction(direction, t):
    event = Event(on_the_ground, direction)
    assert solve(circle, rows([0.0, 1.0]), 0.0, 9.0, TIGHT, event=event).t.item() == pytest.approx(t, rel=1e-9)


def test_of_three_crossings_in_one_step_the_first_is_found():
    step = Dopri5(rtol=1, atol=1e3, first_step="span")
    f = lambda t, y: 3 * t**2 - 12 * t + 11 + 0 * y  # noqa: E731  # y = (t − 1)(t − 2)(t − 3) from −6
    solution = solve(f, rows([-6.0]), 0.0, 4.0, step, event=on_the_ground)
    assert solution.n_steps.item() == 1
    assert solution.t.item() == pytest.approx(1, rel=1e-12)
    falling = solve(f, rows([-6.0]), 0.0, 2.5, step, event=Event(on_the_ground, "falling"))
    assert falling.t.item() == pytest.approx(2, rel=1e-12)


def test_a_crossing_at_the_end_of_the_span():
    solution = solve(lambda t, y: 0 * y + 1, rows([-1.0]), 0.0, 1.0, Euler(2), event=on_the_ground)
    assert solution.event.item()
    assert (solution.t.item(), solution.y.item()) == (1.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_located_to_rounding(dtype):
    y0 = torch.linspace(1.1, 9, 50, dtype=dtype)[:, None]
    solution = solve(decay, y0, 0.0, 9.0, Dopri5(rtol=1e-3, atol=1e-3), args=(1.0,), event=level)
    assert (solution.y - 1).abs().max() <= 8 * torch.finfo(dtype).eps
    assert solution.t.dtype == torch.float64


# ---- an endless span


def test_an_endless_span_ends_in_the_event():
    solution = solve(decay, rows([2.0], [1e6]), 0.0, math.inf, TIGHT, args=(0.01,), event=level)
    assert_close(solution.t, 100 * rows(2.0, 1e6).log(), rtol=1e-8, atol=1e-8)
    back = solve(decay, rows([2.0]), 5.0, -math.inf, TIGHT, args=(-0.01,), event=level)
    assert back.t.item() == pytest.approx(5 - 100 * math.log(2), rel=1e-8)


@pytest.mark.parametrize("f", [lambda t, y: 0 * y, lambda t, y: y / (1 + t**2), lambda t, y: y * math.nan])
@pytest.mark.parametrize("y0", [2.0, math.nan])
def test_an_endless_span_without_event_ends_in_an_error(f, y0):
    with pytest.raises(SolveError, match="samples failed"):
        solve(f, rows([y0]), 0.0, math.inf, Dopri5(max_steps=2000), event=lambda t, y: y[:, 0] - 1)


@pytest.mark.parametrize("integrator", [RK4(3), Dopri5(first_step="span")], ids=str)
def test_an_endless_span_has_no_parts(integrator):
    with pytest.raises(ValueError, match="t1: expected finite times"):
        solve(decay, rows([2.0]), 0.0, math.inf, integrator, args=(1.0,), event=level)


def test_an_endless_span_needs_an_event():
    with pytest.raises(ValueError, match="t1: expected finite times, got inf"):
        solve(decay, rows([2.0]), 0.0, math.inf, TIGHT, args=(1.0,))


# ---- what is wrong is named


@pytest.mark.parametrize(
    ("event", "error", "message"),
    [
        (lambda t, y: y, ValueError, r"event: expected shape \(2,\), one number per sample, got \(2, 3\)"),
        (lambda t, y: y[:, :1], ValueError, r"event: expected shape \(2,\), one number per sample, got \(2, 1\)"),
        (lambda t, y: y.sum(), ValueError, r"event: expected shape \(2,\), one number per sample, got \(\)"),
        (lambda t, y: None, TypeError, "event: expected a tensor of real numbers or bool, got NoneType"),
        (lambda t, y: 1.0, TypeError, "event: expected a tensor of real numbers or bool, got float"),
        (lambda t, y: y[:, 0].long(), TypeError, "event: expected a tensor of real numbers or bool, got torch.int64"),
        (lambda t, y: y[:, 0] * 1j, TypeError, "event: expected a tensor of real numbers or bool, got torch.complex64"),
        (1.0, TypeError, r"event: expected a function of \(t, y\), got float"),
        (True, TypeError, r"event: expected a function of \(t, y\), got bool"),
        ([], TypeError, "event: expected at least one event"),
        ({1: lambda t, y: y[:, 0]}, TypeError, "event: expected at least one event, in a dict with names as keys"),
        ([lambda t, y: y[:, 0], 1.0], TypeError, r"event: expected a function of \(t, y\), got float"),
    ],
)
def test_a_bad_event_is_named(event, error, message):
    with pytest.raises(error, match=message):
        solve(lambda t, y: -y, torch.ones(2, 3), 0.0, 1.0, RK4(2), event=event)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"direction": "up"}, ValueError, "direction: expected 'any', 'rising' or 'falling', got 'up'"),
        ({"terminal": 0}, ValueError, "terminal: expected a whole number of at least 1, got 0"),
        ({"terminal": "yes"}, ValueError, "terminal: expected a whole number of at least 1, got 'yes'"),
        ({"change": 1.0}, TypeError, r"change: expected a function of \(t, y\), got float"),
        ({"change": lambda t, y: y, "terminal": True}, ValueError, "change: the first event stops the sample"),
        ({"change": lambda t, y: y, "terminal": 1}, ValueError, "change: the first event stops the sample"),
    ],
)
def test_a_bad_option_of_an_event_is_named(options, error, message):
    with pytest.raises(error, match=message):
        Event(on_the_ground, **options)


def test_one_system_has_one_number():
    with pytest.raises(ValueError, match=r"event: expected shape \(\), one number per sample, got \(2,\)"):
        solve(lambda t, y: -y, torch.ones(2, 3), 0.0, 1.0, RK4(2), event=lambda t, y: y[:, 0], batched=False)


def test_a_cascade_has_no_events():
    with pytest.raises(ValueError, match="event: Cascade"):
        solve(decay, rows([2.0]), 0.0, 1.0, Cascade([RK4(1)], lambda y: y[:, 0] > 0), args=(1.0,), event=level)
