"""Grids: where the steps of a fixed-step method end."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from dise import RK4, Status, solve
from dise.integrate import FixedStep
from dise.integrate.runge_kutta import classical
from dise.integrate.stepping.control import FixedSteps
from dise.integrate.stepping.grids import AbsoluteTimes, EqualLengths, EqualParts


@dataclass(frozen=True)
class Fractions:
    """A grid of one's own: given fractions of each sample's span."""

    fractions: tuple[float, ...]

    @property
    def steps(self):
        return len(self.fractions)

    def end(self, index, t, t0, t1):
        return t1 if index + 1 == self.steps else torch.lerp(t0, t1, self.fractions[index])


def euler(grid, max_steps=None):
    """Euler's method on a grid."""

    class OnGrid(FixedStep):
        tableau = classical.EULER
        control = FixedSteps(grid, max_steps=max_steps)

    return OnGrid()


def growth(t, y):
    return y


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


SPANS = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 5.0, -1.0]).double()


def test_fractions_are_of_each_samples_span():
    """One Euler step multiplies y by 1 + dt."""
    t0, t1 = SPANS
    fractions = (0.1, 0.4, 1.0)
    solution = solve(growth, column(1.0, 1.0, 1.0), t0, t1, euler(Fractions(fractions)), record=True)
    span = t1 - t0
    assert_close(solution.y[:, 0], (1 + 0.1 * span) * (1 + 0.3 * span) * (1 + 0.6 * span))
    assert_close(solution.steps.t, t0[:, None] + span[:, None] * torch.tensor(fractions).double())
    assert torch.equal(solution.t, t1)
    assert solution.nfe.tolist() == [3, 3, 3]
    assert_close(solution.dt, 0.1 * span)


def test_equal_parts_are_a_case_of_fractions():
    t0, t1 = SPANS
    y0 = column(1.0, 2.0, 3.0)
    parts, fractions = (
        solve(growth, y0, t0, t1, euler(grid), record=True)
        for grid in (EqualParts(7), Fractions(tuple((i + 1) / 7 for i in range(7))))
    )
    assert torch.equal(parts.y, fractions.y)
    assert torch.equal(parts.steps.t, fractions.steps.t)


def test_absolute_times_are_the_same_for_all_samples():
    times = torch.tensor([1.0, 1.5, 3.0, 3.25]).double()
    solution = solve(growth, column(1.0, -2.0), 1.0, 3.25, euler(AbsoluteTimes(times)), record=True)
    assert_close(solution.y, column(1.0, -2.0) * 1.5 * 2.5 * 1.25)
    assert solution.steps.t.tolist() == [[1.5, 3.0, 3.25]] * 2


def test_equal_lengths_end_at_t1():
    t0, t1 = SPANS
    solution = solve(growth, column(1.0, 1.0, 1.0), t0, t1, euler(EqualLengths(0.75)), record=True)
    assert solution.n_steps.tolist() == [2, 6, 4]
    assert solution.steps.t[0, :2].tolist() == [0.75, 1.0]
    assert solution.steps.t[2, :4].tolist() == [1.25, 0.5, -0.25, -1.0]
    assert_close(solution.y[:, 0], torch.tensor([1.75 * 1.25, 1.75**5 * 1.25, 0.25**4]).double())


@pytest.mark.parametrize("sign", [1, -1])
def test_equal_lengths_over_an_endless_span_end_in_an_event(sign):
    event = lambda t, y: t[:, 0].abs() - 2.1  # noqa: E731
    solution = solve(growth, column(1.0), 0.0, sign * math.inf, euler(EqualLengths(0.5)), event=event)
    assert solution.n_steps.item() == 5
    assert solution.t.item() == pytest.approx(sign * 2.1, rel=1e-12)


def test_equal_lengths_without_event_end_in_an_error():
    never = lambda t, y: 0 * y[:, 0] + 1  # noqa: E731
    integrator = euler(EqualLengths(0.5), max_steps=9)
    solution = solve(growth, column(1.0), 0.0, math.inf, integrator, event=never, throw=False)
    assert (solution.status, solution.n_steps) == (Status.MAX_STEPS, 9)


@pytest.mark.parametrize("grid", [EqualParts(4), Fractions((0.1, 0.5, 0.9, 1.0))])
def test_no_step_of_a_grid_is_taken_past_a_failure(grid):
    """f is NaN from the second half on, so the third step fails, and the state stays that of the second."""
    f = lambda t, y: torch.where(t >= 0.5, math.nan, y)  # noqa: E731
    solution = solve(f, column(1.0, 1.0), 0.0, torch.tensor([1.0, 0.4]), euler(grid), throw=False)
    assert solution.status.tolist() == [Status.NON_FINITE, Status.SUCCESS]
    assert solution.n_accepted.tolist() == [2, 4]
    assert solution.t.tolist() == pytest.approx([0.5, 0.4])


def test_grids_have_gradients_in_the_spans_ends():
    t0, t1 = (t.clone().requires_grad_() for t in SPANS)
    y0 = column(1.0, 2.0, 3.0)
    solve_to = lambda t0, t1: solve(growth, y0, t0, t1, euler(Fractions((0.2, 1.0)))).y  # noqa: E731
    assert torch.autograd.gradcheck(solve_to, (t0, t1))


def test_the_classical_method_steps_in_equal_parts():
    assert RK4(5).control == FixedSteps(EqualParts(5))
