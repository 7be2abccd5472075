"""Fixed steps of one system by a mean slope, y_next = y + dt·slope: Adams methods, and the option perturb."""

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dise.integrate import ButcherTableau, Integrator
from dise.integrate.clock import next_after, real_dtype
from dise.integrate.multistep.adams_weights import bashforth_weights, moulton_weights
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration, Request
from dise.integrate.problem.run import Run
from dise.integrate.problem.state import Layout
from dise.integrate.runge_kutta import classical
from dise.integrate.runge_kutta.step import Attempt, unscaled_sum
from dise.integrate.stepping.control import FixedSteps
from dise.integrate.stepping.grids import Grid
from dise.integrate.stepping.loop import integrate
from dise.integrate.stepping.method import Method
from dise.integrate.stepping.rounds import RoundsDone
from dise.integrate.stepping.rows import RUNNING, LoopRows
from dise.integrate.stepping.tolerance import ErrorTest
from dise.integrate.tracing import known_all
from dise.torchdiffeq.integrators import Callback, with_callbacks

# A step whose mean slope is given: its stages are f at the start, of weight 0, and the slope.
SLOPE = ButcherTableau(c=(0.0, 0.0), a=((), (0.0,)), b=(0.0, 1.0), order=1)


@dataclass(frozen=True)
class StepEnds:
    """Times at which f is evaluated for a step's ends.

    Args:
        perturb: torchdiffeq's option: a number of this dtype beside the end, inside the step; None: the end itself.
    """

    perturb: torch.dtype | None = None

    def first(self, t: Tensor, t_next: Tensor) -> Tensor:
        """The time for the start t of a step to t_next."""
        return self._beside(t, t_next - t)

    def last(self, t: Tensor, t_next: Tensor) -> Tensor:
        """The time for the end t_next of a step from t."""
        return self._beside(t_next, t - t_next)

    def _beside(self, t: Tensor, direction: Tensor) -> Tensor:
        if self.perturb is None:
            return t
        rounded = t.detach().to(self.perturb)
        beside = next_after(rounded, torch.where(direction > 0, torch.inf, -torch.inf).to(rounded))
        return t + (beside.to(t) - t).detach()


class FixedStepStart(NamedTuple):
    """The start of a step of one system."""

    t: Tensor  # [1]
    t_next: Tensor  # [1]
    y: Tensor  # [1, F]
    f: Tensor  # [1, F] f(t, y)


class SlopeRule(Protocol):
    """How a method finds the mean slope of its next step."""

    def slope(self, start: FixedStepStart) -> Generator[Request, Tensor, Tensor]:
        """[1, F] the slope, as a coroutine that requests evaluations of f."""
        ...


@dataclass(frozen=True)
class RungeKuttaSlope:
    """The slope of a Runge–Kutta method without "first same as last"."""

    tableau: ButcherTableau
    ends: StepEnds = StepEnds()

    def slope(self, start: FixedStepStart) -> Generator[Request, Tensor, Tensor]:
        """[1, F] Σ_i b_i k_i."""
        attempt = Attempt(self.tableau, start.t, start.t_next, start.y, start.f)
        while attempt.pending:
            at_end = self.tableau.c[len(attempt.stages)] == 1
            t, y = attempt.point()
            attempt.stages.append((yield Request(None, self.ends.last(start.t, start.t_next) if at_end else t, y)))
        weights = self.tableau.solution_sum
        return weights.scale * unscaled_sum(weights, attempt.stages)


class AdamsSlope:
    """The slope of Adams methods in torchdiffeq's form: of growing order, by the formulas for equal steps.

    The first two steps are those of the 3/8 rule. A later step predicts by Adams–Bashforth over all values of f that
    are kept; an implicit method corrects by Adams–Moulton, of one order more, until two iterates agree.

    Args:
        implicit: whether to correct.
        max_order: largest order of the corrector; max_order − 1 values of f are kept.
        max_iters: largest number of corrections.
        agree: whether two increments [1, F] agree.
        ends: where f is evaluated for a step's ends.

    Source: Hairer, Nørsett, Wanner, III.1.
    """

    def __init__(
        self,
        *,
        implicit: bool,
        max_order: int,
        max_iters: int,
        agree: Callable[[Tensor, Tensor], bool],
        ends: StepEnds,
    ) -> None:
        self._implicit, self._kept, self._max_iters, self._agree = implicit, max(max_order - 1, 1), max_iters, agree
        self._ends, self._starting = ends, RungeKuttaSlope(classical.RK38, ends)
        self._past: list[Tensor] = []  # values of f, the latest first

    def slope(self, start: FixedStepStart) -> Generator[Request, Tensor, Tensor]:
        """[1, F] the slope of the highest order that the kept values allow."""
        self._past = [start.f, *self._past][: self._kept]
        if len(self._past) < 3:
            return (yield from self._starting.slope(start))
        slope = _weighted(bashforth_weights(len(self._past)), self._past)
        return (yield from self._corrected(start, slope)) if self._implicit else slope

    def _corrected(self, start: FixedStepStart, slope: Tensor) -> Generator[Request, Tensor, Tensor]:
        first, *others = moulton_weights(len(self._past) + 1)
        known, dt = _weighted(others, self._past), (start.t_next - start.t).to(real_dtype(start.y))[:, None]
        time = self._ends.last(start.t, start.t_next)
        for _ in range(self._max_iters):
            value = yield Request(None, time, torch.addcmul(start.y, dt, slope))
            before, slope = slope, torch.add(known, value, alpha=float(first))
            if self._agree(dt * before, dt * slope):
                return slope
        warnings.warn(
            f"implicit_adams: the corrector did not converge in {self._max_iters} iterations (max_iters), so the "
            "solution may be inaccurate; take shorter steps, or raise rtol and atol",
            stacklevel=2,
        )
        self._past.pop()  # as in torchdiffeq: the order does not grow
        return slope


def _weighted(weights: Sequence[Fraction], values: Sequence[Tensor]) -> Tensor:
    total = float(weights[0]) * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = torch.add(total, value, alpha=float(weight))
    return total


@torch.no_grad()
def increments_agree(test: ErrorTest, layout: Layout, one: Tensor, other: Tensor) -> bool:
    """Whether two increments [1, F] differ by less than the tolerance in every component, relative to the larger."""
    scale = test.scale(torch.maximum(one.abs(), other.abs()), layout)
    return bool(((one - other).abs() < scale).all())


@dataclass(frozen=True, eq=False, kw_only=True)
class SlopeMethod(Integrator):
    """A fixed-step method that steps by a mean slope.

    Args:
        rule: makes the rule of one solve, from the state's layout.
        tableau: `SLOPE` with an interpolant.
        ends: where f is evaluated for a step's ends.
        grid, callbacks, max_steps: as in `FixedMethod`.
    """

    rule: Callable[[Layout], SlopeRule]
    tableau: ButcherTableau
    ends: StepEnds
    grid: Callable[[Tensor], Grid]
    callbacks: Mapping[str, Callback]
    max_steps: int | None = None

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Step one system from t0 to t1."""
        k1 = yield Request(None, self.ends.first(problem.t0, problem.t1), problem.y0)
        rule = self.rule(problem.layout)
        run = replace(
            with_callbacks(run, problem, self.callbacks),
            rounds=lambda method, problem, run: SlopeRounds(method, run, problem.layout, rule, self.ends),
        )
        control = FixedSteps(self.grid(torch.cat([problem.t0, problem.t1])), max_steps=self.max_steps)
        return (yield from _counted(integrate(self.tableau, control, replace(problem, k1=k1), run), 1))


def _counted(integration: Integration, before: int) -> Integration:
    """The integration, whose result's nfe is the number of its requests, and of those `before` it."""
    number, value = before, None
    while True:
        try:
            request = next(integration) if value is None else integration.send(value)
        except StopIteration as stop:
            return stop.value._replace(nfe=torch.full_like(stop.value.nfe, number))  # type: ignore[no-any-return]
        value = yield request
        number += 1


class SlopeRounds:
    """The loop's rounds: a step of one system by a mean slope."""

    def __init__(self, method: Method, run: Run, layout: Layout, rule: SlopeRule, ends: StepEnds) -> None:
        self._method, self._run, self._layout, self._rule, self._ends = method, run, layout, rule, ends

    def size(self, rows: int, running: int) -> int:
        """The number that still run."""
        return running

    def attempt(
        self, rows: LoopRows, index: int, subset: Tensor | None, running: int | None, limit: float
    ) -> Generator[Request, Tensor, RoundsDone]:
        """Attempt one round."""
        method, mask = self._method, None if running == 1 else rows.status == RUNNING
        if mask is not None and known_all(mask):
            mask = None
        t_next, _ = method.control.end(index, rows.t, rows.dt, rows.t0, rows.t1)
        t_next = t_next if mask is None else torch.where(mask, t_next, rows.t)
        # f at the last step's end is known with cubic interpolation, but not on this side of a discontinuity
        if index > 0 and (self._ends.perturb is not None or not method.tableau.fsal):
            rows = rows._replace(k1=(yield Request(None, self._ends.first(rows.t, t_next), rows.y)))
        attempt = method.begin(rows, index, mask, known=True)
        attempt.stages.append((yield from self._rule.slope(FixedStepStart(rows.t, t_next, rows.y, rows.k1))))
        while attempt.pending:
            attempt.stages.append((yield Request(None, *attempt.point())))
        after, record = method.end(rows, attempt, self._layout, self._run, mask)
        return RoundsDone(after, record, 1, 1 if after.status is rows.status else None)
