"""Break points: times within the spans at which steps end, and at which f may jump."""

from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.annotations import Bool, Float
from dise.integrate.clock import next_after


class Breaks(NamedTuple):
    """The times that divide n samples' spans into P pieces, at each of which a step ends.

    Beside a jump f receives the next number of its own dtype on the side of the step.
    """

    ends: Float[Tensor, "n P"]  # of the pieces in the direction of the integration; the last ones are t1
    jump: Bool[Tensor, "n P"]  # whether f jumps at a piece's end
    bounds: Float[Tensor, "n P 2"]  # smallest and largest time that f may receive in a piece, of the dtype of f's times
    times: Float[Tensor, "n J"]  # as given; NaN where there is none
    jumps: Bool[Tensor, "n J"]  # which of them are jumps

    @classmethod
    def of(cls, times: Tensor, jumps: Tensor, t0: Tensor, t1: Tensor, dtype: torch.dtype) -> "Breaks":
        """The break points within the spans from t0 [n] to t1 [n].

        Args:
            times: [n, J] in any order; those outside of a sample's span, and NaN, are ignored.
            jumps: [n, J] bool, whether f jumps there.
            t0, t1: [n] the spans.
            dtype: of the times that f receives.
        """
        sign = torch.where(t1 < t0, -1, 1).to(t0.dtype)[:, None]
        start, end = t0[:, None], t1[:, None]
        inside = ((times - start) * sign > 0) & ((end - times) * sign > 0)
        ends, jump = _sorted(torch.where(inside, times, end), jumps & inside, sign)
        again = torch.zeros_like(jump)  # of two equal times the first stays, which is a jump if one of them is
        again[:, 1:] = (ends.diff(dim=1) == 0) & (ends[:, 1:] != end)
        ends, jump = _sorted(torch.where(again, end, ends), jump & ~again, sign)
        ends, at_end = torch.cat([ends, end], 1), (jumps & (times == end)).any(1, keepdim=True)
        jump = torch.cat([jump, torch.zeros_like(at_end)], 1) | (at_end & (ends == end))
        starts = torch.cat([start, ends[:, :-1]], 1)
        after = torch.cat([(jumps & (times == start)).any(1, keepdim=True), jump[:, :-1]], 1) & (starts != ends)
        bounds = _bounds(starts.to(dtype), after, ends.to(dtype), jump, sign.to(dtype))
        return cls(ends, jump, bounds, times, jumps)

    @property
    def unresolved(self) -> Tensor:
        """[n] bool, whether f's dtype has no number between two jumps of a sample."""
        return (self.bounds[..., 0] > self.bounds[..., 1]).any(1)

    def take(self, rows: Tensor) -> "Breaks":
        """The break points of some of the samples."""
        return Breaks(*(column.index_select(0, rows) for column in self))

    def detach(self) -> "Breaks":
        """The break points without gradients."""
        return self._replace(ends=self.ends.detach(), times=self.times.detach())

    def between(self, t0: Tensor, t1: Tensor) -> "Breaks":
        """The same break points for spans from t0 [n] to t1 [n]."""
        return Breaks.of(self.times, self.jumps, t0, t1, self.bounds.dtype)

    def with_steps(self, t0: Tensor, points: Tensor) -> "Breaks":
        """The break points with other ends of steps [n, S] added, except where a break point is as good as there."""
        t1 = self.ends[:, -1]
        near = 1e-6 * (t1 - t0).abs()[:, None] / (points.shape[1] + 1)
        sign = torch.where(t1 < t0, -1, 1).to(t0.dtype)[:, None]
        own = torch.cat([torch.ones_like(self.jumps), torch.zeros_like(points, dtype=torch.bool)], 1)
        times, is_break = _sorted(torch.cat([self.times, points], 1), own, sign)
        close = times.diff(dim=1).abs() <= near
        beside = torch.zeros_like(is_break)
        beside[:, 1:] |= close & is_break[:, :-1]
        beside[:, :-1] |= close & is_break[:, 1:]
        added = torch.where(beside & ~is_break, torch.nan, times)
        added = torch.where(is_break, torch.nan, added)
        jumps = torch.cat([self.jumps, torch.zeros_like(is_break)], 1)
        return Breaks.of(torch.cat([self.times, added], 1), jumps, t0, t1, self.bounds.dtype)


def _sorted(times: Tensor, jump: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """Times [n, J] in the direction of the integration, jumps first among equals, and their marks; NaN comes last."""
    first = jump.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    times, jump = times.gather(1, first), jump.gather(1, first)
    order = (times * sign).detach().argsort(dim=1, stable=True)
    return times.gather(1, order), jump.gather(1, order)


@torch.no_grad()
def _bounds(start: Tensor, after: Tensor, end: Tensor, before: Tensor, sign: Tensor) -> Tensor:
    """[n, P, 2] smallest and largest times for f in pieces that start after a jump and end before one."""
    towards = torch.full_like(start, torch.inf) * sign
    first = torch.where(after, next_after(start, towards), -towards)
    last = torch.where(before, next_after(end, -towards), towards)
    return torch.where((sign > 0)[..., None], torch.stack([first, last], -1), torch.stack([last, first], -1))
