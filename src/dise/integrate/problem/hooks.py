"""Hooks called after each attempted step: observers, which change nothing, and a rule that looks for events."""

from typing import NamedTuple, Protocol

from torch import Tensor

from dise.integrate.annotations import Bool, Float, Inexact, Int
from dise.integrate.runge_kutta.step import Step


class EventMemory(NamedTuple):
    """What is remembered of the steps of N samples to find the next of E events."""

    side: Float[Tensor, "N E"]  # sign of each event's function, 0 on its surface
    happened: Int[Tensor, "N E"]  # how often each event has happened


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
    events: StepEvents | None = None  # within the step; the step of a sample that one of them interrupts ends there


class Observer(Protocol):
    """Receives every attempted step."""

    def see(self, record: StepRecord) -> None:
        """Take note of an attempted step."""
        ...

    def start_over(self, sample: Tensor) -> None:
        """Discard the steps of these samples: another integrator restarts them from t0."""
        ...


class Interruption(NamedTuple):
    """R samples whose step ends at an event: they stop there, or restart from another state."""

    row: Int[Tensor, " R"]  # of the step
    stop: Bool[Tensor, " R"]
    t: Float[Tensor, " R"]  # time of the event
    y: Inexact[Tensor, "R F"]  # state there
    y_after: Inexact[Tensor, "R F"]  # state from which the sample continues


class EventRule(Protocol):
    """Looks for events within steps. A pure function: what it remembers of a step is handed to it at the next one."""

    @property
    def stops(self) -> bool:
        """Whether an event may stop a sample."""
        ...

    @property
    def changes(self) -> bool:
        """Whether an event may change a sample's state, so that the sample restarts from there."""
        ...

    def start(self, sample: Tensor) -> EventMemory:
        """The memory of samples [N] of the solve's batch before their first step."""
        ...

    def look(
        self, memory: EventMemory, place: Tensor, record: StepRecord
    ) -> tuple[EventMemory, StepEvents | None, Interruption | None]:
        """The memory after a step, and the events within it; None: there are none.

        Args:
            memory: of N samples.
            place: [n] which of them took the step.
            record: of the step, with indices in the solve's batch.
        """
        ...
