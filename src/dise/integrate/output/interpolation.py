"""Dense output: the state at times of the user's choice, by each method's continuous extension.

A solve keeps the steps that it takes; when it is over, all times are looked up and interpolated at once. No evaluation
of f is spent on it, no step is shortened for it, and the device is read at the end only. Save points, events and
`Solution.evaluate` all read this one record.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Result
from dise.integrate.runge_kutta.step import Step


class _Attempt(NamedTuple):
    """An attempted step, and whose it is."""

    sample: Tensor  # [n] which of the solve's samples
    start_over: Tensor  # [n] how often the sample had started over by then
    accept: Tensor  # [n] bool
    t_next: Tensor  # [n] end of the step
    step: Step


class Trail:
    """The steps of a solve of `number` samples, in the order in which they were tried.

    Memory: the stages of every step, as a solve with gradients keeps them anyway.
    """

    def __init__(self, number: int, device: torch.device) -> None:
        self._attempts: list[_Attempt] = []
        self._started_over = torch.zeros(number, dtype=torch.int64, device=device)

    def see(self, seen: StepRecord) -> None:
        """Keep an attempted step."""
        start_over = self._started_over[seen.sample]
        self._attempts.append(_Attempt(seen.sample, start_over, seen.accept, seen.t_next, seen.step))

    def start_over(self, sample: Tensor) -> None:
        """Forget the steps of these samples: another integrator begins with them anew."""
        self._started_over = self._started_over.index_add(0, sample, torch.ones_like(sample))

    def path(self, problem: Problem, end: Result) -> "DenseSolution":
        """The solution as a function of time, from the accepted steps of the whole problem, which ended in `end`."""
        return DenseSolution(self._pieces(), problem.t0, problem.t1, problem.y0, end.slope, end.t, end.y)

    def _pieces(self) -> "PiecewisePolynomial | None":
        """The accepted steps of every sample's last start, sample by sample; None if there are none."""
        if not self._attempts:
            return None
        sample, start_over, accept, t_next = (
            torch.cat(column) for column in list(zip(*self._attempts, strict=True))[:4]
        )
        rows = (accept & (start_over == self._started_over[sample])).nonzero().flatten()
        if len(rows) == 0:
            return None
        rows = rows[sample[rows].argsort(stable=True)]
        steps = [attempt.step for attempt in self._attempts]
        t, dt, y = (torch.cat(column)[rows] for column in list(zip(*steps, strict=True))[:3])
        return PiecewisePolynomial(
            sample[rows], t, t_next[rows], dt, y, _coefficients(steps)[rows], len(self._started_over)
        )


class DenseSolution(NamedTuple):
    """The solution of every sample as a function of time, from t0 to where its solve ended."""

    pieces: "PiecewisePolynomial | None"  # None: no step was accepted
    t0: Tensor  # [B]
    t1: Tensor  # [B]
    y0: Tensor  # [B, F]
    slope: Tensor  # [B, F] f at the end; NaN where unknown
    end: Tensor  # [B] time that the solve reached
    y_end: Tensor  # [B, F] state there

    def at(self, times: Tensor, mask: Tensor) -> Tensor:
        """States [B, T, F] at times [B, T] within each sample's span.

        Args:
            times: [B, T], in any order.
            mask: [B, T] bool; where it is False the state is 0.

        Returns:
            the states; NaN beyond the time that a sample reached.
        """
        asked = torch.where(mask, times, self.t0[:, None])
        # of a sample without a piece, which is where it starts
        slope = torch.where(self.slope.isfinite(), self.slope, 0)
        values = torch.addcmul(self.y0[:, None], (asked - self.t0[:, None])[..., None], slope[:, None])
        sign = torch.where(self.t1 < self.t0, -1, 1).to(asked.dtype)
        if self.pieces is not None and times.numel():
            values = self.pieces.at(asked, sign, values)
        # the interpolant ends in the step's end but for rounding: the value is the solve's, the gradient its own
        at_end = (asked == self.end[:, None])[..., None]
        values = values + torch.where(at_end, self.y_end[:, None] - values, 0).detach()
        beyond = (asked - self.end[:, None]) * sign[:, None] > 0
        values = torch.where(beyond[..., None], torch.nan, values)
        return torch.where(mask[..., None], values, 0)


def _coefficients(steps: list[Step]) -> Tensor:
    """[P, D, F] c such that y(t + θ·dt) = y + Σ_j c_j θ^(j+1) in each of the P steps."""
    parts = []
    degree = max(len(_interpolant(step)[0]) for step in steps)
    for _, group in groupby(steps, key=lambda step: step.tableau):
        alike = list(group)
        stages = torch.stack([torch.cat(stage) for stage in zip(*(step.stages for step in alike), strict=True)])
        weights = stages.new_tensor(_interpolant(alike[0]))
        weights = pad(weights, (0, degree - weights.shape[1]))
        # autocast, meant for f, would round the stages
        with torch.autocast(stages.device.type, enabled=False):
            combined = torch.einsum("sd,spf->pdf", weights, stages)
        parts.append(combined * torch.cat([step.dt for step in alike])[:, None, None])
    return torch.cat(parts)


def _interpolant(step: Step) -> tuple[tuple[float, ...], ...]:
    if step.tableau.interpolant is None:
        raise ValueError(
            "save_at, dense, event: the integrator's tableau has no interpolant; give it one, or use another, "
            "e.g. Dopri5"
        )
    return step.tableau.interpolant


class PiecewisePolynomial(NamedTuple):
    """P polynomials, sample by sample, in the direction of the integration within each."""

    sample: Tensor  # [P]
    t: Tensor  # [P] where it starts
    t_next: Tensor  # [P] where it ends
    dt: Tensor  # [P]
    y: Tensor  # [P, F]
    coefficients: Tensor  # [P, D, F]
    number: int  # of samples, B

    def at(self, times: Tensor, sign: Tensor, otherwise: Tensor) -> Tensor:
        """[B, T, F] values at times [B, T]; `otherwise` [B, T, F] where a sample has no piece.

        Args:
            times: [B, T].
            sign: [B] 1 for a sample that is integrated forwards, −1 backwards.
            otherwise: [B, T, F].
        """
        counts = torch.bincount(self.sample, minlength=self.number)
        first = counts.cumsum(0) - counts
        place = torch.arange(len(self.sample), device=times.device) - first[self.sample]
        ends = times.new_full((self.number, int(counts.max())), torch.inf)
        ends = ends.index_put((self.sample, place), (self.t_next * sign[self.sample]).detach().to(times.dtype))
        index = torch.searchsorted(ends, (times * sign[:, None]).detach().contiguous())
        piece = (first[:, None] + index.minimum((counts - 1)[:, None])).clamp(min=0)
        exists = (counts > 0)[:, None, None]
        # without a piece it would be another sample's, whose θ may be beyond all bounds, and 0 · inf in the gradient
        theta = torch.where(exists, ((times - self.t[piece]) / self.dt[piece])[..., None], 0)
        return torch.where(exists, _horner(self.y[piece], self.coefficients[piece].unbind(2), theta), otherwise)

    def last(self, samples: Tensor) -> "PiecewisePolynomial":
        """The last piece of each of some samples [K] that have one, in their order."""
        rows = (torch.bincount(self.sample, minlength=self.number).cumsum(0) - 1)[samples]
        return self._map(lambda column: column[rows], number=len(samples))

    def detach(self) -> "PiecewisePolynomial":
        """The same without a graph."""
        return self._map(Tensor.detach, number=self.number)

    def _map(self, change: Callable[[Tensor], Tensor], *, number: int) -> "PiecewisePolynomial":
        sample, t, t_next, dt, y, coefficients = (change(column) for column in self[:-1])
        return PiecewisePolynomial(sample, t, t_next, dt, y, coefficients, number)

    def time(self, theta: Tensor) -> Tensor:
        """[P] time at each piece's own θ [P]."""
        return torch.where(theta == 1, self.t_next, torch.addcmul(self.t, theta, self.dt))

    def within(self, theta: Tensor) -> Tensor:
        """[P, F] state of each piece at its own θ [P], from 0 at its start to 1 at its end."""
        return _horner(self.y, self.coefficients.unbind(1), theta[:, None])


def _horner(y: Tensor, coefficients: Sequence[Tensor], theta: Tensor) -> Tensor:
    """y + Σ_j c_j θ^(j+1)."""
    *lower, value = coefficients
    for coefficient in reversed(lower):
        value = torch.addcmul(coefficient, theta, value)
    return torch.addcmul(y, theta, value)
