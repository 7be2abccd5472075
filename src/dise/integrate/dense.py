"""Save points: the state at times of the user's choice, by each method's continuous extension.

A solve keeps the steps that it takes; when it is over, all times are looked up and interpolated at once. No evaluation
of f is spent on it, no step is shortened for it, and the device is read at the end only.
"""

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from dise.integrate.problem import Problem, Result
from dise.integrate.step import Step


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

    def record(self, sample: Tensor, step: Step, t_next: Tensor, accept: Tensor) -> None:
        """Keep an attempted step of the samples [n], if it was accepted [n]."""
        self._attempts.append(_Attempt(sample, self._started_over[sample], accept, t_next, step))

    def start_over(self, sample: Tensor) -> None:
        """Forget the steps of these samples: another integrator begins with them anew."""
        self._started_over = self._started_over.index_add(0, sample, torch.ones_like(sample))

    def at(self, times: Tensor, mask: Tensor, t0: Tensor, t1: Tensor, y0: Tensor, end: Result) -> Tensor:
        """States [B, T, F] at times [B, T] within each sample's span.

        Args:
            times: [B, T], in any order.
            mask: [B, T] bool; where it is False the state is 0.
            t0, t1: [B] the spans.
            y0: [B, F] states at t0.
            end: the solve's result.

        Returns:
            the states; NaN beyond the time that a failed sample reached.
        """
        asked = torch.where(mask, times, t0[:, None])
        values = y0[:, None].expand(-1, asked.shape[1], -1)
        pieces = self._pieces()
        if pieces is not None and times.numel():
            values = pieces.at(asked, torch.where(t1 < t0, -1, 1).to(asked.dtype), values)
        # the interpolant ends in the step's end but for rounding: the value is the solve's, the gradient its own
        values = values + torch.where((asked == end.t[:, None])[..., None], end.y[:, None] - values, 0).detach()
        beyond = (asked - end.t[:, None]) * (t1 - t0)[:, None] > 0
        values = torch.where(beyond[..., None], torch.nan, values)
        return torch.where(mask[..., None], values, 0)

    def _pieces(self) -> "_Pieces | None":
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
        return _Pieces(sample[rows], t, t_next[rows], dt, y, _coefficients(steps)[rows], len(self._started_over))


def _coefficients(steps: list[Step]) -> Tensor:
    """[P, D, F] c such that y(t + θ·dt) = y + Σ_j c_j θ^(j+1) in each of the P steps."""
    parts = []
    degree = max(len(_interpolant(step)[0]) for step in steps)
    for _, group in groupby(steps, key=lambda step: step.tableau):
        alike = list(group)
        stages = torch.stack([torch.cat(stage) for stage in zip(*(step.stages for step in alike), strict=True)])
        weights = stages.new_tensor(_interpolant(alike[0]))
        weights = pad(weights, (0, degree - weights.shape[1]))
        parts.append(
            torch.einsum("sd,spf->pdf", weights, stages) * torch.cat([step.dt for step in alike])[:, None, None]
        )
    return torch.cat(parts)


def _interpolant(step: Step) -> tuple[tuple[float, ...], ...]:
    if step.tableau.interpolant is None:
        raise ValueError(
            "save_at: the integrator's tableau has no interpolant; give it one, or use another, e.g. Dopri5"
        )
    return step.tableau.interpolant


class _Pieces(NamedTuple):
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
        *lower, value = self.coefficients[piece].unbind(2)
        for coefficient in reversed(lower):
            value = torch.addcmul(coefficient, theta, value)
        return torch.where(exists, torch.addcmul(self.y[piece], theta, value), otherwise)


def save_points(save_at: object, save_mask: object, problem: Problem) -> tuple[Tensor, Tensor] | None:
    """The user's save points as times [n, T] and a mask [n, T]; None if there are none.

    Raises:
        TypeError, ValueError: they are no times within the samples' spans (see `dise.solve`).
    """
    if save_at is None:
        if save_mask is not None:
            raise ValueError("save_mask: it says which of the save points are padding, but save_at was not given")
        return None
    batched, number, t0 = problem.layout.batched, len(problem), problem.t0
    try:
        times = save_at if isinstance(save_at, Tensor) else torch.as_tensor(save_at, dtype=t0.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"save_at: expected times, numbers or a tensor, got {type(save_at).__name__}") from error
    if times.dtype.is_complex or times.dtype == torch.bool:
        raise TypeError(f"save_at: expected real times, got {times.dtype}")
    times = _for_each(times.to(t0), "save_at", number, batched=batched)
    mask = torch.ones_like(times, dtype=torch.bool)
    if save_mask is not None:
        if not isinstance(save_mask, Tensor) or save_mask.dtype != torch.bool:
            got = save_mask.dtype if isinstance(save_mask, Tensor) else type(save_mask).__name__
            raise TypeError(f"save_mask: expected a tensor of bool, got {got}")
        mask = _for_each(save_mask.to(t0.device), "save_mask", number, batched=batched)
        if mask.shape != times.shape:
            raise ValueError(f"save_mask: expected the shape of save_at, got {tuple(save_mask.shape)}")
    _check_within(times, mask, problem)
    return times, mask


def _for_each(values: Tensor, name: str, number: int, *, batched: bool) -> Tensor:
    """[n, T] of [T] or [n, T]."""
    if values.ndim == 1:
        return values.expand(number, -1)
    if batched and values.ndim == 2 and len(values) == number:
        return values
    expected = f"[T], or [B, T] with B={number}" if batched else "[T] (batched=False has one time)"
    raise ValueError(f"{name}: expected shape {expected}, got {tuple(values.shape)}")


def _check_within(times: Tensor, mask: Tensor, problem: Problem) -> None:
    ends = torch.stack([problem.t0, problem.t1])
    low, high = ends.amin(0)[:, None], ends.amax(0)[:, None]
    outside = (mask & ~((times >= low) & (times <= high))).nonzero()
    if len(outside):
        i, j = outside[0].tolist()
        span = f"[{float(low[i, 0]):g}, {float(high[i, 0]):g}]"
        raise ValueError(f"save_at: expected times within the span, {span} of sample {i}, got {float(times[i, j]):g}")
