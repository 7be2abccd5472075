"""Steps and parts of them, over which something is integrated by a rule whose nodes include both ends."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.clock import real_dtype
from dise.integrate.output.interpolation import PiecewisePolynomial, states_within
from dise.integrate.output.lobatto import NODES
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.runge_kutta.step import Step, within

INNER = NODES[1:-1]
MIDDLE = NODES.index(0.5)


class Points(NamedTuple):
    """n points of samples."""

    sample: Tensor  # [n]
    t: Tensor  # [n]
    y: Tensor  # [n, F]

    @classmethod
    def of_nodes(cls, sample: Tensor, t: Tensor, y: Tensor, bounds: Tensor | None) -> "Points":
        """Points of samples [P] at nodes' times [M, P] and states [M, P, F]; bounds [P, 2] of the times."""
        t = t.to(real_dtype(y))
        t = t if bounds is None else torch.stack([within(time, bounds) for time in t])
        return cls(sample.repeat(len(t)), t.flatten(), y.flatten(0, 1))

    @classmethod
    def joined(cls, parts: "Sequence[Points]") -> "Points":
        """Several ones, one after the other."""
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))


class WholeSteps(NamedTuple):
    """P accepted steps, those of a sample in order."""

    sample: Tensor  # [P]
    t_next: Tensor  # [P] end
    step: Step

    @classmethod
    def of(cls, records: list[StepRecord]) -> "WholeSteps":
        """The accepted ones of attempted steps."""
        record = StepRecord.joined(records)
        accepted = record.accept.nonzero().flatten()
        record = record if len(accepted) == len(record.accept) else record.take(accepted)
        return cls(record.sample, record.t_next, record.step)

    @property
    def length(self) -> Tensor:
        """[P] signed length."""
        return self.step.dt

    @property
    def width(self) -> Tensor:
        """[P] 1, the part of a step."""
        return torch.ones_like(self.step.dt)

    def inner(self) -> Points:
        """The rule's nodes but the ends, of all steps at the first one, then at the second, and so on."""
        nodes = torch.tensor(INNER, dtype=self.t_next.dtype).to(self.t_next.device)
        t = torch.addcmul(self.step.t, nodes[:, None], self.step.dt)
        return Points.of_nodes(self.sample, t, states_within(self.step, INNER), self.step.bounds)

    def ends(self) -> Points:
        """The end of each step."""
        return Points.of_nodes(self.sample, self.t_next[None], self.step.y_next[None], self.step.bounds)

    def starts(self, rows: Tensor | None) -> Points:
        """The start of some of the steps; None: of all."""
        starts = Points.of_nodes(self.sample, self.step.t[None], self.step.y[None], self.step.bounds)
        return starts if rows is None else Points(*(column.index_select(0, rows) for column in starts))

    def halves(self, rows: Tensor, slopes: Tensor) -> "StepParts":
        """Both halves of some of the steps; see `StepParts.halves`."""
        step, sample = self.step.take(rows), self.sample[rows]
        steps = PiecewisePolynomial.of_step(step, self.t_next[rows], sample, len(sample))
        start, ends = torch.zeros_like(step.dt), slopes[:: len(slopes) - 1, rows]
        whole = StepParts(steps, start, torch.ones_like(start), step.bounds, ends)
        return whole.halves(torch.arange(len(sample), device=sample.device), slopes[:, rows])


class StepParts(NamedTuple):
    """P parts of steps."""

    steps: PiecewisePolynomial  # of which they are parts
    start: Tensor  # [P] as a fraction of the step
    width: Tensor  # [P] as a fraction of the step
    bounds: Tensor | None  # [P, 2] smallest and largest time that f may receive
    ends: Tensor  # [2, P, columns] integrand at the start and end of each

    @property
    def sample(self) -> Tensor:
        """[P] index of the sample."""
        return self.steps.sample

    @property
    def length(self) -> Tensor:
        """[P] signed length."""
        return self.width * self.steps.dt

    @classmethod
    def joined(cls, parts: "Sequence[StepParts]") -> "StepParts":
        """Several ones, one after the other."""
        if len(parts) == 1:
            return parts[0]
        steps = PiecewisePolynomial.joined([some.steps for some in parts])
        start, width = (torch.cat(column) for column in list(zip(*parts, strict=True))[1:3])
        bounds = [some.bounds for some in parts if some.bounds is not None]
        ends = torch.cat([some.ends for some in parts], 1)
        return cls(steps, start, width, torch.cat(bounds) if bounds else None, ends)

    def inner(self) -> Points:
        """The rule's nodes but the ends, of all parts at the first one, then at the second, and so on."""
        nodes = torch.tensor(INNER, dtype=self.start.dtype).to(self.start.device)
        t, y = self.steps.within(torch.addcmul(self.start, nodes[:, None], self.width))
        return Points.of_nodes(self.sample, t, y, self.bounds)

    def halves(self, rows: Tensor, slopes: Tensor) -> "StepParts":
        """Both halves of some of the parts, the first ones first.

        Args:
            rows: [H] indices of the parts.
            slopes: [M, P, columns] integrand at the rule's nodes in each part.
        """
        both = torch.cat([rows, rows])
        width = self.width[both] / 2
        second = torch.cat([torch.zeros_like(rows), torch.ones_like(rows)])
        bounds = None if self.bounds is None else self.bounds[both]
        start, middle, end = slopes[::MIDDLE, rows]
        ends = torch.stack([torch.cat([start, middle]), torch.cat([middle, end])])
        return StepParts(self.steps.take(both), torch.addcmul(self.start[both], second, width), width, bounds, ends)


class StepLinks(NamedTuple):
    """Which of P steps, in order, follow each other."""

    sample: Tensor  # [P]
    before: Tensor  # [P] index of the same sample's step before; −1: there is none
    first: Tensor  # [N] those whose start is the end of no step
    last: Tensor  # [L] the last one of each sample


class StepEnds:
    """The integrand at the end of each sample's last step, which is the start of the next one.

    Args:
        like: [B, columns] values of the integrand's dtype and device.
    """

    def __init__(self, like: Tensor) -> None:
        self._values = torch.zeros_like(like)
        self._known = torch.zeros_like(like[:, 0], dtype=torch.bool)

    def links(self, sample: Tensor) -> StepLinks:
        """Those of P steps of samples [P], which are in order."""
        order = sample.argsort(stable=True)
        ordered, none = sample[order], torch.full_like(sample, -1)
        same = ordered[1:] == ordered[:-1]
        before = none.index_copy(0, order[1:], torch.where(same, order[:-1], -1))
        last = order[torch.cat([~same, same.new_ones(min(len(order), 1))])]
        first = ((before < 0) & ~self._known[sample]).nonzero().flatten()
        return StepLinks(sample, before, first, last)

    def starts(self, links: StepLinks, first: Tensor, ends: Tensor) -> Tensor:
        """[P, columns] integrand at the starts of P steps, and remember it at their ends.

        Args:
            links: of the steps.
            first: [N, columns] integrand at the starts of `links.first`.
            ends: [P, columns] integrand at the ends of all.
        """
        known = self._values.index_copy(0, links.sample[links.first], first)
        place = torch.where(links.before < 0, links.sample, links.before + len(known))
        values = torch.cat([known, ends]).index_select(0, place)
        self._values = known.index_copy(0, links.sample[links.last], ends[links.last])
        self._known = self._known.index_fill(0, links.sample[links.first], True)
        return values
