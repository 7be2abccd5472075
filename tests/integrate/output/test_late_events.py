"""Events that stop samples: the loop goes on, and those of many rounds are located together."""

import math

import pytest
import torch
from torch.testing import assert_close

from dise import RK4, Adams, Bosh3, Dopri5, Dynamic, Event, Progress, solve
from dise.integrate.stepping import interruptions

LOOSE = Dopri5(rtol=1e-6, atol=1e-6)
METHODS = [LOOSE, Bosh3(rtol=1e-4, atol=1e-4), RK4(40), Adams()]
FIELDS = ("y", "t", "which", "n_steps", "n_accepted", "nfe", "error", "status", "dt", "k1")


@pytest.fixture(params=[1, 2**11, 2**15, math.inf], ids=["each at once", "few", "some", "all together"])
def waiting(request, monkeypatch):
    """How many numbers wait before events are located."""
    monkeypatch.setattr(interruptions, "WAITING_NUMEL", request.param)


def decay(t, y, rate):
    return -rate * y


def level(t, y, *args):
    return y[:, 0] - 1


@pytest.fixture
def batch():
    """Starts and rates of 40 samples: the first stops in its first step, four at the very end, five never."""
    y0, rate = (
        torch.linspace(1.001, 9, 40, dtype=torch.float64)[:, None],
        torch.linspace(2.0, 0.5, 40).double()[:, None],
    )
    rate[-9:-5] = y0[-9:-5].log() / 6
    rate[-5:] = y0[-5:].log() / 6.1
    return y0, rate


def assert_closed_form(solution, y0, rate):
    expected = (y0.log() / rate).flatten()
    stopped = solution.event
    assert stopped[:-9].all()
    assert not stopped[-5:].any()
    assert_close(solution.t[stopped], expected[stopped], rtol=3e-3, atol=3e-3)
    assert (solution.t[-5:] == 6).all()
    assert_close(solution.y[stopped], torch.ones_like(y0)[stopped], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("integrator", METHODS, ids=str)
@pytest.mark.parametrize("drop_finished", [True, False])
def test_samples_that_stop_in_different_rounds_are_as_alone(waiting, batch, integrator, drop_finished):
    y0, rate = batch
    options = {"event": level, "drop_finished": drop_finished}
    together = solve(decay, y0, 0.0, 6.0, integrator, sample_args=(rate,), **options)
    assert len(together.n_steps[together.event].unique()) > 5 or integrator == Adams()
    assert_closed_form(together, y0, rate)
    for i in (0, 1, 17, 30, 32, 39):
        row = slice(i, i + 1)
        alone = solve(decay, y0[row], 0.0, 6.0, integrator, sample_args=(rate[row],), **options)
        for name in FIELDS:
            one, other = getattr(together, name)[row], getattr(alone, name)
            assert_close(
                one, other, rtol=1e-12, atol=1e-12, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("integrator", METHODS, ids=str)
def test_what_observers_tell(waiting, batch, integrator):
    """Save points, dense output, accepted steps, every n-th step and progress end where the events are."""
    y0, rate = batch
    times, reports = torch.linspace(0.0, 6.0, 31, dtype=torch.float64), []
    options = {"sample_args": (rate,), "event": level}

    def report(progress: Progress):
        reports.append((progress.rounds, progress.t))

    solution = solve(
        decay, y0, 0.0, 6.0, integrator, **options, save_at=times, dense=True, record=True, progress=report
    )
    exact = y0 * torch.exp(-rate * times)
    past = times > solution.t[:, None]
    assert torch.equal(solution.saved[..., 0].isnan(), past)
    assert_close(solution.saved[..., 0][~past], exact[~past], rtol=1e-3, atol=1e-3)
    assert_close(solution.evaluate(times)[..., 0], solution.saved[..., 0], rtol=1e-12, atol=1e-12, equal_nan=True)
    assert_close(solution.evaluate(solution.t[:, None])[:, 0], solution.y, rtol=1e-12, atol=1e-12)
    assert torch.equal((~solution.steps.t.isnan()).sum(1), solution.n_accepted)
    assert_close(solution.steps.t.nan_to_num(nan=-1).amax(1), solution.t, rtol=0, atol=0)
    assert_close(solution.steps.ratio.nan_to_num().sum(1), solution.error.nan_to_num(), rtol=1e-9, atol=1e-12)
    rounds, reached = zip(*reports, strict=True)
    assert rounds[-1] == solution.n_steps.max()
    assert sorted(set(rounds)) == list(range(1, rounds[-1] + 1))
    assert_close(reached[-1], solution.t, rtol=0, atol=0)
    ends = solve(decay, y0, 0.0, 6.0, integrator, **options, save_every=1)
    assert_close(ends.saved_t, solution.steps.t, rtol=0, atol=0, equal_nan=True)
    assert_close(ends.saved[:, 0, 0], exact_at(y0, rate, ends.saved_t[:, 0]), rtol=1e-3, atol=1e-3)


def exact_at(y0, rate, t):
    return (y0 * torch.exp(-rate * t[:, None]))[:, 0]


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
@pytest.mark.parametrize("drop_finished", [True, False])
def test_gradients_are_the_closed_forms(waiting, batch, gradient, drop_finished):
    """dt*/dy0 = 1/(r y0) and dt*/dr = −t*/r where a sample stops; elsewhere y(6) = y0·exp(−6 r)."""
    y0, rate = (x.clone().requires_grad_() for x in batch)
    sure = torch.arange(40) < 31  # those of the last ones may stop or not
    s = solve(
        decay,
        y0,
        0.0,
        6.0,
        Dopri5(rtol=1e-9, atol=1e-9),
        sample_args=(rate,),
        event=level,
        gradient=gradient,
        drop_finished=drop_finished,
        save_at=[0.0001],
    )
    of_y0, of_rate = torch.autograd.grad(s.t[sure].sum() + s.y[-5:].sum() + s.saved.sum(), (y0, rate))
    start, r = (x.detach().flatten() for x in (y0, rate))
    saved = torch.exp(-0.0001 * r)
    expected_y0, expected_rate = saved.clone(), -0.0001 * start * saved
    expected_y0[sure] += (1 / (r * start))[sure]
    expected_rate[sure] -= (start.log() / r**2)[sure]
    expected_y0[-5:] += torch.exp(-6 * r)[-5:]
    expected_rate[-5:] -= (6 * start * torch.exp(-6 * r))[-5:]
    tolerance = 1e-5 if gradient == "backsolve" else 1e-6
    assert_close(of_y0.flatten(), expected_y0, rtol=tolerance, atol=tolerance)
    assert_close(of_rate.flatten(), expected_rate, rtol=tolerance, atol=tolerance)


def circle(t, y):
    return torch.stack([y[:, 1], -y[:, 0]], 1)


def test_several_events_with_names_directions_and_numbers(waiting):
    """y = (sin, cos)(t + s): "up" is watched, "down" stops at the second time, "late" at t = 5 if that is earlier."""
    shift = torch.linspace(0.05, 6.2, 60, dtype=torch.float64)
    y0 = torch.stack([shift.sin(), shift.cos()], 1)
    events = {
        "up": Event(lambda t, y: y[:, 0], "rising", terminal=False),
        "down": Event(lambda t, y: y[:, 0], "falling", terminal=2),
        "late": lambda t, y: t[:, 0] - 5,
    }
    solution = solve(circle, y0, 0.0, 9.0, Dopri5(rtol=1e-9, atol=1e-9), event=events)
    downs = torch.stack([(math.pi * (2 * k + 1)) - shift for k in range(-1, 3)], 1)
    second = torch.where(downs > 0, downs, torch.inf).sort(1).values[:, 1]
    assert_close(solution.t, second.clamp(max=5.0), rtol=1e-6, atol=1e-6)
    assert solution.which.tolist() == torch.where(second < 5, 1, 2).tolist()
    ups = torch.stack([2 * math.pi * k - shift for k in range(3)], 1)
    expected = ((ups > 0) & (ups < solution.t[:, None])).sum(1)
    assert torch.equal((~solution.events.of("up").t.isnan()).sum(1), expected)
    assert (solution.events.t.diff(dim=1).nan_to_num(nan=1) > 0).all()  # in the order of time
    first = downs.where(downs > 0, torch.inf).amin(1)
    first = first.where(first <= solution.t, torch.nan)
    assert_close(solution.events.of("down").t[:, 0], first, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_break_points_after_the_event_do_not_restart_a_sample(waiting, batch):
    y0, rate = batch
    jumps = torch.linspace(0.5, 5.5, 11, dtype=torch.float64)
    solution = solve(decay, y0, 0.0, 6.0, LOOSE, sample_args=(rate,), event=level, jump_at=jumps)
    assert_closed_form(solution, y0, rate)
    fixed = solve(decay, y0, 0.0, 6.0, RK4(20), sample_args=(rate,), event=level, jump_at=jumps)
    assert_closed_form(fixed, y0, rate)


def test_one_system(waiting):
    y0 = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    solution = solve(
        lambda t, y: -y,
        y0,
        0.0,
        9.0,
        LOOSE,
        event=lambda t, y: y.norm() - 1,
        batched=False,
        save_at=[1.0, 2.0],
        dense=True,
    )
    assert solution.t.item() == pytest.approx(math.log(5), abs=1e-5)
    assert solution.saved[1].isnan().all()
    assert_close(solution.evaluate(solution.t.detach()), solution.y)
    (gradient,) = torch.autograd.grad(solution.t, y0)
    assert_close(gradient, y0.detach() / 25, rtol=1e-4, atol=1e-4)


def test_samples_with_different_integrators(waiting, batch):
    y0, rate = batch
    choice = torch.arange(40) % 2
    dynamic = Dynamic((RK4(40), LOOSE), lambda h0, k1: 1.0 - torch.nn.functional.one_hot(choice, 2))
    options = {"sample_args": (rate,), "event": level}
    solution = solve(decay, y0, 0.0, 6.0, dynamic, **options, dense=True)
    assert_closed_form(solution, y0, rate)
    for i, integrator in enumerate(dynamic.candidates):
        alone = solve(decay, y0[i::2], 0.0, 6.0, integrator, sample_args=(rate[i::2],), event=level)
        assert_close(solution.t[i::2], alone.t, rtol=1e-12, atol=1e-12)
    assert_close(solution.evaluate(solution.t[:, None])[:, 0], solution.y)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_search_for_all_costs_as_many_calls_as_one_for_one(batch, gradients):
    y0, rate = (x.clone().requires_grad_(gradients) for x in batch)

    def calls(rows):
        number = 0

        def counted(t, y, *args):
            nonlocal number
            number += 1
            return level(t, y)

        solution = solve(decay, y0[rows], 0.0, 6.0, LOOSE, sample_args=(rate[rows],), event=counted)
        return number - int(solution.n_steps.max())

    assert calls(slice(None)) <= 2 * calls(slice(0, 1))


def test_no_samples_at_all():
    solution = solve(circle, torch.ones(0, 2), 0.0, 1.0, LOOSE, event=lambda t, y: y[:, 0])
    assert solution.y.shape == (0, 2)
    assert solution.event.shape == (0,)
