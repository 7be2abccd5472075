"""Dense output: the state at any time within a step, by each method's continuous extension.

It needs no evaluation of f and shortens no step. Save points and events use the polynomial of the step that passes
them; `Solution.evaluate` uses a log of all steps, looked up when the solve is over.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from dise.integrate.clock import real_dtype
from dise.integrate.output.observers import StepLog
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Result
from dise.integrate.runge_kutta.step import Step
from dise.integrate.tracing import known_none


class DenseSolution(NamedTuple):
    """The solution of every sample as a function of time, from t0 to the time that its solve reached."""

    pieces: "PiecewisePolynomial | None"  # None: no step was accepted
    t0: Tensor  # [B]
    t1: Tensor  # [B]
    y0: Tensor  # [B, F]
    slope: Tensor  # [B, F] f at the end; NaN where unknown
    end: Tensor  # [B] time that the solve reached

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
        return cls(pieces, problem.t0, problem.t1, problem.y0, result.slope, result.t)

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
        since = (asked - self.t0[:, None])[..., None].to(real_dtype(self.y0))
        values = torch.addcmul(self.y0[:, None], since, slope[:, None])
        sign = torch.where(self.t1 < self.t0, -1, 1).to(asked.dtype)
        if self.pieces is not None and times.numel():
            values = self.pieces.at(asked, sign, values)
        beyond = (asked - self.end[:, None]) * sign[:, None] > 0
        values = torch.where(beyond[..., None], torch.nan, values)
        return torch.where(mask[..., None], values, 0)


class PiecewisePolynomial(NamedTuple):
    """P polynomials y(t + θ·dt) = y + dt Σ_j c_j θ^(j+1), sample by sample, in the direction of the integration."""

    sample: Tensor  # [P] index of the sample
    t: Tensor  # [P] start
    t_next: Tensor  # [P] end
    dt: Tensor  # [P]
    y: Tensor  # [P, F]
    y_next: Tensor  # [P, F] state at t_next
    coefficients: Tensor  # [P, D, F] c
    number: int  # of samples, B

    @classmethod
    def of(cls, log: StepLog, number: int) -> "PiecewisePolynomial | None":
        """The accepted steps of a log of `number` samples; None if there are none."""
        accepted = log.accepted()
        if accepted is None or len(accepted.attempt) == 0:
            return None
        return cls.of_rows(accepted.attempts, accepted.attempt, accepted.sample, number)

    @classmethod
    def of_rows(
        cls, records: Sequence[StepRecord], rows: Tensor | None, sample: Tensor, number: int
    ) -> "PiecewisePolynomial":
        """Some attempted steps: rows [P] of the concatenated records, which are of `sample` [P]; None: all, in order.

        Raises:
            ValueError: the method has no interpolant.
        """
        if len(records) == 1:  # a large state's: select before anything else
            record = records[0]
            t_next, step = record.t_next, record.step
            if rows is not None:
                t_next, step = t_next.index_select(0, rows), step.take(rows)
            return cls.of_step(step, t_next, sample, number)
        steps = [record.step for record in records]
        t, dt, y, y_next = (torch.cat(column) for column in list(zip(*steps, strict=True))[:4])
        columns = t, torch.cat([record.t_next for record in records]), dt, y, y_next, _coefficients(steps)
        if rows is None:
            return cls(sample, *columns, number)
        # not by indexing, which takes longer
        t, t_next, dt, y, y_next, coefficients = (column.index_select(0, rows) for column in columns)
        return cls(sample, t, t_next, dt, y, y_next, coefficients, number)

    @classmethod
    def of_step(cls, step: Step, t_next: Tensor, sample: Tensor, number: int) -> "PiecewisePolynomial":
        """Steps of `sample` [P] that end at t_next [P].

        Raises:
            ValueError: the method has no interpolant.
        """
        return cls(sample, step.t, t_next, step.dt, step.y, step.y_next, _coefficients([step]), number)

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
        # without a piece the lookup finds another sample's; its θ could overflow and make the gradient 0 · inf
        asked = torch.where(exists[..., 0], times, self.t[piece])
        t, dt, y = self.t[piece], self.dt[piece], self.y[piece]
        values = _polynomial(asked - t, dt, y, self.coefficients[piece].unbind(2))
        # at its end return the solver's state (the polynomial differs by rounding), with the polynomial's gradient
        at_end = (asked == self.t_next[piece])[..., None]
        values = values + torch.where(at_end, self.y_next[piece] - values, 0).detach()
        return torch.where(exists, values, otherwise)

    def at_time(self, times: Tensor) -> Tensor:
        """[P, F] state of each piece at its own time [P]."""
        values = _polynomial(times - self.t, self.dt, self.y, self.coefficients.unbind(1))
        at_end = times == self.t_next
        if known_none(at_end):
            return values
        # at its end return the solver's state (the polynomial differs by rounding), with the polynomial's gradient
        return values + torch.where(at_end[:, None], self.y_next - values, 0).detach()

    def take(self, rows: Tensor) -> "PiecewisePolynomial":
        """Some of the pieces."""
        return self._map(lambda column: column.index_select(0, rows), number=self.number)

    @classmethod
    def joined(cls, parts: "Sequence[PiecewisePolynomial]") -> "PiecewisePolynomial":
        """Several ones, one after the other."""
        sample, t, t_next, dt, y, y_next, coefficients = (
            torch.cat(column) for column in list(zip(*parts, strict=True))[:-1]
        )
        return cls(sample, t, t_next, dt, y, y_next, coefficients, parts[0].number)

    def detach(self) -> "PiecewisePolynomial":
        """The same values without autograd graph."""
        return self._map(Tensor.detach, number=self.number)

    def _map(self, change: Callable[[Tensor], Tensor], *, number: int) -> "PiecewisePolynomial":
        sample, t, t_next, dt, y, y_next, coefficients = (change(column) for column in self[:-1])
        return PiecewisePolynomial(sample, t, t_next, dt, y, y_next, coefficients, number)

    def within(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """[..., P] time and [..., P, F] state of each piece at its own θ [..., P], 0 at its start and 1 at its end."""
        t, at_end = torch.addcmul(self.t, theta, self.dt), theta == 1
        values = _horner(self.y, self.coefficients.unbind(1), theta[..., None], self.dt[:, None])
        if known_none(at_end):
            return t, values
        t = t + torch.where(at_end, self.t_next - t, 0).detach()
        return t, values + torch.where(at_end[..., None], self.y_next - values, 0).detach()

    def slope(self, theta: Tensor) -> Tensor:
        """[..., P, F] derivative in time of each piece at its own θ [..., P]."""
        value, column = torch.zeros_like(self.y), theta[..., None].to(real_dtype(self.y))
        for degree, coefficient in reversed(list(enumerate(self.coefficients.unbind(1), start=1))):
            value = value * column + degree * coefficient
        return value


def _coefficients(steps: Sequence[Step]) -> Tensor:
    """[P, D, F] c such that y(t + θ·dt) = y + dt Σ_j c_j θ^(j+1) in each of the P steps."""
    parts = []
    degree = max(len(_interpolant(step)[0]) for step in steps)
    for _, group in groupby(steps, key=lambda step: step.tableau):
        same_method = list(group)
        columns = list(zip(*(step.stages for step in same_method), strict=True))
        stages = torch.cat([stage for column in columns for stage in column])
        stages = stages.unflatten(0, (len(columns), sum(len(step.t) for step in same_method)))
        weights = _weights(_interpolant(same_method[0]), degree, stages.dtype, stages.device)
        with without_autocast(stages):
            parts.append(torch.einsum("sd,spf->pdf", weights, stages))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def states_within(step: Step, fractions: tuple[float, ...]) -> Tensor:
    """[M, n, F] states of a whole step at M fractions θ of its length, the same for all samples."""
    weights = _weights_at(_interpolant(step), fractions, 0, step.y.dtype, step.y.device)
    y, dt = step.y, step.dt.to(real_dtype(step.y))
    if y.stride(0) == 1:  # features are the outer dimension in memory, as those of compiled steps: rows are short
        return torch.addcmul(y.t(), dt, _combined(weights, [stage.t() for stage in step.stages])).transpose(1, 2)
    return torch.addcmul(y, dt[:, None], _combined(weights, step.stages))


def slopes_within(step: Step, fractions: tuple[float, ...]) -> Tensor:
    """[M, n, F] derivatives in time, as in `states_within`."""
    return _combined(_weights_at(_interpolant(step), fractions, 1, step.y.dtype, step.y.device), step.stages)


def _combined(weights: Tensor, stages: Sequence[Tensor]) -> Tensor:
    """[M, ...] sums of the stages [...] with weights [M, S]."""
    together = torch.stack(list(stages)).flatten(1)
    with without_autocast(together):
        combined = torch.mm(weights, together)
    return combined.view(len(weights), *stages[0].shape)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """No autocast on a tensor's device: it is meant for f and would round the stages."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


@lru_cache(maxsize=64)  # every step needs them, and they may have to be copied to a device
def _weights_at(
    interpolant: tuple[tuple[float, ...], ...],
    fractions: tuple[float, ...],
    derivative: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """[M, S] weights b_i(θ) of the stages, or their derivatives, at M fractions θ."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in later training
        theta = torch.tensor(fractions, dtype=torch.float64)[:, None]
        power = torch.arange(1, len(interpolant[0]) + 1)
        terms: Tensor = power * theta ** (power - 1) if derivative else theta**power  # [M, D]
        weights = torch.mm(terms, torch.tensor(interpolant, dtype=torch.float64).T)
        return weights.to(dtype).to(device)


@lru_cache(maxsize=64)  # every lookup needs them, and they may have to be copied to a device
def _weights(
    interpolant: tuple[tuple[float, ...], ...], degree: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[S, D] weights of the stages in each coefficient, padded with 0."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in later training
        weights = torch.tensor(interpolant, dtype=dtype, device=device)
        return pad(weights, (0, degree - weights.shape[1]))


def _interpolant(step: Step) -> tuple[tuple[float, ...], ...]:
    if step.tableau.interpolant is None:
        raise ValueError(
            "save_at, dense, event: the integrator's tableau has no interpolant; give it one, or use another, "
            "e.g. Dopri5"
        )
    return step.tableau.interpolant


def _polynomial(since: Tensor, dt: Tensor, y: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
    """States [..., F] a time `since` [...] after the start of steps of length dt [...]."""
    # a step below the precision of t has length 0 and leaves y unchanged, so any θ will do, but not 0/0
    theta = since / torch.where(dt == 0, 1, dt)
    return _horner(y, coefficients, theta[..., None], dt[..., None])


def _horner(y: Tensor, coefficients: Sequence[Tensor], theta: Tensor, dt: Tensor) -> Tensor:
    """y + dt Σ_j c_j θ^(j+1)."""
    theta, dt = theta.to(real_dtype(y)), dt.to(real_dtype(y))
    *lower, value = coefficients
    for coefficient in reversed(lower):
        value = torch.addcmul(coefficient, theta, value)
    return torch.addcmul(y, theta * dt, value)
