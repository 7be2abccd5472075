"""One Runge–Kutta step."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.annotations import Bool, Float, Inexact
from dise.integrate.clock import real_dtype
from dise.integrate.runge_kutta.running_sums import RunningSums
from dise.integrate.runge_kutta.tableau import ButcherTableau, StageWeights, WeightedSum
from dise.integrate.tracing import is_differentiated


class StepError(NamedTuple):
    """The error estimate of a step whose method has other weights in each step."""

    value: Inexact[Tensor, "n F"]
    order: Float[Tensor, " n"]  # power of dt with which it decreases


class Step(NamedTuple):
    """An attempted step of n samples, each from its own t over its own dt. Times have the clock's dtype."""

    t: Float[Tensor, " n"]  # start
    dt: Float[Tensor, " n"]  # signed length
    y: Inexact[Tensor, "n F"]  # state at t
    y_next: Inexact[Tensor, "n F"]  # state at t + dt
    stages: tuple[Inexact[Tensor, "n F"], ...]  # k_i
    tableau: StageWeights
    bounds: Float[Tensor, "n 2"] | None = None  # smallest and largest time that f may receive
    estimate: StepError | None = None  # where it is not the tableau's
    inside: Inexact[Tensor, "M n F"] | None = None  # states at some places within the step, if they are known

    def error(self) -> Tensor:
        """[n, F] embedded error estimate: dt Σ_i b_err_i k_i, or the difference of corrector and predictor.

        Raises:
            ValueError: the method has no embedded error estimate.
        """
        if self.estimate is not None:
            return self.estimate.value
        return _error(self.tableau, self.dt.to(real_dtype(self.y)).unsqueeze(1), self.stages)

    def take(self, rows: Tensor) -> "Step":
        """The step of some of the samples."""
        t, dt, y, y_next = (x.index_select(0, rows) for x in self[:4])
        stages = tuple(stage.index_select(0, rows) for stage in self.stages)
        bounds = None if self.bounds is None else self.bounds.index_select(0, rows)
        estimate = None if self.estimate is None else StepError(*(x.index_select(0, rows) for x in self.estimate))
        return Step(t, dt, y, y_next, stages, self.tableau, bounds, estimate)

    @classmethod
    def joined(cls, steps: "Sequence[Step]") -> "Step":
        """Several steps by one method, one after the other."""
        first = steps[0]
        t, dt, y, y_next = (torch.cat(column) for column in list(zip(*steps, strict=True))[:4])
        stages = tuple(torch.cat(column) for column in zip(*(step.stages for step in steps), strict=True))
        bounds = None if first.bounds is None else torch.cat([step.bounds for step in steps if step.bounds is not None])
        estimate = None
        if first.estimate is not None:
            estimates = [step.estimate for step in steps if step.estimate is not None]
            estimate = StepError(*(torch.cat(column) for column in zip(*estimates, strict=True)))
        return cls(t, dt, y, y_next, stages, first.tableau, bounds, estimate)


class StepTimes(NamedTuple):
    """The times of a step of n samples."""

    dt: Float[Tensor, " n"]  # signed length, in the clock's dtype
    # the same in the state's real dtype; the clock's would turn sums into float64
    column: Float[Tensor, "n 1"] | Float[Tensor, "n F"]
    stages: Sequence[Tensor]  # [n] time of each stage in that dtype

    @classmethod
    def of(
        cls,
        nodes: tuple[float, ...],
        t: Tensor,
        t_next: Tensor,
        dtype: torch.dtype,
        bounds: Tensor | None = None,
        *,
        pending: bool = True,
        features: int = 1,
    ) -> "StepTimes":
        """Those of a step from t [n] to t_next [n] by a method with these nodes; see `Attempt`.

        Without `pending` stages their times are left out. With several features the lengths are written out for each:
        operations that repeat a number along short rows are slow.
        """
        dt = t_next - t
        if features == 1:
            column = dt.to(dtype).unsqueeze(1)
        else:
            written = dt.unsqueeze(1).expand(-1, features)
            column = written.to(dtype, copy=True, memory_format=torch.contiguous_format)
        return cls(dt, column, _stage_times(nodes, t, t_next, dtype, bounds) if pending else ())


def unscaled_sum(weights: WeightedSum, stages: Sequence[Tensor] | Mapping[int, Tensor]) -> Tensor:
    """[n, F] k_first + Σ_i factor_i k_i: the weighted sum divided by its scale. Stages of weight 0 are not read."""
    total = stages[weights.first]
    for i, factor in weights.others:
        total = torch.add(total, stages[i], alpha=factor)
    return total


def _error(tableau: StageWeights, dt: Tensor, stages: Sequence[Tensor]) -> Tensor:
    """[n, F] error estimate of steps of lengths dt [n, 1]."""
    weights = tableau.error_sum
    if weights is None:
        raise ValueError("this Runge–Kutta method has no embedded error estimate; use one that has, e.g. Dopri5")
    return dt * weights.scale * unscaled_sum(weights, stages)


def finite_rows(x: Inexact[Tensor, "n F"]) -> Bool[Tensor, " n"]:
    """Which rows of [n, F] are free of NaN and infinity: 0 times either is NaN. Faster than isfinite."""
    return (x.detach() * 0).sum(1) == 0


class Attempt:
    """A step in progress. `point` is where f is needed next; the caller appends its values to `stages`:

        while attempt.pending:
            attempt.stages.append(f(*attempt.point()))
        step = attempt.finish()

    The same code serves the coroutine, which requests f, and the compiled graph, which calls it.

    Args:
        tableau: the method.
        t, t_next: [n] start and end of each sample's step in the clock's dtype; f is never evaluated outside.
        y: [n, F] state at t.
        k1: [n, F] first stage, f(t, y), if known.
        bounds: [n, 2] smallest and largest time that f may receive, beside a jump; None: no limits.
        sums: of the stages, which belong to this attempt until the next one begins; None: sums are added up one by one.
        times: of the step, if they are known.
        before_t1: whether t_next is known to come before the end of the span for all samples.
    """

    def __init__(
        self,
        tableau: ButcherTableau,
        t: Tensor,
        t_next: Tensor,
        y: Tensor,
        k1: Tensor | None = None,
        bounds: Tensor | None = None,
        sums: RunningSums | None = None,
        times: StepTimes | None = None,
        *,
        before_t1: bool = False,
    ) -> None:
        self.tableau, self.t, self.t_next, self.y, self.bounds = tableau, t, t_next, y, bounds
        self.before_t1 = before_t1
        self.stages = [] if k1 is None else [k1]
        self._number = tableau.stages
        if times is None:
            features = 1 if sums is None else y.shape[1]
            times = StepTimes.of(tableau.c, t, t_next, real_dtype(y), bounds, pending=self.pending, features=features)
        self.dt, self._dt_column, self._times = times
        self.evaluations = self._number - len(self.stages)
        self._y_stage, self._sums = y, sums
        if sums is not None:
            sums.clear()

    @property
    def pending(self) -> bool:
        """Whether a stage is still missing."""
        return len(self.stages) < self._number

    def point(self) -> tuple[Tensor, Tensor]:
        """[n] time and [n, F] state of the next stage, both in y's real dtype."""
        i = len(self.stages)
        if i > 0:
            self._y_stage = self._advance(i)
        return self._times[i], self._y_stage

    def finish(self) -> Step:
        """The completed step; all stages must be present."""
        step = Step(self.t, self.dt, self.y, self.end(), tuple(self.stages), self.tableau, self.bounds)
        inside = None if self._sums is None else self._sums.inside(self.stages, self.y, self._dt_column)
        return step if inside is None else step._replace(inside=inside)

    def end(self) -> Tensor:
        """[n, F] state at the completed step's end."""
        # first same as last: the last stage was evaluated at the step's end, so its state is y_next
        return self._y_stage if self.tableau.last_at_end else self._advance(self._number)

    def error(self) -> Tensor:
        """[n, F] the completed step's embedded error estimate; see `Step.error`."""
        if self._sums is None or self.tableau.error_sum is None:
            return _error(self.tableau, self._dt_column, self.stages)
        return self._sums.error(self.stages, self._dt_column, self.tableau.error_sum.scale)

    def _advance(self, i: int) -> Tensor:
        """[n, F] state of stage i, or the step's end if there is none: y + dt · a weighted sum of the stages."""
        tableau = self.tableau
        weights = tableau.stage_sums[i] if i < self._number else tableau.solution_sum
        total = unscaled_sum(weights, self.stages) if self._sums is None else self._sums.stage(i, self.stages)
        return torch.addcmul(self.y, self._dt_column, total, value=weights.scale)


def _stage_times(
    nodes: tuple[float, ...], t: Tensor, t_next: Tensor, dtype: torch.dtype, bounds: Tensor | None
) -> Sequence[Tensor]:
    """[n] time of each stage, t + c_i·dt, computed in the clock's dtype, rounded to f's and moved into the bounds."""
    times: Sequence[Tensor]
    if len(nodes) == 1:
        times = (t.to(dtype),)
    elif torch.compiler.is_compiling():  # a graph fuses these; a tensor of nodes would be a constant of the graph
        times = [torch.lerp(t, t_next, c).to(dtype) for c in nodes]
    else:
        times = torch.lerp(t, t_next, _nodes(nodes, t.dtype, t.device)).to(dtype).unbind()
    return times if bounds is None else [within(time, bounds) for time in times]


def within(times: Tensor, bounds: Tensor) -> Tensor:
    """Times [n] moved into their bounds [n, 2], with the gradient of the times themselves."""
    low, high = bounds.to(times.dtype).unbind(-1)
    inside = times.clamp(low, high)
    return times + (inside - times).detach() if is_differentiated(times) else inside


@lru_cache(maxsize=64)  # every step needs them, and they may have to be copied to a device
def _nodes(c: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[stages, 1] the tableau's nodes."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in later training
        return torch.tensor(c, dtype=dtype, device=device).unsqueeze(1)
