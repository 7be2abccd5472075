"""Observers of a solve: the log of its steps, and its progress."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.output.padding import PaddedRows
from dise.integrate.problem.hooks import StepRecord


class AcceptedSteps(NamedTuple):
    """S accepted steps of B samples, sample by sample, each sample's in the direction of the integration."""

    sample: Tensor  # [S] index of the sample
    t_next: Tensor  # [S] end of the step
    ratio: Tensor  # [S] scaled error estimate; NaN if it is not measured
    attempt: Tensor  # [S] row of the step in the concatenated rows of `attempts`
    attempts: list[StepRecord]  # all attempted steps, round by round; empty if the log keeps no stages


class StepLog:
    """The attempted steps of a solve; `Solution.steps` and dense output are read from it.

    Nothing is read from the device before the solve is over.

    Args:
        number: of samples, B.
        device: of the solve.
        stages: keep each step's state and stages as well, from which `DenseSolution` interpolates. Memory then grows
            as in a solve with gradients.
    """

    joins_rounds = True

    def __init__(self, number: int, device: torch.device, *, stages: bool) -> None:
        self._starts = torch.zeros(number, dtype=torch.int64, device=device)  # [B] how often a sample started over
        self._stages = stages
        self._columns: list[tuple[Tensor, ...]] = []  # sample, starts by then, accept, t_next, ratio
        self._attempts: list[StepRecord] = []

    def see(self, record: StepRecord) -> None:
        """Log an attempted step."""
        starts = self._starts[record.sample]
        self._columns.append((record.sample, starts, record.accept, record.t_next, record.ratio))
        if self._stages:
            self._attempts.append(record)

    def start_over(self, sample: Tensor) -> None:
        """Discard the steps of these samples, which another integrator solves from the start."""
        self._starts = self._starts.index_add(0, sample, torch.ones_like(sample))

    def accepted(self) -> AcceptedSteps | None:
        """The accepted steps since each sample's last start; None if there was no attempt."""
        if not self._columns:
            return None
        sample, starts, accept, t_next, ratio = (torch.cat(column) for column in zip(*self._columns, strict=True))
        rows = (accept & (starts == self._starts[sample])).nonzero().flatten()
        rows = rows[sample[rows].argsort(stable=True)]
        return AcceptedSteps(sample[rows], t_next[rows], ratio[rows], rows, self._attempts)


class Steps(NamedTuple):
    """The accepted steps of B samples, in each sample's order; rows are padded with NaN at the end."""

    t: Tensor  # [B, S] end of each step
    ratio: Tensor  # [B, S] its scaled error estimate; NaN if the method embeds none

    @classmethod
    def of(cls, log: StepLog, like: Tensor, *, batched: bool) -> "Steps":
        """The accepted steps of a log.

        Args:
            log: of the solve.
            like: [B], of the dtype and device of times.
            batched: whether the solve had a batch; the steps of one system are [S].
        """
        accepted, number = log.accepted(), len(like)
        if accepted is None:
            steps = cls(like.new_empty(number, 0), like.new_empty(number, 0))
        else:
            rows = PaddedRows.of(accepted.sample, number)
            steps = cls(rows(accepted.t_next), rows(accepted.ratio))
        return steps if batched else cls(steps.t[0], steps.ratio[0])


class Progress:
    """How far a solve has come; `solve`'s `progress` is called with it after each round of attempted steps.

    Steps that events stop come after their round, when the events are located: one more call, without a new round.

    It stays on the device: reading it is up to the callback, e.g. `float(progress.fraction.min())`.

    Attributes:
        rounds: rounds of attempted steps so far; in a round every sample that still runs attempts one step.
        t: [B] time that each sample has reached.
    """

    def __init__(self, callback: Callable[["Progress"], object], t0: Tensor, t1: Tensor) -> None:
        self._callback, self._t0, self._t1 = callback, t0.detach(), t1.detach()
        self.rounds, self.t = 0, self._t0

    @property
    def fraction(self) -> Tensor:
        """[B] part of its span that each sample has completed, in [0, 1]."""
        span = self._t1 - self._t0
        return torch.where(span == 0, 1, (self.t - self._t0) / torch.where(span == 0, 1, span))

    def see(self, record: StepRecord) -> None:
        """Count the round and call the callback."""
        reached = torch.where(record.accept, record.t_next.detach(), self.t[record.sample])
        self.t = self.t.index_put((record.sample,), reached)
        self.rounds += not record.late
        self._callback(self)

    def start_over(self, sample: Tensor) -> None:
        """Set these samples back to their start."""
        self.t = self.t.index_put((sample,), self._t0[sample])
