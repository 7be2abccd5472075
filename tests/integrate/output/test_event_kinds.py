"""Several events, events that change the state, bool conditions, steady states: what happens, when, and to whom."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from dise import RK4, Bosh3, Cascade, Dopri5, Dynamic, Euler, Event, NeuralODE, SolveError, SteadyState, Tsit5, solve

G = 9.81
TIGHT = Dopri5(rtol=1e-10, atol=1e-10)


def rows(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def thrown(t, y, *args):
    """Height and speed of a ball."""
    return torch.stack([y[:, 1], -G + 0 * y[:, 1]], 1)


def height(t, y, *args):
    return y[:, 0]


def bounce(t, y, restitution):
    return torch.stack([0 * y[:, 0], -restitution[:, 0] * y[:, 1]], 1)


def bounces(number, **options):
    return Event(height, "falling", change=bounce, terminal=number, **options)


def bounce_times(h, restitution, number):
    """[B, number] times of the bounces of balls that fall from heights h [B]: t_n = √(2h/g)·(1 + 2 Σ_{k≤n} r^k)."""
    powers = torch.stack([restitution**k for k in range(1, number)], 1) if number > 1 else h[:, None][:, :0]
    flights = torch.cat([torch.ones_like(h)[:, None], 2 * powers], 1)
    return (2 * h / G).sqrt()[:, None] * flights.cumsum(1)


def circle(t, y, *args):
    """y = (sin t, cos t) from (0, 1)."""
    return torch.stack([y[:, 1], -y[:, 0]], 1)


# ---- changes of state


def test_a_thousand_balls_bounce_fifty_times_in_one_solve():
    h, restitution = torch.linspace(0.5, 5, 1000).double(), torch.linspace(0.7, 0.95, 1000).double()
    y0, event = torch.stack([h, 0 * h], 1), bounces(50)
    with torch.no_grad():
        solution = solve(thrown, y0, 0.0, math.inf, Dopri5(), sample_args=(restitution[:, None],), event=event)
    assert solution.event.all()
    assert solution.events.t.shape == (1000, 50)
    assert_close(solution.events.t, bounce_times(h, restitution, 50), rtol=0, atol=1e-8)
    slowest = int(solution.n_steps.argmax())
    row = slice(slowest, slowest + 1)
    alone = solve(thrown, y0[row], 0.0, math.inf, Dopri5(), sample_args=(restitution[row, None],), event=event)
    evaluations = solution.calls - 2
    assert evaluations <= 1.2 * (alone.calls - 2)
    assert solution.n_steps.max() == alone.n_steps.item()


@pytest.mark.parametrize("integrator", [Dopri5(), Bosh3(), Tsit5(rtol=1e-6, atol=1e-6), RK4(7)], ids=str)
@pytest.mark.parametrize("drop_finished", [True, False])
def test_balls_with_their_own_spans(integrator, drop_finished):
    """Their states at the ends of their spans, forwards and backwards, for methods that are exact for parabolas."""
    h, restitution = rows(1.0, 2.0, 3.0, 1.0), rows(0.8, 0.6, 0.9, 0.7)
    t0, t1 = rows(0.0, 1.0, -1.0, 2.0), rows(1.7, 3.0, 3.2, 2.0)
    y0, options = torch.stack([h, 0 * h], 1), {"drop_finished": drop_finished, "event": bounces(False)}
    solution = solve(thrown, y0, t0, t1, integrator, sample_args=(restitution[:, None],), **options)
    assert not solution.event.any()
    times = bounce_times(h, restitution, 9) + t0[:, None]
    number = (times < t1[:, None]).sum(1)
    assert number.tolist() == (solution.events.which >= 0).sum(1).tolist()
    for i in range(4):
        assert_close(solution.events.t[i, : number[i]], times[i, : number[i]], rtol=0, atol=1e-12)
        if number[i]:
            last, speed = times[i, number[i] - 1], (2 * G * h[i]).sqrt() * restitution[i] ** number[i]
            since = t1[i] - last
            expected = torch.stack([speed * since - G / 2 * since**2, speed - G * since])
            assert_close(solution.y[i], expected, rtol=0, atol=1e-11)
        row = slice(i, i + 1)
        options["sample_args"] = (restitution[row, None],)
        alone = solve(thrown, y0[row], t0[row], t1[row], integrator, **options)
        for name in ("y", "t", "nfe", "n_steps", "status"):
            assert_close(getattr(solution, name)[row], getattr(alone, name), rtol=1e-12, atol=1e-12)


def test_evaluations_of_f(record):
    """Each restart of a method with "first same as last" needs one; searching needs none."""
    f, event = record(thrown), Event(height, "falling", change=lambda t, y: -0.9 * y, terminal=9)
    solution = solve(f, rows([1.0, 0.0], [4.0, 1.0]), 0.0, math.inf, Dopri5(), event=event)
    assert solution.nfe.tolist() == (2 + 6 * solution.n_steps + 8).tolist()
    assert f.rows == solution.nfe.sum()
    f, event = record(thrown), Event(height, "falling", change=lambda t, y: -0.9 * y)
    solution = solve(f, rows([1.0, 0.0], [4.0, 1.0]), 0.0, 3.0, RK4(9), event=event)
    assert f.rows == solution.nfe.sum() == 4 * solution.n_steps.sum()


@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_gradients_through_bounces(gradient):
    """Of times, states, save points and the end, in the heights, the restitution and the span."""
    restitution = rows([0.8], [0.6]).requires_grad_()
    h, t1 = rows(1.0, 2.0).requires_grad_(), rows(1.7, 1.8).requires_grad_()
    times = bounce_times(h, restitution[:, 0], 3)
    speed = (2 * G * h).sqrt() * restitution[:, 0] ** 2
    since = t1 - times[:, 1]
    exact = (times[:, :2], speed * since - G / 2 * since**2, speed - G * since)
    y0, options = torch.stack([h, 0 * h], 1), {"event": bounces(False), "gradient": gradient}
    solution = solve(thrown, y0, 0.0, t1, Dopri5(), sample_args=(restitution,), save_at=[1.6], **options)
    since = 1.6 - times[:, 1]
    exact = (*exact, speed * since - G / 2 * since**2)
    ours = (solution.events.t[:, :2], solution.y[:, 0], solution.y[:, 1], solution.saved[:, 0, 0])
    for x, expected in zip(ours, exact, strict=True):
        assert_close(x, expected, rtol=1e-10, atol=1e-10)
        for weight in (1.0, rows(0.3, -1.7)):
            sums = ((value.movedim(0, -1) * weight).sum() for value in (x, expected))
            grads = [torch.autograd.grad(s, (h, restitution, t1), retain_graph=True, allow_unused=True) for s in sums]
            for of_x, of_exact, source in zip(*grads, (h, restitution, t1), strict=True):
                none = torch.zeros_like(source)
                of_x, of_exact = (none if grad is None else grad for grad in (of_x, of_exact))
                assert_close(of_x, of_exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("integrator", [RK4(4), Dopri5(rtol=1e-11, atol=1e-11)], ids=str)
def test_gradients_are_those_of_finite_differences(integrator):
    """A nonlinear field, a parameter in the event's function and in its change, and one more event on the way."""

    def run(y0, weight, level):
        f = lambda t, y, w, level: torch.tanh(y @ w) + torch.stack([y[:, 1], -y[:, 0]], 1) + 0.1 * t  # noqa: E731
        change = lambda t, y, w, level: y * (level - 1) + 0.1 * t  # noqa: E731
        events = {
            "kick": Event(lambda t, y, w, level: y[:, 0] - level, change=change),
            "seen": Event(lambda t, y, w, level: y[:, 1] + 0.2, terminal=False),
        }
        s = solve(f, y0, 0.0, 3.0, integrator, args=(weight, level), event=events, save_at=[0.7, 2.5])
        assert {0, 1} <= set(s.events.which.flatten().tolist())
        return s.y, s.saved, s.events.t.nan_to_num(), s.events.y.nan_to_num()

    inputs = (rows([0.5, -0.3], [0.2, 0.9]), rows([0.3, 0.1], [-0.2, 0.4]), rows(0.6)[0])
    assert gradcheck(run, tuple(x.requires_grad_() for x in inputs), atol=1e-6, rtol=1e-5, fast_mode=True)


def test_a_thermostat_switches_on_and_off():
    """T' = −T, or 2 − T while the heating is on; it is switched at .5 and 1: logarithms, and a field that jumps."""

    def f(t, y):
        return torch.stack([2 * y[:, 1] - y[:, 0], 0 * y[:, 1]], 1)

    cold = Event(lambda t, y: y[:, 0] - 0.5, "falling", change=lambda t, y: torch.stack([y[:, 0], 0 * y[:, 1] + 1], 1))
    warm = Event(lambda t, y: y[:, 0] - 1.0, "rising", change=lambda t, y: torch.stack([y[:, 0], 0 * y[:, 1]], 1))
    solution = solve(f, rows([1.2, 0.0], [0.8, 1.0]), 0.0, 4.0, TIGHT, event={"cold": cold, "warm": warm})
    off, on = math.log(2), math.log(1.5 / 1)
    first = [math.log(1.2 / 0.5), math.log((2 - 0.8) / 1)]
    assert solution.events.of("cold").t[0, :3].tolist() == pytest.approx([first[0] + k * (on + off) for k in range(3)])
    assert solution.events.of("warm").t[1, :3].tolist() == pytest.approx([first[1] + k * (on + off) for k in range(3)])
    assert solution.events.which[1, :4].tolist() == [1, 0, 1, 0]
    assert solution.events.names == ("cold", "warm")


def test_beside_scipy_restarted_by_hand(tanh_field):
    f, y0 = tanh_field(2), torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    change = lambda t, y: y * rows(0.5, -1.5)  # noqa: E731
    solution = solve(
        f, y0, 0.0, 6.0, TIGHT, event=Event(lambda t, y: y[:, 0].sin() + 0.1 * t[:, 0] - 0.6, change=change)
    )
    assert solution.events.t.shape[1] > 1
    t, y = 0.0, y0[0].numpy()

    def crossing(t, y):
        return np.sin(y[0]) + 0.1 * t - 0.6

    crossing.terminal = True
    field = lambda t, y: f(torch.tensor([[t]]).double(), torch.tensor(y)[None]).detach().numpy()[0]  # noqa: E731
    for expected in [*solution.events.t[0].tolist(), 6.0]:
        theirs = scipy.integrate.solve_ivp(field, (t, 6.0), y, method="DOP853", rtol=1e-11, atol=1e-11, events=crossing)
        assert expected == pytest.approx(theirs.t[-1], abs=1e-7)
        t, y = theirs.t[-1], theirs.y[:, -1]
        last, y = y, y * np.array([0.5, -1.5]) if t < 6 else y
    np.testing.assert_allclose(solution.y[0].detach(), last, atol=1e-6)


def test_a_kick_at_a_known_time_does_not_happen_again():
    """g = t − 1 is 0 but for rounding after the kick, and then positive."""
    kick = Event(lambda t, y: t[:, 0] - 1.0, change=lambda t, y: y + 1)
    for direction in ("any", "rising"):
        event = Event(kick.function, direction, change=kick.change)
        solution = solve(lambda t, y: 0 * y, rows([2.0]), 0.0, 3.0, Dopri5(), event=event)
        assert solution.events.t.tolist() == [[pytest.approx(1.0)]]
        assert solution.y.item() == 3.0


def test_a_change_at_the_end_of_the_span_is_made():
    event = Event(lambda t, y: t[:, 0] - 1.0, change=lambda t, y: y + 1)
    for integrator in (Dopri5(), Euler(2)):
        solution = solve(lambda t, y: 0 * y, rows([2.0]), 0.0, 1.0, integrator, event=event, save_at=[1.0])
        assert solution.t.item() == 1.0
        assert solution.y.item() == 3.0
        assert solution.saved.item() == 2.0  # the state just before


def test_save_points_and_dense_output_across_changes():
    """Left limits at the event's time; the right one is the event's own change of it."""
    restitution, h = rows([0.8], [0.6]), rows(1.0, 2.0)
    times = torch.linspace(0, 2, 41).double()
    y0, options = torch.stack([h, 0 * h], 1), {"sample_args": (restitution,), "event": bounces(False)}
    solution = solve(thrown, y0, 0.0, 2.0, Dopri5(), save_at=times, dense=True, record=True, **options)
    bounced = bounce_times(h, restitution[:, 0], 6)
    for i in range(2):
        n = (bounced[i] < times[:, None]).sum(1)
        before = torch.cat([-((2 * h[i] / G).sqrt()[None]), bounced[i]])[n]
        speed = (2 * G * h[i]).sqrt() * restitution[i, 0] ** n
        exact = speed * (times - before) - G / 2 * (times - before) ** 2
        assert_close(solution.saved[i, :, 0], exact, rtol=0, atol=1e-10)
    assert_close(solution.evaluate(times), solution.saved, rtol=1e-12, atol=1e-12)
    t = solution.events.t.nan_to_num(nan=2.0)
    at_events = solution.evaluate(t)
    happened = solution.events.which >= 0
    assert_close(at_events[happened], solution.events.y[happened], rtol=1e-12, atol=1e-12)
    assert (at_events[happened][:, 1] < 0).all()
    steps = solution.steps.t
    assert all(torch.isclose(steps[i], t[i, :1]).any() for i in range(2))


class Thrown(torch.nn.Module):
    def forward(self, t, y, restitution):
        return thrown(t, y)


@pytest.mark.parametrize(
    ("integrator", "compile"),
    [
        (Dynamic((Dopri5(), Bosh3()), lambda h0, k1: torch.cat([h0[:, :1], 2 - h0[:, :1]], 1)), False),
        pytest.param(Dopri5(), True, marks=pytest.mark.slow),
    ],
    ids=["dynamic", "compiled"],
)
def test_blocks_pass_events_on(integrator, compile):
    h, restitution = torch.linspace(0.5, 2, 6).double(), torch.linspace(0.8, 0.9, 6).double()
    y0, block = torch.stack([h, 0 * h], 1), NeuralODE(Thrown(), integrator, t1=2.0, compile=compile)
    solution = block.solve(y0, sample_args=(restitution[:, None],), event=bounces(False))
    times = bounce_times(h, restitution, 8)
    expected = torch.where(times < 2, times, torch.nan)[:, : solution.events.t.shape[1]]
    assert_close(solution.events.t, expected, rtol=0, atol=1e-12, equal_nan=True)


def test_one_system():
    event = Event(lambda t, y: y[0].sum(), "falling", change=lambda t, y: (y[0], -y[1]))
    f = lambda t, y: (y[1], 0 * y[1] - G)  # noqa: E731
    y0 = (rows(0.5, 0.5), rows(0.0, 0.0))
    solution = solve(f, y0, 0.0, 2.0, Dopri5(), event=event, batched=False)
    first = math.sqrt(1 / G)
    assert solution.events.t.tolist() == pytest.approx([first * (1 + 2 * k) for k in range(3)])
    assert solution.events.y[0].shape == (3, 2)
    assert not solution.event


def test_checkpoint_recomputes_the_same_events(tanh_field):
    f, y0 = tanh_field(3), torch.randn(5, 3).double().requires_grad_()
    event = [Event(lambda t, y: y[:, 0] - 0.2, change=lambda t, y: -y), Event(lambda t, y: y[:, 1], terminal=2)]

    def gradients(gradient):
        s = solve(f, y0, 0.0, 5.0, Dopri5(rtol=1e-6, atol=1e-6), event=event, gradient=gradient)
        assert s.events.t.shape[1] > 1
        loss = s.y.square().sum() + s.events.t.nan_to_num().sum() + s.t.sin().sum()
        return torch.autograd.grad(loss, (y0, f.W))

    assert_close(gradients("checkpoint"), gradients("direct"), rtol=1e-9, atol=1e-9)


# ---- several events


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_first_in_time_wins(order):
    """sin t crosses .5 at π/6, cos t crosses .8 at acos(.8) > π/6, and t crosses .55; all within one step."""
    events = [lambda t, y: y[:, 0] - 0.5, lambda t, y: y[:, 1] - 0.8, lambda t, y: t[:, 0] - 0.55]
    step = Dopri5(rtol=1, atol=1e3, first_step=1.0)
    solution = solve(circle, rows([0.0, 1.0]), 0.0, 1.0, step, event=[events[i] for i in order])
    assert solution.n_steps.item() == 1
    assert order[solution.which.item()] == 0
    assert solution.t.item() == pytest.approx(math.pi / 6, abs=1e-3)


def test_names_and_who_was_stopped_by_what():
    events = {"low": lambda t, y: y[:, 0] + 0.5, "high": lambda t, y: y[:, 0] - 0.5, "late": lambda t, y: t[:, 0] - 9}
    solution = solve(
        lambda t, y: y, rows([0.1], [-0.1], [0.0], [0.2]), 0.0, rows(9.5, 9.5, 9.5, 0.1), TIGHT, event=events
    )
    assert [solution.events.names[i] if i >= 0 else None for i in solution.which] == ["high", "low", "late", None]
    assert solution.event.tolist() == [True, True, True, False]
    assert_close(solution.events.of("high").t, rows([math.log(5)], [math.nan], [math.nan], [math.nan]), equal_nan=True)
    assert solution.events.of("low").which.tolist() == [[-1], [0], [-1], [-1]]
    with pytest.raises(ValueError, match="name: expected one of low, high, late, got 'up'"):
        solution.events.of("up")


@pytest.mark.parametrize("integrator", [TIGHT, RK4(30), Dopri5(rtol=1e-4, atol=1e-4)], ids=str)
def test_events_that_only_watch_change_nothing(integrator):
    plain = solve(circle, rows([0.0, 1.0], [0.3, -0.7]), 0.0, 20.0, integrator)
    watch = {"up": Event(height, "rising", terminal=False), "down": Event(height, "falling", terminal=False)}
    solution = solve(circle, rows([0.0, 1.0], [0.3, -0.7]), 0.0, 20.0, integrator, event=watch)
    for name in ("y", "t", "nfe", "n_steps"):
        assert torch.equal(getattr(solution, name), getattr(plain, name))
    assert not solution.event.any()
    if integrator == TIGHT:
        assert_close(solution.events.t[0, :6], math.pi * torch.arange(1, 7).double(), rtol=0, atol=1e-6)
        assert solution.events.which.tolist() == [[1, 0, 1, 0, 1, 0, -1], [1, 0, 1, 0, 1, 0, 1]]
        assert_close(solution.events.t[0, 1:6:2], solution.events.of("up").t[0])


def test_several_in_one_step_are_in_order():
    """y = (t − 1)(t − 2)(t − 3) in one step, crossing 0 at 1, 2, 3, and .1 beside."""
    step = Dopri5(rtol=1, atol=1e3, first_step="span")
    f = lambda t, y: 3 * t**2 - 12 * t + 11 + 0 * y  # noqa: E731
    events = [Event(lambda t, y: y[:, 0] - 0.1, terminal=False), Event(height, terminal=False)]
    solution = solve(f, rows([-6.0], [-6.0]), 0.0, rows(4.0, 2.5), step, event=events)
    assert solution.n_steps.tolist() == [1, 1]
    roots = np.sort(np.roots([1, -6, 11, -6.1]).real)
    expected = np.sort([1, 2, 3, *roots])
    assert solution.events.t[0].tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    assert solution.events.which[0].tolist() == [1, 0, 0, 1, 1, 0]
    assert solution.events.t[1].nan_to_num(nan=-1).tolist() == pytest.approx([*expected[:4], -1, -1], rel=1e-9)


def test_a_number_of_events_stops():
    for number in (1, 2, 5):
        solution = solve(circle, rows([0.0, 1.0]), 0.0, 99.0, TIGHT, event=Event(height, terminal=number))
        assert solution.t.item() == pytest.approx(number * math.pi, rel=1e-8)
        assert solution.events.t.shape == (1, number)
    step = Dopri5(rtol=1, atol=1e3, first_step="span")  # all crossings of a step count
    f = lambda t, y: 3 * t**2 - 12 * t + 11 + 0 * y  # noqa: E731
    assert solve(f, rows([-6.0]), 0.0, 4.0, step, event=Event(height, terminal=2)).t.item() == pytest.approx(
        2, rel=1e-9
    )


def test_a_terminal_event_and_a_change_at_the_same_time_both_count():
    events = [Event(lambda t, y: t[:, 0] - 1, change=lambda t, y: y + 1), lambda t, y: t[:, 0] - 1]
    solution = solve(lambda t, y: 0 * y, rows([2.0]), 0.0, 3.0, Dopri5(), event=events)
    assert solution.events.which.tolist() == [[0, 1]]
    assert (solution.t.item(), solution.y.item()) == (pytest.approx(1.0), 3.0)
    other = solve(lambda t, y: 0 * y, rows([2.0]), 0.0, 3.0, Dopri5(), event=events[::-1])
    assert other.events.which.tolist() == [[0]]
    assert other.y.item() == 2.0


# ---- where a crossing may hide


def test_between_the_ends_of_a_long_step():
    """A straight line passes 2.5 and 5 in one step."""
    twice = lambda t, y: (2.5 - y[:, 0]) * (5.0 - y[:, 0])  # noqa: E731
    line = lambda t, y: torch.ones_like(y)  # noqa: E731
    solution = solve(line, rows([1.0]), 1.0, 11.0, Dopri5(first_step=9.0), event=twice)
    assert solution.t.item() == pytest.approx(2.5, rel=1e-12)
    second = solve(line, rows([1.0]), 1.0, 11.0, Dopri5(first_step=9.0), event=Event(twice, "rising"))
    assert second.t.item() == pytest.approx(5.0, rel=1e-12)


@pytest.mark.parametrize("first_step", [0.1, 1.0, 1.5, 10.0, 1e3])
@pytest.mark.parametrize("direction", ["any", "falling"])
def test_from_the_ground_whatever_the_first_step(first_step, direction):
    event = Event(height, direction)
    solution = solve(thrown, rows([0.0, 5.0]), 0.0, 1e4, Dopri5(first_step=first_step), event=event)
    assert solution.t.item() == pytest.approx(10 / G, rel=1e-9)
    y, t = rows([0.0, 5.0]), 0.0
    for _ in range(9):  # restarted by hand, from exactly 0 and from what rounding leaves
        solution = solve(thrown, y, t, math.inf, Dopri5(first_step=first_step), event=event)
        t, y = solution.t, solution.y * rows(1.0, -0.9)
    assert t.item() == pytest.approx(10 / G * sum(0.9**k for k in range(9)), rel=1e-9)


def test_at_rest_on_the_ground_nothing_happens():
    solution = solve(lambda t, y: 0 * y, rows([0.0, 0.0]), 0.0, 3.0, Dopri5(), event=height)
    assert not solution.event.any()
    sinking = solve(thrown, rows([0.0, 0.0]), 0.0, 3.0, Dopri5(), event=height)
    assert not sinking.event.any()


def test_in_float32():
    h = torch.linspace(0.5, 2, 20)
    event = Event(height, "falling", change=lambda t, y: y * torch.tensor([0.0, -0.9]), terminal=20)
    solution = solve(thrown, torch.stack([h, 0 * h], 1), 0.0, math.inf, Dopri5(), event=event)
    exact = bounce_times(h.double(), torch.full((20,), 0.9).double(), 20)
    assert_close(solution.events.t.double(), exact, rtol=1e-5, atol=1e-5)


# ---- conditions and steady states


def test_a_bool_has_its_event_where_it_becomes_true():
    condition = lambda t, y: (y[:, 0] > 0.5) & (t[:, 0] > 3)  # noqa: E731
    solution = solve(circle, rows([0.0, 1.0], [1.0, 0.0]), 0.0, 20.0, TIGHT, event=condition)
    assert solution.t.tolist() == pytest.approx([2 * math.pi + math.pi / 6, 2 * math.pi - math.pi / 3], rel=1e-7)
    assert condition(solution.t[:, None], solution.y).all()
    falling = solve(circle, rows([0.0, 1.0]), 0.0, 20.0, TIGHT, event=Event(lambda t, y: y[:, 0] > 0.5, "falling"))
    assert falling.t.item() == pytest.approx(math.pi * 5 / 6, rel=1e-7)
    assert not solve(circle, rows([0.9, 0.0]), 0.0, 0.2, TIGHT, event=lambda t, y: y[:, 0] > 0.5).event.any()


def test_a_bool_that_changes_the_state_happens_once_for_each_time_it_becomes_true():
    event = Event(lambda t, y: t[:, 0] % 1 > 0.5, change=lambda t, y: y + 1)
    solution = solve(lambda t, y: 0 * y, rows([0.0]), 0.0, 3.9, Dopri5(dt_max=0.3), event=event)
    assert solution.y.item() == 4
    assert solution.events.t[0].tolist() == pytest.approx([0.5, 1.5, 2.5, 3.5])


def test_a_decay_becomes_steady():
    """y' = −r y: |y'| = r|y| reaches atol + rtol|y| at y = atol/(r − rtol)."""
    rate, y0 = rows([0.5], [2.0]), rows([3.0], [5.0])
    event, integrator = SteadyState(rtol=1e-3, atol=1e-2), Dopri5(rtol=1e-9, atol=1e-9)
    solution = solve(lambda t, y, rate: -rate * y, y0, 0.0, math.inf, integrator, sample_args=(rate,), event=event)
    expected = 1e-2 / (rate - 1e-3)
    assert solution.event.all()
    assert_close(solution.y, expected, rtol=1e-4, atol=0)
    assert_close(solution.t[:, None], (y0 / expected).log() / rate, rtol=1e-4, atol=0)


@pytest.mark.parametrize("integrator", [Dopri5(), Bosh3(), RK4(50)], ids=str)
def test_what_starts_steady_stops_at_once(integrator):
    solution = solve(lambda t, y: -y, rows([0.0, 0.0], [1.0, 1.0]), 0.0, 20.0, integrator, event=SteadyState(rtol=0))
    assert solution.event.all()
    assert solution.t[0] < 1e-9
    assert solution.y[1].norm() < 3e-3


def test_steady_or_out_of_bounds():
    events = {"steady": SteadyState(rtol=0, atol=1e-3), "out": lambda t, y: y.abs().amax(1) - 10}
    solution = solve(lambda t, y: y * (y - 1), rows([0.5], [1.5]), 0.0, math.inf, Dopri5(), event=events)
    assert solution.which.tolist() == [0, 1]


@pytest.mark.parametrize("options", [{"rtol": -1.0}, {"atol": math.inf}, {"terminal": 0}])
def test_bad_steady_states(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        SteadyState(**options)


# ---- limits


@pytest.mark.parametrize(
    "event",
    [Event(height, terminal=False), Event(height, change=lambda t, y: y), Event(height, terminal=2), SteadyState()],
    ids=["watch", "change", "second", "steady"],
)
def test_backsolve_says_what_to_use(event):
    y0 = rows([1.0, 0.0]).requires_grad_()
    with pytest.raises(ValueError, match=r"event: backsolve .* use gradient='direct' or 'checkpoint'"):
        solve(thrown, y0, 0.0, 1.0, Dopri5(), event={"it": event}, gradient="backsolve")
    with torch.no_grad():
        solve(thrown, y0, 0.0, 1.0, Dopri5(), event=event, gradient="backsolve")


def test_backsolve_names_who_stopped():
    y0 = rows([2.0], [0.5]).requires_grad_()
    events = {"up": lambda t, y: y[:, 0] - 3, "down": lambda t, y: y[:, 0] - 0.1}

    def run(gradient):
        s = solve(lambda t, y: y * (y - 1), y0, 0.0, 9.0, TIGHT, event=events, gradient=gradient)
        assert s.which.tolist() == [0, 1]
        return torch.autograd.grad(s.t.sum() + s.events.t.sum(), y0)[0]

    assert_close(run("backsolve"), run("direct"), rtol=1e-7, atol=1e-7)


def test_a_cascade_watches_and_changes_but_does_not_stop():
    cascade = Cascade([RK4(8), TIGHT], lambda y: y[:, 0] < 0)
    watch = Event(height, terminal=False)
    solution = solve(circle, rows([0.0, 1.0], [1.0, 0.0]), 0.0, 4.0, cascade, event=watch)
    assert solution.choice.tolist() == [0, 0] or solution.choice.tolist() == [0, 1]
    assert_close(solution.events.t[0, 0].item(), math.pi, rtol=1e-2, atol=0)
    for i in range(2):
        chosen = cascade.candidates[solution.choice[i]]
        alone = solve(circle, rows([0.0, 1.0], [1.0, 0.0])[i : i + 1], 0.0, 4.0, chosen, event=watch)
        number = alone.events.t.shape[1]
        assert_close(solution.events.t[i, :number], alone.events.t[0], rtol=1e-12, atol=1e-12)
        assert solution.events.t[i, number:].isnan().all()


def test_an_event_that_never_happens_is_said_not_to_have_happened():
    with pytest.raises(SolveError, match=r"no event stopped the sample\. What to try: check that the event can happen"):
        solve(lambda t, y: -y, rows([1.0]), 0.0, math.inf, Dopri5(max_steps=100), event=lambda t, y: y[:, 0] + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, y: y[:, :1], r"change: expected a state of shape \(1, 2\) like y, got \(1, 1\)"),
        (lambda t, y: None, r"change: expected a state of shape \(1, 2\) like y, got NoneType"),
    ],
)
def test_a_bad_change_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        solve(thrown, rows([1.0, 0.0]), 0.0, 1.0, Dopri5(), event=Event(height, change=change))


def test_infinitely_many_bounces_end_in_an_error():
    """They come to rest after √(2h/g)·(1 + 2·(.5)/(1 − .5)) s; the steps are as many as allowed."""
    event = Event(height, "falling", change=lambda t, y: y * rows(0.0, -0.5))
    for integrator in (Dopri5(max_steps=300), RK4(9)):
        solution = solve(thrown, rows([1.0, 0.0]), 0.0, 9.0, integrator, event=event, throw=False)
        assert solution.t.item() == pytest.approx(3 * math.sqrt(2 / G), rel=1e-6) or solution.status.item() == 0
