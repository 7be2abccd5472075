"""Rounds of the loop: in each, every row attempts one step."""

from collections.abc import Generator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request
from dise.integrate.problem.run import Run
from dise.integrate.runge_kutta.running_sums import RunningSums
from dise.integrate.runge_kutta.tableau import ButcherTableau
from dise.integrate.stepping.method import Method
from dise.integrate.stepping.rows import RUNNING, LoopRows
from dise.integrate.tracing import known_all


class RoundsDone(NamedTuple):
    """The outcome of some rounds."""

    rows: LoopRows
    record: StepRecord | None  # the attempted steps, of all rounds; may be None if there are no observers and events
    number: int  # of rounds
    running: int | None  # number of rows that still run, where it is known without a device sync
    # columns of the rows after each round [number · n], by name, where several are done and events looked for
    after: Mapping[str, Tensor] | None = None


class Rounds(Protocol):
    """Attempts steps of all rows."""

    def size(self, rows: int, running: int) -> int:
        """How many rows to keep when only `running` of them still run."""
        ...

    def attempt(
        self, rows: LoopRows, index: int, subset: Tensor | None, running: int | None, limit: float
    ) -> Generator[Request, Tensor, RoundsDone]:
        """Attempt at least one round, and at most `limit`.

        Args:
            rows: the loop's rows.
            index: number of the first round.
            subset: [n] the rows' indices in the problem; None: the whole problem, in order.
            running: number of rows that still run, if it is known.
            limit: largest number of rounds.
        """
        ...


class EagerRounds:
    """One round at a time, whose evaluations of f are requested."""

    def __init__(self, method: Method, problem: Problem, run: Run) -> None:
        self._method, self._problem, self._layout, self._run = method, problem, problem.layout, run
        self._sums: RunningSums | None = None

    def size(self, rows: int, running: int) -> int:
        """The number that still run."""
        return running

    def attempt(
        self, rows: LoopRows, index: int, subset: Tensor | None, running: int | None, limit: float
    ) -> Generator[Request, Tensor, RoundsDone]:
        """Attempt one round."""
        number, method = rows.t.shape[0], self._method
        mask = None if running == number else rows.status == RUNNING
        if mask is not None and running is None and known_all(mask):
            mask = None
        known = index == 0 or method.tableau.fsal
        if not known:
            rows, known = yield from _first_stages(rows, mask, subset)
        attempt = method.begin(rows, index, mask, self._sums_for(rows.y), known=known)
        while attempt.pending:
            attempt.stages.append((yield Request(subset, *attempt.point())))
        f = self._run.field_of_statistics(self._problem, subset)
        after, record = method.end(rows, attempt, self._layout, self._run, mask, f)
        rounds = method.control.rounds
        if not method.tableau.fsal and rounds is not None and index + 1 < rounds:  # the next step has a k1 of its own
            unknown = after.k1.new_full((), torch.nan).expand_as(after.k1) if index == 0 else rows.k1
            after = after._replace(k1=unknown)
        # `end` returns the status itself only if all rows ran and none ended
        return RoundsDone(after, record, 1, number if after.status is rows.status else None)

    def _sums_for(self, y: Tensor) -> RunningSums | None:
        """Running sums of the stages, if the steps of y [n, F] may have them."""
        if self._sums is None or not self._sums.fit(y):
            self._sums, tableau, events = None, self._method.tableau, self._run.events
            if isinstance(tableau, ButcherTableau) and RunningSums.suit(tableau, y):
                inside = () if events is None or tableau.interpolant is None else events.inside(y)
                self._sums = RunningSums(tableau, y, inside)
        return self._sums


def _first_stages(
    rows: LoopRows, running: Tensor | None, subset: Tensor | None
) -> Generator[Request, Tensor, tuple[LoopRows, bool]]:
    """The rows, and whether the k1 of all of them is known.

    A method without "first same as last" knows k1 after a rejected step, but not after an accepted one. If all steps
    were accepted, the next steps begin by requesting k1. Otherwise f is requested for the rows that moved: one more
    device sync instead of evaluations that are known already.
    """
    if rows.known is None:
        return rows, False
    moved = ~rows.known if running is None else running & ~rows.known
    missing = moved.nonzero().flatten()
    if len(missing) == len(moved):
        return rows, False
    if len(missing):
        request = Request(missing if subset is None else subset[missing], rows.t[missing], rows.y[missing])
        rows = rows._replace(k1=rows.k1.index_put((missing,), (yield request)))
    return rows, True
