"""Stepping rules: where a step ends, whether it is accepted, and how long the next one is."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dise.integrate.clock import real_dtype
from dise.integrate.problem.breaks import Breaks
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request
from dise.integrate.problem.run import Run
from dise.integrate.problem.state import Layout
from dise.integrate.runge_kutta.step import Step, finite_rows, within
from dise.integrate.status import Status
from dise.integrate.stepping.controllers import IController
from dise.integrate.stepping.grids import EqualParts, Fractions, FractionsByTime, Grid, WholePiece
from dise.integrate.stepping.tolerance import ErrorTest
from dise.integrate.tracing import is_differentiated, known_finite, known_min

MAX_RESTARTS = 10_000  # as many as `Adaptive` takes steps: events may happen infinitely often in a finite time


class Verdict(NamedTuple):
    """A controller's judgement of an attempted step of n samples."""

    accept: Tensor  # [n] bool
    error: Tensor  # [n] scaled error estimate; NaN if it is not measured
    dt: Tensor  # [n] length of the next attempt
    memory: Tensor | None  # [n] passed to the next step's `judge`
    all_accepted: bool = False  # whether `accept` is known to be True everywhere


class StepEnd(NamedTuple):
    """The end of a step of n samples."""

    t: Tensor  # [n]
    before_t1: bool  # whether it is known to come before t1 for all samples


FirstStep = Generator[Request, Tensor, tuple[Tensor, int]]


class Controller(Protocol):
    """A stepping rule, as the loop uses it."""

    @property
    def rounds(self) -> int | None:
        """Number of steps; None if it is not known in advance."""
        ...

    @property
    def test(self) -> ErrorTest | None:
        """Measure of a step's error; None if errors are not measured."""
        ...

    @property
    def max_steps(self) -> int | None:
        """Attempted steps after which a sample fails; None: no limit."""
        ...

    @property
    def on_grid(self) -> bool:
        """Whether `end` reads t0."""
        ...

    @property
    def remembers(self) -> bool:
        """Whether `judge` reads its memory."""
        ...

    @property
    def stretch(self) -> float:
        """Longest last step, in units of the length that the rule chose; 1: last steps are what is left."""
        ...

    def first_step(self, problem: Problem, k1: Tensor, order: int, run: Run) -> FirstStep:
        """[n] signed first step, and the number of evaluations of f that choosing it took; 0 is a step that fails."""
        ...

    def with_restarts(self) -> "Controller":
        """The rule for samples that may restart within a step."""
        ...

    def with_breaks(self, problem: Problem, breaks: Breaks) -> "tuple[Controller, Problem]":
        """The rule for a problem with break points, and the problem with the break points that the rule adds."""
        ...

    def end(self, index: int, t: Tensor, dt: Tensor, t0: Tensor | None, t1: Tensor) -> StepEnd:
        """The end of step number `index`, which starts at t [n]; of the last step t1 itself."""
        ...

    def judge(self, step: Step, error: Tensor | None, memory: Tensor | None, layout: Layout, run: Run) -> Verdict:
        """Accept or reject each sample's step.

        Args:
            step: the attempted step.
            error: [n, F] its error estimate; None if there is no `test`.
            memory: [n] that of the last verdict, 1 at the start; None if the rule does not remember.
            layout: of the state.
            run: the solve's settings.
        """
        ...

    def planned(self, dt: Tensor, accept: Tensor, t: Tensor, t1: Tensor) -> Tensor:
        """[n] length of the next attempt, from the verdict's, for steps that ended at t [n] of spans that end at t1."""
        ...

    def stuck(self, step: Step, verdict: Verdict, run: Run) -> Tensor:
        """[n] bool, whether a sample cannot continue after this verdict, unless its step was accepted."""
        ...

    def reason(self, verdict: Verdict) -> Tensor:
        """[n] status of the samples that failed by this verdict; meaningless for the others."""
        ...


@dataclass(frozen=True)
class FixedSteps:
    """Steps that end where a grid says, each accepted if it is finite.

    Args:
        grid: the ends of the steps.
        test: measures the steps' errors; None: errors are NaN.
        max_steps: as in `Controller`, for grids without a last step.
    """

    grid: Grid
    test: ErrorTest | None = None
    max_steps: int | None = None
    on_grid = True
    remembers = False
    stretch = 1.0

    @property
    def rounds(self) -> int | None:
        """The grid's number of steps."""
        return self.grid.steps

    def first_step(self, problem: Problem, k1: Tensor, order: int, run: Run) -> FirstStep:
        """The grid's first step."""
        if self.rounds is not None:
            _check_finite(problem, run)
        return self.grid.end(0, problem.t0, problem.t0, problem.t1) - problem.t0, 0
        yield  # makes this a generator, like other controllers' first step; it requests nothing

    def with_restarts(self) -> "FixedSteps":
        """Steps that end where the grid says although a sample restarts between its ends."""
        if isinstance(self.grid, WholePiece) and self.grid.steps is not None:
            return replace(self, grid=WholePiece(None), max_steps=self.grid.steps + MAX_RESTARTS)
        if not isinstance(self.grid, EqualParts | Fractions):
            return self
        return replace(self, grid=FractionsByTime.of(self.grid), max_steps=self.grid.steps + MAX_RESTARTS)

    def with_breaks(self, problem: Problem, breaks: Breaks) -> "tuple[FixedSteps, Problem]":
        """One step per piece, with the grid's ends as further break points."""
        steps, t0, t1 = self.grid.steps, problem.t0, problem.t1
        if steps is None:
            return self, problem
        points = [self.grid.end(index, t0, t0, t1) for index in range(steps - 1)]
        if points:
            breaks = breaks.with_steps(t0, torch.stack(points, 1))
        return replace(self, grid=WholePiece(breaks.ends.shape[1])), replace(problem, breaks=breaks)

    def end(self, index: int, t: Tensor, dt: Tensor, t0: Tensor | None, t1: Tensor) -> StepEnd:
        """The grid's, which does not depend on dt."""
        return StepEnd(self.grid.end(index, t, t if t0 is None else t0, t1), False)

    def judge(self, step: Step, error: Tensor | None, memory: Tensor | None, layout: Layout, run: Run) -> Verdict:
        """Accept every finite step."""
        if self.test is None or error is None:
            ratio = torch.full_like(step.t, torch.nan, dtype=real_dtype(step.y))
        else:
            ratio = self.test.ratio(step, error, layout)
        finite = known_finite(step.y_next)
        accept = torch.ones_like(step.t, dtype=torch.bool) if finite else finite_rows(step.y_next)
        return Verdict(accept, ratio, step.dt, memory, finite)

    def planned(self, dt: Tensor, accept: Tensor, t: Tensor, t1: Tensor) -> Tensor:
        """The same: a grid ends at t1."""
        return dt

    def stuck(self, step: Step, verdict: Verdict, run: Run) -> Tensor:
        """Samples whose step is not finite."""
        return ~verdict.accept

    def reason(self, verdict: Verdict) -> Tensor:
        """NaN or infinity."""
        return torch.full_like(verdict.accept, int(Status.NON_FINITE), dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class ErrorControl:
    """A step size per sample, by the embedded error estimate: a step is accepted if the scaled error is at most 1."""

    test: ErrorTest
    controller: IController
    initial: str | float
    dt_min: float
    dt_max: float
    accept_at_dt_min: bool
    max_steps: int | None
    order: int  # power of dt with which the error estimate decreases
    stretch: float = 1.0  # see `Controller`
    rounds: None = None
    on_grid = False

    @property
    def remembers(self) -> bool:
        """Whether the controller may have a memory."""
        return type(self.controller) is not IController

    def with_breaks(self, problem: Problem, breaks: Breaks) -> "tuple[ErrorControl, Problem]":
        """The same: steps are cut at the pieces' ends."""
        return self, problem

    def first_step(self, problem: Problem, k1: Tensor, order: int, run: Run) -> FirstStep:
        """The problem's dt, the span, a number, or one of the rules (see `ErrorControlled`)."""
        if problem.breaks is not None:  # f may jump after the first piece
            problem = replace(problem, t1=problem.breaks.ends[:, 0], span=None)
        span = problem.t1 - problem.t0
        if problem.dt is not None:
            return self._first(torch.where(problem.dt == 0, span, torch.copysign(problem.dt, span)), problem), 0
        if self.initial == "span":
            _check_finite(problem, run)
            return self._first(span, problem), 0
        if self.initial == "scale":
            step = _constant(_step_by_scale(problem, k1, self.test, run), run)
            return self._first(_resolved(step, problem), problem), 0
        if self.initial == "heuristic":
            step = _constant((yield from _starting_step(problem, k1, order, self.test, run)), run)
            return self._first(_resolved(step, problem), problem), 1
        step = torch.copysign(span.abs().clamp(max=float(self.initial)), span)
        return self._first(_resolved(step, problem), problem), 0

    def _first(self, dt: Tensor, problem: Problem) -> Tensor:
        """A first step within the limits; 0 if dt_max is shorter than the clock resolves."""
        if self.dt_max == float("inf"):
            return self._limited(dt)
        dt = self._limited(dt)
        return torch.where(problem.t0 + dt == problem.t0, 0, dt)

    def with_restarts(self) -> "ErrorControl":
        """Itself: its steps may start anywhere."""
        return self

    def _limited(self, dt: Tensor) -> Tensor:
        if self.dt_min == 0 and self.dt_max == float("inf"):
            return dt
        return torch.copysign(dt.abs().clamp(self.dt_min, self.dt_max), dt)

    def end(self, index: int, t: Tensor, dt: Tensor, t0: Tensor | None, t1: Tensor) -> StepEnd:
        """t + dt, or t1 if t + dt reaches it up to a few roundings, so that no tiny last step is left."""
        steps, slack = (t1 - t) / dt, 1 + 100 * torch.finfo(t.dtype).eps
        if known_min(steps) > 2:  # of few units in the last place a shorter step may round to t1
            return StepEnd(t + dt, True)
        return StepEnd(torch.where(steps <= slack, t1, t + dt), False)

    def judge(self, step: Step, error: Tensor | None, memory: Tensor | None, layout: Layout, run: Run) -> Verdict:
        """Accept if the scaled error is at most 1; a non-finite attempt is retried with a shorter step."""
        scaled = self.test.ratio(step, step.error() if error is None else error, layout)
        ratio, dt = scaled, step.dt
        if not run.differentiate_step_sizes and is_differentiated(scaled):
            ratio, dt = scaled.detach(), step.dt.detach()
        accept = ratio <= 1
        if self.accept_at_dt_min:
            accept = accept | (self._at_dt_min(step) & ratio.isfinite())
        order = self.order if step.estimate is None else step.estimate.order
        factor, memory = self.controller.factor(ratio, memory, accept, order)
        return Verdict(accept, scaled, self._limited(dt * factor), memory)

    def planned(self, dt: Tensor, accept: Tensor, t: Tensor, t1: Tensor) -> Tensor:
        """The length after an accepted step, without a short last step.

        No step follows the last one, so that may be longer by `stretch`; two equal steps replace a long and a shorter
        one. After a rejected step the controller's length stays, hence a rejected last step is not repeated.
        """
        if self.stretch == 1:
            return dt
        left = t1 - t
        steps = left / dt
        if known_min(steps) > max(2, self.stretch):
            return dt
        ahead = torch.where(steps <= self.stretch, left, torch.where(steps <= 2, left / 2, dt))
        return torch.where(accept & (left != 0), self._limited(ahead), dt)

    def stuck(self, step: Step, verdict: Verdict, run: Run) -> Tensor:
        """Samples whose next step would be too short to attempt."""
        # Test dt/10, as Hairer's DOPRI5 does: a slightly shorter step may round to the same one and loop for ever.
        stuck = torch.add(step.t, verdict.dt, alpha=0.1) == step.t
        if run.endless:
            stuck = stuck | verdict.dt.isinf()  # the first step of an infinite span may be infinite
        if self.dt_min > 0:
            stuck = stuck | self._at_dt_min(step)
        return stuck

    def reason(self, verdict: Verdict) -> Tensor:
        """Why no shorter step was tried: step underflow, dt_min, or f not finite."""
        why = Status.DT_MIN if self.dt_min > 0 else Status.STEP_UNDERFLOW
        # `<` is False for a NaN error too
        return torch.where(verdict.error.detach() < torch.inf, int(why), int(Status.NON_FINITE))

    def _at_dt_min(self, step: Step) -> Tensor:
        """[n] bool, whether a step is as short as dt_min allows, up to the rounding of its end."""
        rounding = 4 * torch.finfo(step.t.dtype).eps * (step.t.abs() + step.dt.abs())
        return step.dt.abs() <= self.dt_min + rounding


def _check_finite(problem: Problem, run: Run) -> None:
    if run.endless and not problem.t1.isfinite().all():
        raise ValueError(
            "t1: expected finite times, since the first step is a part of the span; for an infinite t1 use an adaptive "
            "integrator with another first_step than 'span'"
        )


def _constant(step: Tensor, run: Run) -> Tensor:
    """The first step without its forward-mode derivative, unless step sizes have one; `no_grad` leaves that."""
    return step if run.differentiate_step_sizes else step.detach()


def _resolved(step: Tensor, problem: Problem) -> Tensor:
    """The first step, lengthened to what the precision of t resolves; a shorter one would never advance t."""
    ends = torch.maximum(problem.t0.abs(), torch.where(problem.t1.isinf(), 0, problem.t1).abs())
    shortest = (4 * torch.finfo(step.dtype).eps * ends).minimum((problem.t1 - problem.t0).abs())
    return torch.copysign(step.abs().maximum(shortest), step)


def _step_by_scale(problem: Problem, k1: Tensor, test: ErrorTest, run: Run) -> Tensor:
    """[n] first step of which half would have an Euler error as large as the tolerance, if y'' were about y'/T.

    The time scale T is that in which y' changes y0 by its own size, at most the span. The error test corrects a wrong
    guess, so none is made with an evaluation of f.
    """
    span = problem.t1 - problem.t0
    with torch.set_grad_enabled(run.differentiate_step_sizes and torch.is_grad_enabled()):
        scale = test.scale(problem.y0.abs(), problem.layout)
        d0, d1 = (test.size(x / scale, problem.layout).to(span.dtype) for x in (problem.y0, k1))
        longest = torch.where(span.isinf(), 1, span.abs())
        usable = (d0 > 1e-5) & (d1 > 1e-5)
        time_scale = torch.where(usable, d0 / torch.where(usable, d1, 1), longest).minimum(longest)
        moving = d1 > 1e-5
        step = torch.where(moving, 0.5 * (2 * time_scale / torch.where(moving, d1, 1)).sqrt(), longest)
        # a NaN step would make t NaN; take a finite one, whose failure has its own status
        return torch.copysign(torch.where(step.isfinite(), step, longest).minimum(span.abs()), span)


def _starting_step(
    problem: Problem, k1: Tensor, order: int, test: ErrorTest, run: Run
) -> Generator[Request, Tensor, Tensor]:
    """[n] first step: h0 such that an explicit Euler step has a small error, then h1 such that the method's has one.

    Source: Hairer, Nørsett, Wanner, II.4, "Starting step size", with torchdiffeq's exponent 1/order. The probe at
    t0 + h0 stays within the span.
    """
    y0, layout = problem.y0, problem.layout
    span = problem.t1 - problem.t0
    longest = torch.where(span.isinf(), 1, span.abs())  # first step where f is NaN; that step then fails
    with torch.set_grad_enabled(run.differentiate_step_sizes and torch.is_grad_enabled()):
        scale = test.scale(y0.abs(), layout)
        d0, d1 = test.size(y0 / scale, layout), test.size(k1 / scale, layout)
        tiny = (d0 < 1e-5) | (d1 < 1e-5)
        h0 = torch.where(tiny, 1e-6, 0.01 * d0 / torch.where(tiny, 1.0, d1))
        # h0 is not finite where y0 or f is not; keep the probe's time within the span
        h0 = torch.where(h0.isfinite(), h0, longest).minimum(span.abs())
        probe = torch.copysign(h0, span)
        t_probe = torch.where(h0 == span.abs(), problem.t1, problem.t0 + probe)
        y1 = torch.addcmul(y0, probe[:, None].to(real_dtype(y0)), k1)
        if problem.breaks is not None:
            t_probe = within(t_probe.to(problem.breaks.bounds.dtype), problem.breaks.bounds[:, 0])
    f1 = yield Request(None, t_probe, y1)
    with torch.set_grad_enabled(run.differentiate_step_sizes and torch.is_grad_enabled()):
        d2 = test.size((f1 - k1) / scale, layout) / h0
        largest = torch.maximum(d1, d2)
        flat = largest <= 1e-15
        h1 = torch.where(flat, (h0 * 1e-3).clamp(min=1e-6), (0.01 / torch.where(flat, 1.0, largest)) ** (1 / order))
        step = torch.minimum(100 * h0, h1)
        # a NaN step would make t NaN; take a finite one, whose failure has its own status
        step = torch.where(step.isfinite(), step, longest).minimum(span.abs())
        return torch.copysign(step, span)
