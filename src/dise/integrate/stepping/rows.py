"""The state of the integration loop: a row per sample."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dise.integrate.annotations import Bool, Float, Inexact, Int
from dise.integrate.multistep.own_steps import History
from dise.integrate.problem.hooks import EventMemory, EventSteps
from dise.integrate.status import Status
from dise.integrate.tracing import replaced

RUNNING = int(Status.RUNNING)
# of dropped rows that wait to be taken out: numbers in the state that their rows have, and how often rows were dropped
WAITING_NUMEL, WAITING_PARTS = 2**12, 16
CONSTANT_COLUMNS = ("sample", "t1", "t0", "restarts", "piece", "bounds")  # those that a step does not change


class LoopRows(NamedTuple):
    """The samples in the loop, with a row for each.

    t0, t1, t and dt have the clock's dtype; error, memory and accumulated have the real dtype of y. A column that the
    solve does not need is None, because dropping finished samples copies every column.
    """

    sample: Int[Tensor, " n"]  # which of the problem's samples
    t1: Float[Tensor, " n"]  # end of the span, or of the row's piece of it
    k1: Inexact[Tensor, "n F"]  # f(t, y), where it is known
    y: Inexact[Tensor, "n F"]
    t: Float[Tensor, " n"]
    n_steps: Int[Tensor, " n"]
    n_accepted: Int[Tensor, " n"]
    error: Float[Tensor, " n"]
    status: Int[Tensor, " n"]
    dt: Float[Tensor, " n"]
    t0: Float[Tensor, " n"] | None = None  # for grids
    known: Bool[Tensor, " n"] | None = None  # whether k1 is f(t, y), for methods that do not know it after every step
    memory: Float[Tensor, " n"] | None = None  # of a controller that has one
    accumulated: Float[Tensor, "n ..."] | None = None
    restarts: Int[Tensor, " n"] | None = None  # evaluations of f beside those of the steps, where samples may restart
    # only if the spans have break points (see `Breaks`)
    piece: Int[Tensor, " n"] | None = None  # index of the row's piece
    bounds: Float[Tensor, "n 2"] | None = None  # of the times that f receives in it
    # only of multistep methods (see `History`)
    differences: Inexact[Tensor, "n P F"] | None = None
    separations: Float[Tensor, "n P"] | None = None
    n_past: Int[Tensor, " n"] | None = None
    rounding: Inexact[Tensor, "n F"] | None = None

    def take(self, rows: Tensor) -> "LoopRows":
        """Some of the rows."""
        columns: list[Any] = [None if column is None else column.index_select(0, rows) for column in self]
        return LoopRows(*columns)

    @classmethod
    def joined(cls, parts: "Sequence[LoopRows]") -> "LoopRows":
        """The rows of several parts, one after the other."""
        columns: list[Any] = [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]
        return cls(*columns)

    def finished(self) -> "LoopRows":
        """The rows without the columns that matter to running rows only."""
        kept = self._replace(t0=None, memory=None, piece=None, bounds=None)
        return kept._replace(differences=None, separations=None, n_past=None, rounding=None)

    def history(self) -> History | None:
        """The points before t; None: a one-step method's."""
        if self.differences is None or self.separations is None or self.n_past is None or self.rounding is None:
            return None
        return History(self.differences, self.separations, self.n_past, self.rounding)

    def with_history(self, history: History) -> "LoopRows":
        """The rows with other points before t."""
        differences, separations, number, rounding = history
        return replaced(self, differences=differences, separations=separations, n_past=number, rounding=rounding)

    def forget(self, which: Tensor) -> "LoopRows":
        """The rows, of which some [R] start again without points before t."""
        if self.n_past is None or self.rounding is None:
            return self
        number, rounding = (x.index_fill(0, which, 0) for x in (self.n_past, self.rounding))
        return self._replace(n_past=number, rounding=rounding)


def changing(rows: LoopRows) -> tuple[str, ...]:
    """The columns that a step changes."""
    columns = zip(LoopRows._fields, rows, strict=True)
    return tuple(name for name, x in columns if x is not None and name not in CONSTANT_COLUMNS)


class DroppedRows(NamedTuple):
    """Samples that have finished and left the loop.

    Taking rows out of all columns takes as long for few rows as for some more, so those of small states wait until
    several rounds have dropped some, in the rows that still have them.
    """

    parts: tuple[tuple[LoopRows, Tensor | None], ...] = ()  # rows, and which of them are meant; None: all

    def with_rows(self, rows: LoopRows, which: Tensor) -> "DroppedRows":
        """These and some [R] of other rows."""
        dropped = DroppedRows((*self.parts, (rows.finished(), which)))
        if rows.y.numel() <= WAITING_NUMEL and len(dropped.parts) < WAITING_PARTS:
            return dropped
        return DroppedRows(((dropped.taken(), None),))

    def taken(self, *others: LoopRows) -> LoopRows:
        """The dropped rows alone, and after them all of the others."""
        parts = [*self.parts, *((rows.finished(), None) for rows in others)]
        if len(parts) == 1:
            rows, which = parts[0]
            return rows if which is None else rows.take(which)
        places, before = [], 0
        for rows, which in parts:
            number = len(rows.sample)
            places.append(torch.arange(number, device=rows.t.device) + before if which is None else which + before)
            before += number
        return LoopRows.joined([rows for rows, _ in parts]).take(torch.cat(places))


class StoppedRows(NamedTuple):
    """R samples that events have stopped."""

    sample: Int[Tensor, " R"]  # which of the problem's samples
    t: Float[Tensor, " R"]  # time of the event
    y: Inexact[Tensor, "R F"]  # state there


class LoopEvents(NamedTuple):
    """The events of the loop."""

    memory: EventMemory  # of all samples of the problem
    waiting: tuple[EventSteps, ...] = ()  # steps whose events are not located yet
    stopped: tuple[StoppedRows, ...] = ()  # by the events that are


class LoopState(NamedTuple):
    """The loop between two rounds."""

    rows: LoopRows
    left: DroppedRows
    done: int  # number of rounds
    running: int | None  # number of rows that run, where it is known without a device sync
    over: bool = False
    events: LoopEvents | None = None
