"""What a solve returns beside the states at the end, kept while its steps are taken."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from dise.integrate.arguments import Span
from dise.integrate.output.event_log import EventLog
from dise.integrate.output.event_search import EventSearch
from dise.integrate.output.events import AnyEvent
from dise.integrate.output.functions import FunctionCaller, Values
from dise.integrate.output.interpolation import DenseSolution
from dise.integrate.output.observers import Progress, StepLog, Steps
from dise.integrate.output.saved_steps import SavedSteps
from dise.integrate.output.saving import SavePoints
from dise.integrate.problem.hooks import Observer
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Result
from dise.integrate.solution import Interpolant
from dise.integrate.stepping.statistics import Accumulators


class Wanted(NamedTuple):
    """What a user wants beside the states at the end: checked arguments of `dise.solve`.

    Attributes:
        points: times [B, T] of the save points and False where they are padding.
        events: the events by their names.
        statistics: running statistics of the accepted steps.
        save, save_every, dense, record, progress: see `dise.solve`.
    """

    points: tuple[Tensor, Tensor] | None
    save: Callable[..., Values] | None
    save_every: int | None
    events: dict[str, AnyEvent] | None
    statistics: Accumulators | None
    dense: bool
    record: bool
    progress: Callable[[Progress], object] | None

    @property
    def whole_steps(self) -> bool:
        """Whether all tensors of a state are needed within each step."""
        parts = (self.points, self.save_every, self.events, self.statistics)
        return self.dense or any(part is not None for part in parts)


class Outputs(NamedTuple):
    """The observers that keep or show what is wanted, and the search for events; None for what is not."""

    search: EventSearch | None
    points: SavePoints | None
    ends: SavedSteps | None
    events: EventLog | None
    log: StepLog | None
    progress: Progress | None

    @classmethod
    def of(cls, wanted: Wanted, problem: Problem, caller: FunctionCaller, *, states_only: bool) -> "Outputs":
        """The observers of a solve.

        Args:
            wanted: what to keep.
            problem: the whole batch.
            caller: calls the user's functions.
            states_only: at save points keep the states, whatever is to be saved.
        """
        search = None if wanted.events is None else EventSearch(wanted.events, caller, problem)
        save = None if states_only else wanted.save
        logged = wanted.dense or wanted.record
        return cls(
            search=search,
            points=None if wanted.points is None else SavePoints(*wanted.points, problem, caller, save),
            ends=None if wanted.save_every is None else SavedSteps(wanted.save_every, problem, caller, wanted.save),
            events=None if search is None else EventLog(search.names, problem),
            log=StepLog(len(problem), problem.y0.device, stages=wanted.dense) if logged else None,
            progress=None if wanted.progress is None else Progress(wanted.progress, problem.t0, problem.t1),
        )

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Those that are there."""
        parts = (self.log, self.points, self.ends, self.events, self.progress)
        return tuple(part for part in parts if part is not None)

    def saved(self, result: Result) -> tuple[Values | None, Tensor | None]:
        """The saved values after a solve, and their times if those are ends of steps."""
        if self.ends is not None:
            t, values = self.ends.finish()
            return values, t
        return None if self.points is None else self.points.finish(result), None

    @property
    def stopped(self) -> tuple[EventSearch, Tensor] | None:
        """The search, and [B] the index of the event that stopped each sample (see `Solution.which`)."""
        if self.search is None or self.events is None:
            return None
        return self.search, self.events.stopped_by()

    def fields(self, wanted: Wanted, problem: Problem, result: Result, span: Span) -> dict[str, Any]:
        """The fields of `Solution` for what is wanted, but for the saved values."""
        batched = problem.layout.batched
        fields: dict[str, Any] = {}
        if wanted.statistics is not None and result.accumulated is not None:
            fields["accumulated"] = wanted.statistics.result(result.accumulated, batched=batched)
        if self.events is not None:
            which = self.events.stopped_by()
            fields |= {"events": self.events.events(result), "which": which if batched else which[0]}
        if wanted.dense and self.log is not None:
            fields["interpolant"] = Interpolant(DenseSolution.of(self.log, problem, result), span, problem.layout)
        if wanted.record and self.log is not None:
            fields["steps"] = Steps.of(self.log, problem.t0, batched=batched)
        return fields
