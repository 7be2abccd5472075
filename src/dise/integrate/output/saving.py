"""Save points: values at given times, written when a step passes them; the step is then forgotten.

A step's polynomial gives the states at the points that it passes. The observers hold the last few steps of a small
state and look up their points at once, so a round costs little; of a large state they hold one step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dise.integrate.clock import real_dtype
from dise.integrate.output.functions import FunctionCaller, Values, rebuilt
from dise.integrate.output.interpolation import PiecewisePolynomial
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Result
from dise.integrate.problem.state import leaves
from dise.integrate.tracing import is_differentiated

# Numbers in the steps that wait for a lookup: one for many steps costs less, and on a GPU it reads the device.
WAITING_NUMEL, WAITING_NUMEL_GPU = 2**16, 2**20
POINTS_NUMEL = 2**12  # numbers in the states that are interpolated at once, if the batch has fewer


class SavePoints:
    """Observer that writes the values at the save points.

    Args:
        times, mask: [B, T] save points, and False where they are padding.
        problem: the whole batch.
        caller: calls `function`.
        function: of (t, y, *args, *sample_args) → what to save; None: the states.
    """

    joins_rounds = True

    def __init__(
        self,
        times: Tensor,
        mask: Tensor,
        problem: Problem,
        caller: FunctionCaller,
        function: Callable[..., Values] | None = None,
    ) -> None:
        self._times, self._mask, self._problem, self._function = times, mask, problem, function
        self._caller = caller
        self._sign = torch.where(problem.t1 < problem.t0, -1, 1).to(times.dtype).detach()
        self._keys, self._order = _in_order(times.detach(), mask, self._sign)
        self._next = torch.zeros_like(problem.t0, dtype=torch.int64)  # [B] how many points each sample has passed
        self._waiting: list[StepRecord] = []
        self._numel, self._started, self._started_over = 0, False, False
        self._structure: Values = problem.y0
        if function is not None:  # called once for the structure of its values, so that errors come at once
            with torch.no_grad():
                samples = torch.arange(len(problem), device=times.device)
                self._structure = caller.values("save", function, samples, problem.t0, problem.y0)
        parts = [part.new_empty((0, *part.shape[1:])) for part in leaves(self._structure)]
        self._structure = rebuilt(self._structure, parts)
        self._tables = [_Table(mask, part) for part in parts]

    def see(self, record: StepRecord) -> None:
        """Take note of an attempted step, and write the values at the points that the steps so far have passed."""
        if not self._started:
            self._started = True
            self._pass_starts()
        self._waiting.append(record)
        self._numel += record.numel
        if self._numel + record.numel > (WAITING_NUMEL if record.step.y.is_cpu else WAITING_NUMEL_GPU):
            self._write()

    def start_over(self, sample: Tensor) -> None:
        """The points of these samples are passed again: another integrator restarts them."""
        self._write()
        self._next = self._next.index_fill(0, sample, 0)
        self._started_over = True

    def finish(self, result: Result) -> Values:
        """The values [B, T, ...] after a solve; 0 where they are masked, NaN beyond the time that a sample reached."""
        self._write()
        self._write_starts(result)
        # a candidate before the last one may have reached more points
        return self._finished(self._beyond(result.t) if self._started_over else None)

    def apply(self, states: Tensor, t: Tensor) -> Values:
        """The values [B, T, ...] of states [B, T, F] at the save points, of samples that reached t [B]."""
        sample, point = (self._mask & ~self._beyond(t)).nonzero().unbind(1)
        self._put(sample, point, self._times[sample, point], states[sample, point])
        return self._finished(None)

    def in_structure(self, values: Values) -> Any:
        """Values [B, T, ...] as `Solution.saved`: states in the user's structure; without B if not batched."""
        layout = self._caller.layout
        if self._function is None and isinstance(values, Tensor):
            return layout.unpack_saved(values)
        return values if layout.batched else rebuilt(values, [part[0] for part in leaves(values)])

    def _beyond(self, t: Tensor) -> Tensor:
        """[B, T] bool, whether a save point lies beyond the time t [B] that its sample reached."""
        return self._mask & ((self._times - t[:, None]) * self._sign[:, None] > 0)

    def _finished(self, beyond: Tensor | None) -> Values:
        return rebuilt(self._structure, [table.finish(self._times.shape, beyond) for table in self._tables])

    def _write(self) -> None:
        records, self._waiting, self._numel = self._waiting, [], 0
        if not records or not self._times.numel():
            return
        sample, t_next, accept = (
            torch.cat(column)
            for column in zip(*((r.sample, r.t_next.detach(), r.accept) for r in records), strict=True)
        )
        rows = accept.nonzero().flatten()
        if len(records) > 1 or records[0].rounds > 1:
            rows = rows.index_select(0, sample.index_select(0, rows).argsort(stable=True))
        sample = sample.index_select(0, rows)
        passed = self._passed(sample, t_next.index_select(0, rows) * self._sign.index_select(0, sample))
        before = self._next.index_select(0, sample)
        before[1:] = torch.where(sample[1:] == sample[:-1], passed[:-1], before[1:])
        self._next = self._next.scatter_reduce(0, sample, passed, "amax")
        number = passed - before
        due = number.nonzero().flatten()
        if len(due):
            every = len(records) == 1 and records[0].rounds == 1 and len(due) == len(accept)
            rows, sample, before, number = (x.index_select(0, due) for x in (rows, sample, before, number))
            if self._write_ends(records, rows, sample, before, number):
                return
            pieces = PiecewisePolynomial.of_rows(records, None if every else rows, sample, len(self._problem))
            self._write_points(pieces, before, number)

    def _pass_starts(self) -> None:
        """Write the points at t0, unless gradients in time need the first step's polynomial."""
        t0 = self._problem.t0
        if is_differentiated(self._times) or is_differentiated(t0) or not self._times.numel():
            return
        at_start = self._mask & (self._times == t0[:, None])
        sample, point = at_start.nonzero().unbind(1)
        if len(sample):
            y0 = self._problem.y0
            each_once = len(sample) == len(y0) and bool((at_start.sum(1) == 1).all())
            self._put(sample, point, t0[sample], y0 if each_once else y0[sample])
            self._next = self._next + at_start.sum(1)

    def _write_ends(
        self, records: list[StepRecord], rows: Tensor, sample: Tensor, first: Tensor, number: Tensor
    ) -> bool:
        """Write the points of steps that all end at the one point that they pass: no polynomials, and less memory.

        Times with gradients need the polynomials. Returns whether all was written.
        """
        if is_differentiated(self._times) or not bool((number == 1).all()):
            return False
        t_next = torch.cat([record.t_next for record in records]).index_select(0, rows)
        if is_differentiated(t_next):
            return False
        point = self._points(sample, first)
        times = self._at(sample, point)
        if not torch.equal(times, t_next):
            return False
        states = [record.step.y_next for record in records]
        whole = len(states) == 1 and records[0].rounds == 1 and len(rows) == len(states[0])
        self._put(sample, point, times, states[0] if whole else torch.cat(states).index_select(0, rows))
        return True

    def _passed(self, sample: Tensor, ends: Tensor) -> Tensor:
        """[R] how many points the samples [R] have passed at the signed times [R]."""
        if self._keys.ndim == 1:
            return torch.searchsorted(self._keys, ends, right=True)
        return torch.searchsorted(self._keys[sample], ends[:, None], right=True)[:, 0]

    def _points(self, sample: Tensor, place: Tensor) -> Tensor:
        """[R] the indices of the points number `place` [R] of the samples [R]."""
        return self._order.index_select(0, place) if self._order.ndim == 1 else self._order[sample, place]

    def _at(self, sample: Tensor, point: Tensor) -> Tensor:
        """[R] the times of points [R] of the samples [R]."""
        shared = self._times.stride(0) == 0 and not self._times.requires_grad
        return self._times[0].index_select(0, point) if shared else self._times[sample, point]

    def _write_points(self, pieces: PiecewisePolynomial, first: Tensor, number: Tensor) -> None:
        """Write the points [R] number `first` and the `number` - 1 ones after it of each piece."""
        piece = torch.arange(len(first), device=first.device).repeat_interleave(number)
        before = (number.cumsum(0) - number - first).repeat_interleave(number)
        sample = pieces.sample.index_select(0, piece)
        point = self._points(sample, torch.arange(len(piece), device=first.device) - before)
        features = max(1, pieces.y.shape[1])
        size = max(1, max(self._problem.y0.numel(), POINTS_NUMEL) // features)  # all at once could be many states
        for piece_part, point_part in zip(piece.split(size), point.split(size), strict=True):
            chosen = pieces.take(piece_part)
            t = self._at(chosen.sample, point_part)
            self._put(chosen.sample, point_part, t, chosen.at_time(t))

    def _write_starts(self, result: Result) -> None:
        """Write the points at t0 of samples that made no step, continued along the slope: it gives times a gradient."""
        at_start = self._mask & (self._next == 0)[:, None] & (self._times == self._problem.t0[:, None])
        sample, point = at_start.nonzero().unbind(1)
        if len(sample):
            t, start = self._times[sample, point], self._problem.y0[sample]
            slope = torch.where(result.slope[sample].isfinite(), result.slope[sample], 0)
            since = (t - self._problem.t0[sample])[:, None].to(real_dtype(start))
            self._put(sample, point, t, torch.addcmul(start, since, slope))

    def _put(self, sample: Tensor, point: Tensor, t: Tensor, y: Tensor) -> None:
        values = y if self._function is None else self._caller.values("save", self._function, sample, t, y)
        index = sample * self._times.shape[1] + point
        for table, part in zip(self._tables, leaves(values), strict=True):
            table.put(index, part)


class _Table:
    """Rows [B·T, ...] that are written one after the other.

    Values without autograd graph are written in place. The others are kept and gathered at the end, since a graph of
    many writes into one tensor would copy all of it for each.

    Args:
        mask: [B, T] bool; rows that stay unwritten are NaN where it is True and 0 elsewhere.
        like: [0, ...] shape and dtype of the values.
    """

    def __init__(self, mask: Tensor, like: Tensor) -> None:
        self._mask, self._like = mask, like
        self._written: Tensor | None = None
        self._parts: list[tuple[Tensor, Tensor]] = []

    def put(self, index: Tensor, values: Tensor) -> None:
        """Write values [n, ...] to rows [n]."""
        if values.shape[1:] != self._like.shape[1:] or values.dtype != self._like.dtype:
            raise ValueError(
                f"save: expected values of shape {tuple(self._like.shape[1:])} and {self._like.dtype} per sample, as "
                f"at the start, got {tuple(values.shape[1:])} and {values.dtype}"
            )
        if values.requires_grad or self._parts:
            self._parts.append((index, values))
            return
        if self._written is None:
            self._written = self._blank(values)
        self._written = self._written.index_copy_(0, index, values)

    def finish(self, shape: torch.Size, beyond: Tensor | None) -> Tensor:
        """[B, T, ...] the rows; NaN where `beyond` [B, T] says so."""
        rows = self._blank(self._like) if self._written is None else self._written
        if self._parts:
            index, values = (torch.cat(column) for column in zip(*self._parts, strict=True))
            # a row may be written twice: the last time counts
            number = torch.arange(len(index), device=index.device)
            last = torch.full_like(self._mask.flatten(), -1, dtype=torch.int64).scatter_reduce(0, index, number, "amax")
            rows = torch.where(_column(last >= 0, rows), values[last.clamp(min=0)], rows)
        rows = rows.view(*shape, *rows.shape[1:])
        if beyond is None or not rows.is_floating_point():
            return rows
        return torch.where(_column(beyond, rows), torch.nan, rows)

    def _blank(self, like: Tensor) -> Tensor:
        unknown = torch.nan if like.is_floating_point() or like.is_complex() else 0
        rows = like.new_full((self._mask.numel(), *like.shape[1:]), unknown)
        return rows.masked_fill_(_column(~self._mask.flatten(), rows), 0)


def _column(mask: Tensor, like: Tensor) -> Tensor:
    """A mask with as many dimensions as another tensor."""
    return mask.reshape(*mask.shape, *(1 for _ in range(like.ndim - mask.ndim)))


def _in_order(times: Tensor, mask: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """Signed times in the direction of the integration, and the points' indices in that order: [T] or [B, T].

    [T] if all samples have the same ones: 1,000 points of 10,000 samples would be a table as large as many states.
    """
    if times.stride(0) == 0 and len(times) > 1 and bool((mask & (sign == sign[:1])[:, None]).all()):
        times, mask, sign = times[:1], mask[:1], sign[:1]
    keys, order = torch.where(mask, times * sign[:, None], torch.inf).sort(dim=1, stable=True)
    return (keys[0], order[0]) if len(keys) == 1 else (keys, order)
