"""Who watches a solve: each attempted step is shown to the observers, who see it and change nothing."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dise.integrate.problem.hooks import StepRecord


class Steps(NamedTuple):
    """The accepted steps of B samples, in each sample's order; rows are padded with NaN at the end."""

    t: Tensor  # [B, S] where each step ended
    ratio: Tensor  # [B, S] its scaled error estimate; NaN if the method embeds none


class Record:
    """Keeps the accepted times and error ratios of `number` samples."""

    def __init__(self, number: int, device: torch.device) -> None:
        self._started_over = torch.zeros(number, dtype=torch.int64, device=device)
        self._seen: list[tuple[Tensor, ...]] = []

    def see(self, seen: StepRecord) -> None:
        """Keep it."""
        self._seen.append((seen.sample, self._started_over[seen.sample], seen.accept, seen.t_next, seen.ratio))

    def start_over(self, sample: Tensor) -> None:
        """Void what was seen of these samples."""
        self._started_over = self._started_over.index_add(0, sample, torch.ones_like(sample))

    def steps(self, like: Tensor, *, batched: bool) -> Steps:
        """What was kept; `like` [B] has the dtype and device of times. One system's steps are [S]."""
        steps = self._padded(like)
        return steps if batched else Steps(steps.t[0], steps.ratio[0])

    def _padded(self, like: Tensor) -> Steps:
        number = len(self._started_over)
        if not self._seen:
            return Steps(like.new_empty(number, 0), like.new_empty(number, 0))
        sample, start_over, accept, t, ratio = (torch.cat(column) for column in zip(*self._seen, strict=True))
        rows = (accept & (start_over == self._started_over[sample])).nonzero().flatten()
        rows = rows[sample[rows].argsort(stable=True)]
        counts = torch.bincount(sample[rows], minlength=number).tolist()
        padded = (
            pad_sequence(column[rows].split(counts), batch_first=True, padding_value=torch.nan) for column in (t, ratio)
        )
        return Steps(*padded)


class Progress:
    """How far a solve is; what `solve`'s `progress` is called with after each round of attempted steps.

    It lives on the device: nothing is read from it unless you do, e.g. by `float(progress.fraction.min())`.

    Attributes:
        rounds: rounds of attempted steps so far; a round steps every sample that still runs once.
        t: [B] time that each sample has reached.
    """

    def __init__(self, tell: Callable[["Progress"], object], t0: Tensor, t1: Tensor) -> None:
        self._tell, self._t0, self._t1 = tell, t0.detach(), t1.detach()
        self.rounds, self.t = 0, self._t0

    @property
    def fraction(self) -> Tensor:
        """[B] share of its span that each sample has done, in [0, 1]."""
        span = self._t1 - self._t0
        return torch.where(span == 0, 1, (self.t - self._t0) / torch.where(span == 0, 1, span))

    def see(self, seen: StepRecord) -> None:
        """A round is over: tell the user."""
        moved = torch.where(seen.accept, seen.t_next, seen.step.t).detach()
        self.t = self.t.index_put((seen.sample,), moved)
        self.rounds += 1
        self._tell(self)

    def start_over(self, sample: Tensor) -> None:
        """These samples are at their start again."""
        self.t = self.t.index_put((sample,), self._t0[sample])
