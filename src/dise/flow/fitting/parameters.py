"""The free parameters of a multistep table, from which its times, scales and weights are computed differentiably."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dise.integrate import MultistepTable

Rows = Literal["consistent", "free"]
_NARROW = 1e-6  # of a gap between evaluation times that differ
_DELAY, _LATEST = 0.02, 0.9  # where a free first time begins at the earliest, and the latest one


class Coefficients(NamedTuple):
    """A table as tensors, float64 on the CPU.

    Attributes:
        times: [n] fractions of the span.
        scales: [n + 1] factors of the start; None: all are 1.
        increments: [n, n] lower triangular; row j holds what x_{j+1} adds to x_j, in units of the span.
    """

    times: Tensor
    scales: Tensor | None
    increments: Tensor

    @classmethod
    def of(cls, table: MultistepTable) -> "Coefficients":
        """Those of a table."""
        n = table.evaluations
        weights = torch.zeros(n + 1, n, dtype=torch.float64)
        for j, row in enumerate(table.weights):
            weights[j, :j] = torch.tensor(row, dtype=torch.float64)
        times, scales = (torch.tensor(x, dtype=torch.float64) for x in (table.times, table.scales))
        return cls(times, scales, weights.diff(dim=0))


class TableParameters(nn.Module):
    """A table of n evaluations in free parameters, at first those of a given table, up to rounding.

    Evaluation times keep their order: their gaps are a softmax of logits, and times that coincide in the given table
    still do. Weights are those of the differences x_{j+1} − x_j. With consistent rows the first time stays as it is,
    and the weights of every later state add up to the fraction of the span at which it is evaluated, those of the end
    to 1, so that a constant f is integrated exactly; the newest value's weight follows from the others.

    With free rows f may be evaluated at the start x_0 as if it were a later time, at first a little later than 0 or at
    the table's: at the start of a flow its value is the mean of the data less x_0, which tells nothing new.

    Args:
        table: where the parameters start.
        rows: "consistent", for a table that has such rows, or "free": weights, scales and the first time are all free.

    Source: Shaul et al., Bespoke Non-Stationary Solvers, 2024 (arXiv:2403.01329), section 3, for free rows; Wang et
    al., Differentiable Solver Search, 2025 (arXiv:2505.21114), for consistent ones and softmax times.
    """

    def __init__(self, table: MultistepTable, rows: Rows = "consistent") -> None:
        super().__init__()
        given = Coefficients.of(table)
        distinct, self._place = torch.unique(given.times, return_inverse=True)
        later = torch.cat([distinct[1:], distinct.new_ones(1)])
        first, free = distinct[:1], rows == "free"
        if free:
            first = first.maximum((later[:1] / 2).clamp(max=_DELAY))
        self.first = nn.Parameter(first) if free else first
        self.gap_logits = nn.Parameter(torch.cat([first, later]).diff().clamp(min=_NARROW).log())
        self.increments = nn.Parameter(given.increments)
        self.scales = nn.Parameter(given.scales[1:]) if free and given.scales is not None else None
        self.rows = rows

    def forward(self) -> Coefficients:
        """The table's times, scales and increments."""
        # mirrored, since at a bound the gradients of a clamped time are 0 and keep it there
        first = self.first.abs().clamp(max=_LATEST) if self.rows == "free" else self.first
        gaps = (1 - first) * self.gap_logits.softmax(0)
        distinct = first + torch.cat([gaps.new_zeros(1), gaps[:-1].cumsum(0)])
        times, increments = distinct[self._place], self.increments.tril()
        if self.scales is not None:
            return Coefficients(times, torch.cat([self.scales.new_ones(1), self.scales]), increments)
        covered = torch.cat([times.new_zeros(1), times[1:], times.new_ones(1)]).diff()  # from 0 to 1 in n steps
        lacking = covered - increments.sum(1)
        return Coefficients(times, None, increments + torch.diag(lacking))

    @torch.no_grad()
    def table(self, span: tuple[float, float] | None) -> MultistepTable:
        """The table, for solves over one span."""
        times, scales, increments = self()
        factors = torch.ones(len(times) + 1) if scales is None else scales
        weights = increments.cumsum(0)
        rows = [(), *(tuple(row[: j + 1].tolist()) for j, row in enumerate(weights))]
        return MultistepTable(tuple(times.tolist()), tuple(factors.tolist()), tuple(rows), span)
