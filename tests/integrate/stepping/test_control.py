"""Step sizes: the first, the next, and when there is none left."""

import math
from itertools import pairwise

import pytest
import torch
from torchdiffeq._impl.misc import _rms_norm, _select_initial_step

from dise import RK4, Bosh3, Dopri5, Dopri8, HeunEuler, Status, solve


def attempts(f, y0, t0, t1, integrator, **options):
    """The solution, and [(t, dt)] of each attempted step of a batch of one."""
    steps = []

    def note(step):
        steps.append((step.t.item(), step.dt.item()))
        return torch.zeros_like(step.t)

    with torch.no_grad():
        return solve(f, y0, t0, t1, integrator, accumulate=note, **options), steps


def column(*values, dtype=torch.float64):
    return torch.tensor([values], dtype=dtype)


# ---- the first step


@pytest.mark.parametrize(
    ("f", "y0"),
    [
        (lambda t, y: -y, column(1.0, 2.0)),
        (lambda t, y: 1e4 * torch.cos(1e4 * t) * torch.ones_like(y), column(0.0)),
        (lambda t, y: torch.sin(3 * y) + t, column(0.5, -2.0, 30.0)),
        (lambda t, y: torch.zeros_like(y), column(1.0)),
        (lambda t, y: y, column(0.0, 0.0)),
        (lambda t, y: 1e-9 * y, column(1.0)),
    ],
)
@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_heuristic_first_step_is_torchdiffeqs(f, y0, tol):
    t0 = torch.tensor(0.25, dtype=torch.float64)
    expected = _select_initial_step(f, t0, y0, 4, tol, tol, _rms_norm).item()
    _, steps = attempts(f, y0, 0.25, 1e9, Dopri5(rtol=tol, atol=tol, max_steps=1), throw=False)
    assert steps[0][1] == pytest.approx(expected, rel=1e-6)  # t + dt − t has lost some digits


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("first_step", "expected"), [("span", 2.0), (0.5, 0.5), (3.0, 2.0), (3, 2.0)])
def test_first_step_is_the_span_or_the_number_given(first_step, expected, sign):
    _, steps = attempts(lambda t, y: y, column(1.0), 1.0, 1.0 + 2.0 * sign, Dopri5(first_step=first_step))
    assert steps[0] == (1.0, sign * expected)


@pytest.mark.parametrize("t1", [1e-7, -1e-7])
def test_neither_probe_nor_first_step_leave_a_tiny_span(t1, record):
    f = record(lambda t, y: torch.zeros_like(y))  # the heuristic would probe 1e-6 away
    solution, steps = attempts(f, column(1.0), 0.0, t1, Dopri5())
    assert all(0 <= abs(t.item()) <= 1e-7 for t in f.times)
    assert steps == [(0.0, t1)]
    assert solution.nfe == 8


@pytest.mark.parametrize(
    ("t0", "integrator"),
    [(1e4, Dopri5(max_steps=100)), (1.0, Dopri5(first_step=1e-9, max_steps=100))],
    ids=["heuristic", "number"],
)
def test_a_first_step_below_the_times_precision_does_not_hang(t0, integrator):
    """At t = 1e4, float32 resolves 1e-3; a step of 1e-4 would never move t."""
    solution = solve(lambda t, y: torch.ones_like(y), torch.zeros(1, 1), t0, t0 + 1, integrator, throw=False)
    assert solution.status == Status.SUCCESS
    torch.testing.assert_close(solution.y, torch.ones(1, 1))


# ---- the next step


def test_a_step_grows_at_most_tenfold():
    _, steps = attempts(lambda t, y: torch.zeros_like(y), column(1.0), 0.0, 1.2111, Dopri5(first_step=1e-3))
    assert [dt for _, dt in steps] == pytest.approx([1e-3, 1e-2, 1e-1, 1.0, 0.1001])


def test_a_non_finite_attempt_is_retried_with_a_fifth_of_the_step():
    def f(t, y):
        return torch.where(t < 0.05, y, torch.nan)

    _, steps = attempts(f, column(1.0), 0.0, 1.0, Dopri5(first_step="span", max_steps=3), throw=False)
    assert [dt for _, dt in steps] == pytest.approx([1.0, 0.2, 0.04])


@pytest.mark.parametrize("first_step", [1e-3, 0.1, "span"])
def test_step_sizes_follow_the_elementary_controller(first_step):
    """dt_next = dt · clip(0.9 ratio^(−1/5), 0.2 or 1, 10), Hairer, Nørsett, Wanner, II.4.13."""
    steps, rtol, atol = [], 1e-5, 1e-7

    def f(t, y):
        return torch.stack([y[:, 1], 5 * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]], dim=1)

    def note(step):
        error, y, y_next = (x.flatten().tolist() for x in (step.error(), step.y, step.y_next))
        scaled = [e / (atol + rtol * max(abs(a), abs(b))) for e, a, b in zip(error, y, y_next, strict=True)]
        steps.append((step.t.item(), step.dt.item(), math.sqrt(sum(e**2 for e in scaled) / 2)))
        return torch.zeros_like(step.t)

    integrator = Dopri5(rtol=rtol, atol=atol, first_step=first_step)
    solution = solve(f, column(2.0, 0.0), 0.0, 3.0, integrator, accumulate=note)
    for (t, dt, ratio), (t_next, dt_next, _) in pairwise(steps[:-1]):
        assert t_next == (t + dt if ratio <= 1 else t)
        factor = min(10, max(0.9 * ratio ** (-1 / 5), 1 if ratio <= 1 else 0.2))
        assert dt_next == pytest.approx(dt * factor, rel=1e-9)
    accepted = [ratio for *_, ratio in steps if ratio <= 1]
    assert solution.n_accepted == len(accepted)
    assert solution.n_steps == len(steps)
    assert solution.error.item() == pytest.approx(sum(accepted))
    if first_step == "span":
        assert len(accepted) < len(steps)


@pytest.mark.parametrize("units", [8, 12, 20])
@pytest.mark.parametrize("integrator", [Dopri5, Bosh3, Dopri8])
def test_a_step_that_rounds_to_t1_is_the_last(units, integrator):
    """A step half a unit in the last place shorter than the span ends at t1."""
    t0 = 1e6
    t1, y0 = t0 + units * math.ulp(t0), torch.zeros(1, 1, dtype=torch.float64)
    chosen = integrator(rtol=1e-3, atol=1e-3, first_step=(units - 0.45) * math.ulp(t0))
    solution = solve(lambda t, y: torch.ones_like(y), y0, t0, t1, chosen)
    assert solution.t.tolist() == [t1]
    assert solution.n_steps.tolist() == [1]


def test_a_remainder_of_a_few_roundings_gets_no_step_of_its_own():
    solution = solve(lambda t, y: torch.zeros_like(y), column(1.0), 0.0, 1.0, Dopri5(first_step=1 - 1e-15))
    assert (solution.n_steps, solution.t) == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_steps_divide_the_span_without_drift(dtype):
    solution, steps = attempts(lambda t, y: y, column(1.0, dtype=dtype), 0.0, 0.7, RK4(1000))
    starts = torch.tensor([t for t, _ in steps], dtype=torch.float64)
    expected = 0.7 * torch.arange(1000, dtype=torch.float64) / 1000
    torch.testing.assert_close(starts, expected, rtol=0, atol=2 * torch.finfo(dtype).eps)
    assert solution.t == 0.7


# ---- no step left


def test_underflow_is_reported():
    """Noise is never smooth, and near t = 1 steps below 1e-16 do not move t."""
    noise = torch.Generator().manual_seed(0)

    def f(t, y):
        return torch.randn(y.shape, generator=noise, dtype=y.dtype)

    solution = solve(f, column(1.0), 1.0, 2.0, Dopri5(rtol=0, atol=1e-30), throw=False)
    assert (solution.status, solution.t, solution.y) == (Status.STEP_UNDERFLOW, 1, 1)


def test_max_steps_is_exact():
    solution = solve(lambda t, y: -y, column(1.0), 0.0, 100.0, Dopri5(max_steps=3), throw=False)
    assert (solution.status, solution.n_steps, solution.nfe) == (Status.MAX_STEPS, 3, 2 + 6 * 3)
    enough = solve(lambda t, y: -y, column(1.0), 0.0, 1.0, Dopri5()).n_steps.item()
    assert solve(lambda t, y: -y, column(1.0), 0.0, 1.0, Dopri5(max_steps=enough)).n_steps == enough


def test_a_component_that_stays_0_needs_no_atol():
    """Zero error over zero tolerance is no error."""
    solution = solve(lambda t, y: -y, column(0.0, 1.0), 0.0, 1.0, Dopri5(rtol=1e-6, atol=0), throw=False)
    assert solution.status == Status.SUCCESS
    torch.testing.assert_close(solution.y, column(0.0, math.exp(-1)), rtol=1e-5, atol=0)


@pytest.mark.host
def test_a_step_that_rounding_repeats_does_not_hang():
    """At a jump a rejected step of a few roundings, made a tenth shorter, ends where it ended before."""

    def jump(t, y):
        return torch.where(t < 0.5, -100.0, 0.0) * torch.ones_like(y)

    for atol in torch.logspace(-7, -4, 60).tolist():
        integrator = HeunEuler(rtol=0, atol=atol, max_steps=2000, first_step=1e-3)
        solution = solve(jump, torch.ones(1, 1), 1.0, 0.0, integrator, throw=False)
        assert solution.status in (Status.SUCCESS, Status.STEP_UNDERFLOW)
