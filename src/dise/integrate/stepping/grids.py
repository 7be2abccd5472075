"""Grids: where the steps of a fixed-step method end. A grid is a value; `FixedSteps` takes any."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Grid(Protocol):
    """The ends of a method's steps, for spans from t0 to t1."""

    @property
    def steps(self) -> int | None:
        """Number of steps; None if it depends on t1 or on an event."""
        ...

    def end(self, index: int, t: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """[n] end of step number `index`, which starts at t [n]; of the last step t1 itself."""
        ...


@dataclass(frozen=True)
class EqualParts:
    """`steps` equal parts of each sample's span."""

    steps: int

    def end(self, index: int, t: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """The span's fraction (index + 1)/steps; t plus a step's length would accumulate rounding errors."""
        return t1 if index + 1 == self.steps else torch.lerp(t0, t1, (index + 1) / self.steps)


@dataclass(frozen=True)
class Fractions:
    """Steps that end at given fractions of each sample's span.

    Args:
        ends: of the steps, increasing; the last is 1.
    """

    ends: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.ends)

    def end(self, index: int, t: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """The next fraction of the span."""
        return t1 if index + 1 == self.steps else torch.lerp(t0, t1, self.ends[index])


@dataclass(frozen=True)
class FractionsByTime:
    """Fractions of each sample's span, for samples that restart between the ends: they then go to the next end.

    Args:
        ends: of the steps, increasing; the last is 1.
    """

    ends: tuple[float, ...]
    steps: None = None

    @classmethod
    def of(cls, grid: EqualParts | Fractions) -> "FractionsByTime":
        """The ends of another grid."""
        if isinstance(grid, Fractions):
            return cls(grid.ends)
        return cls(tuple((index + 1) / grid.steps for index in range(grid.steps)))

    def end(self, index: int, t: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """The end of the step that t is in; of the next one if t is there but for a millionth of a mean step."""
        ends = torch.tensor(self.ends, dtype=t.dtype, device=t.device)
        done = (t - t0) / torch.where(t1 == t0, 1, t1 - t0)
        number = torch.searchsorted(ends, done.detach() + 1e-6 / len(self.ends)).clamp(max=len(self.ends) - 1)
        return torch.where(number == len(self.ends) - 1, t1, torch.lerp(t0, t1, ends[number]))


@dataclass(frozen=True)
class WholePiece:
    """One step per piece of the span (see `Breaks`).

    Args:
        steps: the most pieces of a sample; None if steps may end before.
    """

    steps: int | None

    def end(self, index: int, t: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """The end of the piece."""
        return t1


@dataclass(frozen=True, eq=False)
class AbsoluteTimes:
    """Steps from one given time to the next, the same for all samples.

    Args:
        times: [steps + 1], from t0 to t1 of every sample.
    """

    times: Tensor

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.times) - 1

    def end(self, index: int, t: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """The next of the times."""
        return t1 if index + 1 == self.steps else self.times[index + 1].expand_as(t)


@dataclass(frozen=True)
class EqualLengths:
    """Steps of one length; the last one ends at t1, if t1 is finite.

    Args:
        length: of a step, positive, in units of t.
    """

    length: float
    steps: None = None

    def end(self, index: int, t: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """One length further, or t1 if that is nearer."""
        left = t1 - t
        return torch.where(left.abs() <= self.length, t1, t + torch.full_like(t, self.length).copysign(left))
