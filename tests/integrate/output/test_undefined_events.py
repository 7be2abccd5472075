"""Functions of events that become NaN: the sample fails, and its neighbours go on."""

import math

import pytest
import scipy.integrate
import torch
from torch.testing import assert_close

from dise import RK4, Dopri5, Event, SolveError, Status, solve

TIGHT, COARSE = Dopri5(rtol=1e-8, atol=1e-8), Dopri5(rtol=1e-2, atol=1e-2)
Y0 = torch.tensor([[2.0], [0.5], [3.0]], dtype=torch.float64)
kinds = pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.long)])
integrators = pytest.mark.parametrize("integrator", [TIGHT, COARSE, RK4(40)], ids=str)


def decay(t, y):
    return -y


def logarithm(t, y):
    """Zero at y = 1.2, and NaN below 0.2: a sample from 0.5 has no event before."""
    return (y[:, 0] - 0.2).log()


@integrators
@kinds
def test_the_sample_fails_alone(integrator, compile):
    solution = solve(decay, Y0, 0.0, 3.0, integrator, event=logarithm, throw=False, compile=compile)
    assert solution.status.tolist() == [Status.SUCCESS, Status.EVENT_NAN, Status.SUCCESS]
    assert solution.which.tolist() == [0, -1, 0]
    tolerance = 1e-6 if integrator is not COARSE else 0.1
    assert_close(solution.t[[0, 2]], (Y0[[0, 2], 0] / 1.2).log(), rtol=tolerance, atol=tolerance)
    assert solution.y[1] < 0.2  # the first step that ends there
    assert solution.n_accepted[1] < 41
    eager = solution if compile is False else solve(decay, Y0, 0.0, 3.0, integrator, event=logarithm, throw=False)
    for name in ("t", "y", "k1", "dt", "error", "n_accepted"):
        assert_close(getattr(solution, name), getattr(eager, name), rtol=1e-7, atol=1e-9, equal_nan=True)
    for i in range(3):
        alone = solve(decay, Y0[i : i + 1], 0.0, 3.0, integrator, event=logarithm, throw=False, compile=compile)
        for name in ("status", "which", "n_steps", "nfe"):
            assert getattr(alone, name).tolist() == getattr(solution, name)[i : i + 1].tolist()
        assert_close(alone.t, solution.t[i : i + 1], rtol=1e-9, atol=0)
        assert_close(alone.y, solution.y[i : i + 1], rtol=1e-9, atol=0)


@kinds
@pytest.mark.parametrize(
    "event",
    [
        Event(logarithm, terminal=False),
        Event(logarithm, terminal=2),
        Event(logarithm, "rising"),
        Event(logarithm, change=lambda t, y: y, terminal=9),
        {"other": lambda t, y: y[:, 0] + 1, "this": logarithm},
    ],
    ids=["noted", "second", "rising", "changing", "of two"],
)
def test_every_kind_of_event(event, compile):
    solution = solve(decay, Y0, 0.0, 3.0, TIGHT, event=event, throw=False, compile=compile, save_at=[0.1, 2.99])
    assert solution.status[1] == Status.EVENT_NAN
    assert solution.y[1] < 0.2
    assert solution.saved[1, 0].isfinite().all()
    assert solution.saved[1, 1].isnan().all()
    if isinstance(event, Event):  # the others have it later
        assert solution.status.tolist() == [Status.EVENT_NAN] * 3
        assert (solution.y < 0.2).all()


def test_an_event_earlier_in_the_step_comes_first():
    """In one step y falls from 2 to 0.1: over 1.2, where the event is, and 0.2, from where it is NaN."""
    f = lambda t, y: -1.9 + 0 * y  # noqa: E731
    solution = solve(f, Y0[:1], 0.0, 1.0, Dopri5(first_step="span"), event=logarithm)
    assert (solution.n_steps, solution.which) == (1, 0)
    assert_close(solution.t, torch.tensor([0.8 / 1.9], dtype=torch.float64))
    noted = solve(f, Y0[:1], 0.0, 1.0, RK4(1), event=Event(logarithm, terminal=False), throw=False)
    assert noted.status == Status.EVENT_NAN
    assert noted.events.which.tolist() == [[0]]


def test_within_a_step_nan_is_passed_over():
    """At both ends the function is known; a crossing between them is found."""
    middle = lambda t, y: torch.where((t[:, 0] > 0.3) & (t[:, 0] < 0.6), torch.nan, 0.5 - t[:, 0])  # noqa: E731
    solution = solve(decay, Y0, 0.0, 1.0, RK4(1), event=middle)
    assert solution.event.all()
    assert ((solution.t >= 0.3 - 1e-12) & (solution.t <= 0.6)).all()


@pytest.mark.parametrize("after", [-1.0, 1.0])
def test_a_crossing_before_nan_is_remembered_after_it(after):
    """The sign is 1, from t = 0.1 on −1, NaN from 0.45 to 0.6, and then −1, which is no second crossing, or 1."""
    places, values = torch.tensor([0.1, 0.45, 0.6]).double(), torch.tensor([1.0, -1.0, torch.nan, after]).double()
    side = lambda t, y: values[torch.bucketize(t[:, 0].contiguous(), places)]  # noqa: E731
    solution = solve(decay, Y0, 0.0, 1.0, RK4(1), event=Event(side, terminal=False))
    expected = [0.1] if after < 0 else [0.1, 0.6]
    assert_close(solution.events.t, torch.tensor([expected] * 3).double())


@kinds
def test_at_the_start(compile):
    solution = solve(decay, Y0 - 0.4, 0.0, 3.0, TIGHT, event=logarithm, throw=False, compile=compile)
    assert solution.status[1] == Status.EVENT_NAN
    assert (solution.t[1], solution.n_steps[1]) == (0, 0)
    assert solution.y[1] == Y0[1] - 0.4
    assert solution.event.tolist() == [True, False, True]


def test_after_a_change_of_the_state():
    """The change leads to where the function is NaN."""
    event = Event(lambda t, y: (y[:, 0] - 1).log(), change=lambda t, y: 0 * y, terminal=9)
    solution = solve(decay, Y0[:1] + 1, 0.0, 3.0, TIGHT, event=event, throw=False)
    assert solution.status == Status.EVENT_NAN
    assert_close(solution.t, torch.tensor([1.5], dtype=torch.float64).log())
    assert solution.y == 0


def test_a_state_that_is_not_finite_is_that_failure():
    start = torch.tensor([[torch.nan], [2.0]], dtype=torch.float64)
    solution = solve(decay, start, 0.0, 3.0, TIGHT, event=logarithm, throw=False)
    assert solution.status.tolist() == [Status.NON_FINITE, Status.SUCCESS]


def test_infinite_values_have_a_sign():
    side = lambda t, y: torch.where(y[:, 0] < 0.3, -math.inf, math.inf)  # noqa: E731
    solution = solve(decay, Y0, 0.0, 3.0, TIGHT, event=side)
    assert_close(solution.t, (Y0[:, 0] / 0.3).log(), rtol=1e-6, atol=1e-6)


def test_one_system_is_named_in_the_error():
    with pytest.raises(SolveError, match=r"EVENT_NAN, the function of an event became NaN.*torch\.clamp"):
        solve(decay, Y0[1], 0.0, 3.0, TIGHT, event=lambda t, y: (y[0] - 0.2).log(), batched=False)


@pytest.mark.parametrize("gradient", ["checkpoint", "backsolve"])
def test_neighbours_have_their_gradients(gradient):
    """dt*/dy0 = 1/y0."""
    y0 = Y0.clone().requires_grad_()
    solution = solve(decay, y0, 0.0, 3.0, TIGHT, event=logarithm, throw=False, gradient=gradient)
    (of_y0,) = torch.autograd.grad(solution.t[0] + solution.t[2], y0)
    assert_close(of_y0[[0, 2], 0], 1 / Y0[[0, 2], 0], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_scipy_takes_it_as_no_event():
    """As the guide says: the function is 0 at y = 1.2 only, the step to there ends where it is NaN."""
    import numpy as np

    event = lambda t, y: np.log(y[0] - 0.2)  # noqa: E731
    theirs = scipy.integrate.solve_ivp(lambda t, y: -y, (0, 3), [0.5], events=event, rtol=1e-8, atol=1e-8)
    assert theirs.success
    assert theirs.t[-1] == 3
    assert len(theirs.t_events[0]) == 0
