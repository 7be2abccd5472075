"""The loop's state: a row for each sample."""

from typing import NamedTuple

from torch import Tensor

from dise.integrate.compile.backend import by_feature
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

    def by_feature(self) -> "LoopRows":
        """The same; narrow states lie in memory feature by feature, so that compiled loops over rows are of vectors."""
        return self._replace(y=by_feature(self.y), k1=by_feature(self.k1))


class LoopState(NamedTuple):
    """Where an integration is between two rounds."""

    rows: LoopRows  # in the loop
    left: tuple[LoopRows, ...]  # out of it
    done: int  # rounds
    over: bool
