"""Dense output: the state at any time within a step, by each method's continuous extension.

A solve logs the steps that it takes; when it is over, all times are looked up and interpolated at once. This needs no
evaluation of f and shortens no step, and the device is read at the end only. Save points, events and
`Solution.evaluate` all use it.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from dise.integrate.output.observers import StepLog
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Result
from dise.integrate.runge_kutta.step import Step


class DenseSolution(NamedTuple):
    """The solution of every sample as a function of time, from t0 to the time that its solve reached."""

    pieces: "PiecewisePolynomial | None"  # None: no step was accepted
    t0: Tensor  # [B]
    t1: Tensor  # [B]
    y0: Tensor  # [B, F]
    slope: Tensor  # [B, F] f at the end; NaN where unknown
    end: Tensor  # [B] time that the solve reached
    y_end: Tensor  # [B, F] state there

    @classmethod
    def of(cls, log: StepLog, problem: Problem, result: Result) -> "DenseSolution":
        """The accepted steps of a log with stages as a function of time.

        Args:
            log: of the solve.
            problem: the whole batch.
            result: the solve's.

        Raises:
            ValueError: the method has no interpolant.
        """
        pieces = PiecewisePolynomial.of(log, len(problem))
        return cls(pieces, problem.t0, problem.t1, problem.y0, result.slope, result.t, result.y)

    def at(self, times: Tensor, mask: Tensor) -> Tensor:
        """States [B, T, F] at times [B, T] within each sample's span.

        Args:
            times: [B, T], in any order.
            mask: [B, T] bool; where it is False the state is 0.

        Returns:
            the states; NaN beyond the time that a sample reached.
        """
        asked = torch.where(mask, times, self.t0[:, None])
        # a sample without steps is at its start: continue it along its slope, which gives times their gradient
        slope = torch.where(self.slope.isfinite(), self.slope, 0)
        values = torch.addcmul(self.y0[:, None], (asked - self.t0[:, None])[..., None], slope[:, None])
        sign = torch.where(self.t1 < self.t0, -1, 1).to(asked.dtype)
        if self.pieces is not None and times.numel():
            values = self.pieces.at(asked, sign, values)
        # at the end return the solver's state (the interpolant differs by rounding), with the interpolant's gradient
        at_end = (asked == self.end[:, None])[..., None]
        values = values + torch.where(at_end, self.y_end[:, None] - values, 0).detach()
        beyond = (asked - self.end[:, None]) * sign[:, None] > 0
        values = torch.where(beyond[..., None], torch.nan, values)
        return torch.where(mask[..., None], values, 0)


class PiecewisePolynomial(NamedTuple):
    """P polynomials, sample by sample, in the direction of the integration within each."""

    sample: Tensor  # [P] index of the sample
    t: Tensor  # [P] start
    t_next: Tensor  # [P] end
    dt: Tensor  # [P]
    y: Tensor  # [P, F]
    coefficients: Tensor  # [P, D, F]
    number: int  # of samples, B

    @classmethod
    def of(cls, log: StepLog, number: int) -> "PiecewisePolynomial | None":
        """The accepted steps of a log of `number` samples; None if there are none."""
        accepted = log.accepted()
        if accepted is None or len(accepted.attempt) == 0:
            return None
        rows, attempts = accepted.attempt, accepted.attempts
        t, dt, y = (torch.cat(column)[rows] for column in list(zip(*attempts, strict=True))[:3])
        return cls(accepted.sample, t, accepted.t_next, dt, y, _coefficients(attempts)[rows], number)

    def at(self, times: Tensor, sign: Tensor, otherwise: Tensor) -> Tensor:
        """[B, T, F] values at times [B, T]; `otherwise` [B, T, F] where a sample has no piece.

        Args:
            times: [B, T].
            sign: [B] 1 for samples integrated forwards, −1 for those integrated backwards.
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
        # a step below the precision of t has length 0 and leaves y unchanged, so any θ will do, but not 0/0
        dt = torch.where(self.dt == 0, 1, self.dt)
        # without a piece the lookup finds another sample's; its θ could overflow and make the gradient 0 · inf
        theta = torch.where(exists, ((times - self.t[piece]) / dt[piece])[..., None], 0)
        return torch.where(exists, _horner(self.y[piece], self.coefficients[piece].unbind(2), theta), otherwise)

    def last(self, samples: Tensor) -> "PiecewisePolynomial":
        """The last pieces of samples [K], all of which have one."""
        rows = (torch.bincount(self.sample, minlength=self.number).cumsum(0) - 1)[samples]
        return self._map(lambda column: column[rows], number=len(samples))

    def detach(self) -> "PiecewisePolynomial":
        """The same values without autograd graph."""
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


def _coefficients(steps: list[Step]) -> Tensor:
    """[P, D, F] c such that y(t + θ·dt) = y + Σ_j c_j θ^(j+1) in each of the P steps."""
    parts = []
    degree = max(len(_interpolant(step)[0]) for step in steps)
    for _, group in groupby(steps, key=lambda step: step.tableau):
        same_method = list(group)
        stages = torch.stack([torch.cat(stage) for stage in zip(*(step.stages for step in same_method), strict=True)])
        weights = stages.new_tensor(_interpolant(same_method[0]))
        weights = pad(weights, (0, degree - weights.shape[1]))
        # autocast is meant for f and would round the stages
        with torch.autocast(stages.device.type, enabled=False):
            combined = torch.einsum("sd,spf->pdf", weights, stages)
        parts.append(combined * torch.cat([step.dt for step in same_method])[:, None, None])
    return torch.cat(parts)


def _interpolant(step: Step) -> tuple[tuple[float, ...], ...]:
    if step.tableau.interpolant is None:
        raise ValueError(
            "save_at, dense, event: the integrator's tableau has no interpolant; give it one, or use another, "
            "e.g. Dopri5"
        )
    return step.tableau.interpolant


def _horner(y: Tensor, coefficients: Sequence[Tensor], theta: Tensor) -> Tensor:
    """y + Σ_j c_j θ^(j+1)."""
    *lower, value = coefficients
    for coefficient in reversed(lower):
        value = torch.addcmul(coefficient, theta, value)
    return torch.addcmul(y, theta, value)
