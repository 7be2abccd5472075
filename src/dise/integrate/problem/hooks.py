"""Hooks called after each attempted step: observers, which change nothing, and a rule that looks for events."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dise.integrate.annotations import Bool, Float, Inexact, Int
from dise.integrate.runge_kutta.step import Step


class EventMemory(NamedTuple):
    """What is remembered of the steps of N samples to find the next of E events."""

    side: Float[Tensor, "N E"]  # sign of each event's function, 0 on its surface
    happened: Int[Tensor, "N E"]  # how often each event has happened

    def put(self, place: Tensor, memory: "EventMemory") -> "EventMemory":
        """The memory with that of some of the samples [n] replaced."""
        return EventMemory(*(old.index_put((place,), new) for old, new in zip(self, memory, strict=True)))


class StepEvents(NamedTuple):
    """X events within a step."""

    sample: Int[Tensor, " X"]  # indices in the solve's batch
    which: Int[Tensor, " X"]  # index of the event
    t: Float[Tensor, " X"]
    y: Inexact[Tensor, "X F"]
    stop: Bool[Tensor, " X"]  # whether the event stops the sample


class StepRecord(NamedTuple):
    """An attempted step of n samples, and its outcome."""

    sample: Int[Tensor, " n"]  # indices in the solve's batch
    step: Step
    t_next: Float[Tensor, " n"]  # end of the step
    ratio: Float[Tensor, " n"]  # scaled error estimate; NaN if it is not measured
    accept: Bool[Tensor, " n"]  # False for finished samples
    # which steps an event stops at a time not known yet: accept is False, and a late record follows
    stopped: Bool[Tensor, " n"] | None = None
    late: bool = False  # whether these steps were shown before, as `stopped`
    events: StepEvents | None = None  # located by now; the step of a sample that one of them interrupts ends there
    rounds: int = 1  # whose steps follow each other in the rows: n / rounds of each, of the same samples in each

    @property
    def numel(self) -> int:
        """Numbers in the step's states and stages."""
        inside = 0 if self.step.inside is None else self.step.inside.numel()
        return (len(self.step.stages) + 2) * self.step.y.numel() + inside

    def apart(self) -> "Sequence[StepRecord]":
        """A record of each round, without events."""
        if self.rounds == 1:
            return (self,)
        rows = torch.arange(len(self.sample), device=self.sample.device).chunk(self.rounds)
        stopped = (None,) * self.rounds if self.stopped is None else self.stopped.chunk(self.rounds)
        return [self.take(some)._replace(stopped=part) for some, part in zip(rows, stopped, strict=True)]

    def take(self, rows: Tensor) -> "StepRecord":
        """The record of some of the steps, without events."""
        sample, t_next, ratio, accept = (
            x.index_select(0, rows) for x in (self.sample, self.t_next, self.ratio, self.accept)
        )
        return StepRecord(sample, self.step.take(rows), t_next, ratio, accept)

    @classmethod
    def joined(cls, records: "Sequence[StepRecord]") -> "StepRecord":
        """The steps of several records by one method, one after the other, without events."""
        if len(records) == 1:
            return records[0]
        sample, t_next, ratio, accept = (
            torch.cat(column)
            for column in zip(*((r.sample, r.t_next, r.ratio, r.accept) for r in records), strict=True)
        )
        return cls(sample, Step.joined([r.step for r in records]), t_next, ratio, accept)


class EventSteps(NamedTuple):
    """Steps of n samples in which events happen: X crossings, each enclosed but not located yet."""

    record: StepRecord  # with indices in the solve's batch
    place: Int[Tensor, " n"]  # which of the problem's samples
    happened: Int[Tensor, "n E"]  # how often each event had happened before
    row: Int[Tensor, " X"]  # of the record, increasing
    event: Int[Tensor, " X"]
    low: Float[Tensor, " X"]  # fractions of the step between which the crossing lies
    high: Float[Tensor, " X"]
    side: Float[Tensor, " X"]  # sign of the event's function before

    def compact(self) -> "EventSteps":
        """The same crossings without the rows that have none."""
        rows, row = torch.unique_consecutive(self.row, return_inverse=True)
        return self._replace(
            record=self.record.take(rows), place=self.place[rows], happened=self.happened[rows], row=row
        )

    @classmethod
    def joined(cls, parts: "Sequence[EventSteps]") -> "EventSteps":
        """Several of them, the earlier steps of a sample first."""
        if len(parts) == 1:
            return parts[0]
        rows, before = [], 0
        for part in parts:
            rows.append(part.row + before)
            before += len(part.place)
        columns = ((p.place, p.happened, p.event, p.low, p.high, p.side) for p in parts)
        place, happened, *crossings = (torch.cat(column) for column in zip(*columns, strict=True))
        return cls(StepRecord.joined([p.record for p in parts]), place, happened, torch.cat(rows), *crossings)


class SearchedSteps(NamedTuple):
    """The outcome of a search for events in n attempted steps; None: there are none."""

    memory: EventMemory  # after the steps; not that of samples that events change, see `Interruption`
    found: EventSteps | None = None  # steps after one that ends a sample have no events
    interrupted: Bool[Tensor, " n"] | None = None  # steps that an event interrupts
    undefined: Bool[Tensor, " n"] | None = None  # other steps at whose end the function of an event is NaN


class Observer(Protocol):
    """Receives every attempted step.

    One with an attribute `joins_rounds` may receive those of several rounds in one record, others round by round.
    """

    def see(self, record: StepRecord) -> None:
        """Take note of an attempted step."""
        ...

    def start_over(self, sample: Tensor) -> None:
        """Discard the steps of these samples: another integrator restarts them from t0."""
        ...


class Interruption(NamedTuple):
    """R samples whose step ends at an event: they stop there, or restart from another state."""

    row: Int[Tensor, " R"]  # of the steps
    stop: Bool[Tensor, " R"]
    t: Float[Tensor, " R"]  # time of the event
    y: Inexact[Tensor, "R F"]  # state there
    y_after: Inexact[Tensor, "R F"]  # state from which the sample continues
    memory: EventMemory | None  # with which the samples continue; None: all stop


class EventRule(Protocol):
    """Looks for events within steps. Pure functions: what is remembered of a step is handed over at the next one."""

    @property
    def stops(self) -> bool:
        """Whether an event may stop a sample."""
        ...

    @property
    def changes(self) -> bool:
        """Whether an event may change a sample's state, so that the sample restarts from there."""
        ...

    def inside(self, y: Tensor) -> tuple[float, ...]:
        """The places within a step of states like y [n, F] at which the rule looks, as fractions of its length."""
        ...

    def start(self, sample: Tensor) -> EventMemory:
        """The memory of samples [N] of the solve's batch before their first step."""
        ...

    def look(self, memory: EventMemory, place: Tensor, record: StepRecord) -> SearchedSteps:
        """The events within steps.

        Args:
            memory: of N samples.
            place: [n] which of them took the step.
            record: of the step, with indices in the solve's batch; of one round if events may change states.
        """
        ...

    def locate(self, found: EventSteps) -> tuple[StepEvents, Interruption | None]:
        """The events within steps, sample by sample in the order of time, and the samples that they interrupt."""
        ...
