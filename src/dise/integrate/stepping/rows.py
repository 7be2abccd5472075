"""The state of the integration loop: a row per sample."""

from typing import NamedTuple

from torch import Tensor

from dise.integrate.annotations import Bool, Float, Inexact, Int
from dise.integrate.multistep.own_steps import History
from dise.integrate.problem.hooks import EventMemory
from dise.integrate.status import Status

RUNNING = int(Status.RUNNING)


class LoopRows(NamedTuple):
    """The samples in the loop, with a row for each.

    t0, t1, t and dt have the clock's dtype; error, memory and accumulated have the real dtype of y.
    """

    sample: Int[Tensor, " n"]  # which of the problem's samples
    t0: Float[Tensor, " n"]
    t1: Float[Tensor, " n"]  # end of the span, or of the row's piece of it
    k1: Inexact[Tensor, "n F"]  # f(t, y), where it is known
    known: Bool[Tensor, " n"]  # whether k1 is; after a step only if the method is FSAL
    y: Inexact[Tensor, "n F"]
    t: Float[Tensor, " n"]
    n_steps: Int[Tensor, " n"]
    n_accepted: Int[Tensor, " n"]
    error: Float[Tensor, " n"]
    status: Int[Tensor, " n"]
    dt: Float[Tensor, " n"]
    memory: Float[Tensor, " n"]  # the controller's
    accumulated: Float[Tensor, "n ..."]
    restarts: Int[Tensor, " n"]  # evaluations of f beside those of the steps, at restarts
    # only if the spans have break points (see `Breaks`)
    piece: Int[Tensor, " n"] | None = None  # index of the row's piece
    bounds: Float[Tensor, "n 2"] | None = None  # of the times that f receives in it
    # only of multistep methods (see `History`)
    past: Inexact[Tensor, "n P F"] | None = None  # f at the points before t
    past_t: Float[Tensor, "n P"] | None = None
    n_past: Int[Tensor, " n"] | None = None

    def take(self, rows: Tensor) -> "LoopRows":
        """Some of the rows."""
        columns = {name: x for name, x in self._asdict().items() if x is not None}
        return self._replace(**{name: x.index_select(0, rows) for name, x in columns.items()})

    def history(self) -> History | None:
        """The points before t; None: a one-step method's."""
        if self.past is None or self.past_t is None or self.n_past is None:
            return None
        return History(self.past, self.past_t, self.n_past)

    def with_history(self, history: History) -> "LoopRows":
        """The rows with other points before t."""
        return self._replace(past=history.values, past_t=history.t, n_past=history.number)

    def forget(self, which: Tensor) -> "LoopRows":
        """The rows, of which some [R] start again without points before t."""
        return self if self.n_past is None else self._replace(n_past=self.n_past.index_fill(0, which, 0))


class LoopState(NamedTuple):
    """The loop between two rounds."""

    rows: LoopRows
    left: tuple[LoopRows, ...]  # finished, and dropped from the loop
    done: int  # number of rounds
    running: int | None  # number of rows that run, where it is known without a device sync
    over: bool = False
    events: EventMemory | None = None  # of all samples of the problem
