"""The loop's state: a row for each sample."""

from typing import NamedTuple

from torch import Tensor

from dise.integrate.status import Status

RUNNING = int(Status.RUNNING)


class LoopRows(NamedTuple):
    """The samples in the loop, a row each."""

    sample: Tensor  # which of the problem's samples
    t0: Tensor
    t1: Tensor
    k1: Tensor  # f(t, y), where it is known
    known: Tensor  # [n] bool, whether it is: always if the method evaluates f at a step's end, else until the row moves
    y: Tensor
    t: Tensor
    n_steps: Tensor
    n_accepted: Tensor
    error: Tensor
    status: Tensor
    dt: Tensor
    memory: Tensor  # the controller's
    accumulated: Tensor

    def take(self, rows: Tensor) -> "LoopRows":
        """Some of the rows."""
        return LoopRows(*(field.index_select(0, rows) for field in self))


class LoopState(NamedTuple):
    """The loop between two rounds."""

    rows: LoopRows  # in the loop
    left: tuple[LoopRows, ...]  # finished, and dropped from the loop
    done: int  # number of rounds
    running: int | None  # number of rows that run, where it is known without a device sync
    over: bool = False
