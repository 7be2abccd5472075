"""Steps that all samples take in common: those of a fixed-step method, as long as every state is finite."""

from collections.abc import Generator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.clock import real_dtype, shared_times
from dise.integrate.multistep.own_steps import AdamsFormula
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request, Result
from dise.integrate.problem.run import Run
from dise.integrate.runge_kutta.running_sums import RunningSums
from dise.integrate.runge_kutta.step import Attempt, StepTimes
from dise.integrate.runge_kutta.tableau import ButcherTableau
from dise.integrate.status import Status
from dise.integrate.stepping.control import Controller, FixedSteps
from dise.integrate.stepping.grids import EqualParts, Fractions, Grid
from dise.integrate.tracing import has_finite_sum, known_all, known_finite, on_host


class Reached(NamedTuple):
    """The point that all samples have reached."""

    steps: int
    t: Tensor  # [n]
    y: Tensor  # [n, F]
    k1: Tensor | None  # [n, F] f(t, y); None: unknown

    @property
    def slope(self) -> Tensor:
        """k1, or a NaN expanded without memory."""
        return self.y.new_full((), torch.nan).expand_as(self.y) if self.k1 is None else self.k1


class CommonSteps(NamedTuple):
    """The steps of a fixed-step method, of which each sample takes the same number.

    They need no columns of status, errors and counts, which the loop has for samples that differ: results of samples
    whose states stay finite are constants. Small batches gain by that, whose evaluations of f take as long as a few
    operations.
    """

    tableau: ButcherTableau
    grid: Grid
    number: int  # of steps

    @classmethod
    def of(
        cls, tableau: ButcherTableau | AdamsFormula, control: Controller, problem: Problem, run: Run
    ) -> "CommonSteps | None":
        """The steps of a method; None: steps may differ, something observes them, or values need a device sync."""
        if not isinstance(control, FixedSteps) or not isinstance(tableau, ButcherTableau):
            return None
        number = control.grid.steps
        if number is None or control.max_steps is not None or control.test is not None or problem.breaks is not None:
            return None
        if run.observers or run.events is not None or run.accumulate is not None:
            return None
        if run.rounds is not None or run.checkpoint or not (problem.shares_times or on_host(problem.y0)):
            return None
        return cls(tableau, control.grid, number)

    def take(self, problem: Problem, run: Run, first: list[Tensor]) -> Generator[Request, Tensor, Result | Reached]:
        """The result of all steps; or the start of the step in which a state is not finite, for the loop to go on from.

        Args:
            problem: without break points.
            run: how to integrate.
            first: k1 [n, F], which is taken out, so that the caller's frame does not hold it until the end.
        """
        reached = Reached(0, problem.t0, problem.y0, first.pop())
        sums = RunningSums(self.tableau, problem.y0) if RunningSums.suit(self.tableau, problem.y0) else None
        dt = problem.t0
        while reached.steps < self.number:
            index, t, y, k1 = reached
            t_next = self.grid.end(index, t, problem.t0, problem.t1)
            attempt = Attempt(self.tableau, t, t_next, y, k1, sums=sums, times=self._times(problem, index))
            if index == 0:
                dt = attempt.dt
                if not self._moves(dt, problem) or not self._known_after(k1):
                    return reached
            del y, k1
            while attempt.pending:
                # without names for the point, which this frame would hold until the next one
                attempt.stages.append((yield _request(problem, *attempt.point())))
            y_next = attempt.end()
            if not (has_finite_sum if problem.shares_times else known_finite)(y_next):
                return reached
            reached = Reached(index + 1, t_next, y_next, attempt.stages[-1] if self.tableau.fsal else None)
            del attempt, y_next
        return Result.of_end(reached.y, reached.t) if run.end_only else self._result(reached, dt)

    def _times(self, problem: Problem, index: int) -> StepTimes | None:
        """The times of a step, if they are known."""
        if problem.span is None or not problem.shares_times or not isinstance(self.grid, EqualParts | Fractions):
            return None
        t0, t1 = problem.span
        y = problem.y0
        return _shared_step(self.tableau.c, self.grid, index, t0, t1, y.shape[0], real_dtype(y), y.device)

    def _moves(self, dt: Tensor, problem: Problem) -> bool:
        """Whether all first steps dt [n] are known to have a length; one that is the whole span has the span's."""
        return (self.number == 1 and problem.nonempty_spans is True) or known_all(dt)

    def _known_after(self, k1: Tensor | None) -> bool:
        """Whether the end of a step will tell if y0 and k1 [n, F] are finite; it always tells of y0."""
        return self.tableau.b[0] != 0 or (k1 is not None and known_finite(k1))

    def _result(self, end: Reached, dt: Tensor) -> Result:
        """The result of samples that have taken all steps."""
        each = self.tableau.evaluations if self.tableau.fsal else self.tableau.stages

        def counts(value: int) -> Tensor:
            return torch.full_like(dt, value, dtype=torch.int64)

        error = torch.full_like(dt, torch.nan, dtype=real_dtype(end.y))
        return Result(
            y=end.y,
            t=end.t,
            nfe=counts(each * self.number + self.tableau.fsal),
            n_steps=counts(self.number),
            n_accepted=counts(self.number),
            error=error,
            status=counts(int(Status.SUCCESS)),
            dt=dt,
            accumulated=torch.zeros_like(error),
            k1=end.k1,
        )


def _request(problem: Problem, t: Tensor, y: Tensor) -> Request:
    """The request for f at t [n] and y [n, F], with a copy of times that other solves share."""
    return Request(None, t.clone() if problem.shares_times else t, y)


@lru_cache(maxsize=256)
def _shared_step(
    nodes: tuple[float, ...],
    grid: EqualParts | Fractions,
    index: int,
    t0: float,
    t1: float,
    number: int,
    dtype: torch.dtype,
    device: torch.device,
) -> StepTimes:
    """The times of a grid's step of samples with one span, for all solves; see `shared_times`."""
    start, end = (shared_times(t, number, device) for t in (t0, t1))
    with torch.inference_mode(False):
        t = grid.end(index - 1, start, start, end) if index else start
        return StepTimes.of(nodes, t, grid.end(index, t, start, end), dtype)
