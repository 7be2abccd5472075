"""The events of a solve: which happened, when, and in which state."""

from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.annotations import Float, Int
from dise.integrate.output.padding import PaddedRows
from dise.integrate.problem.hooks import StepEvents, StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Result
from dise.integrate.problem.state import State


class Events(NamedTuple):
    """The events of B samples, in the order in which each sample meets them; rows are padded at the end.

    With batched=False the shapes are without B.
    """

    names: tuple[str, ...]  # of the events, as `solve` got them; numbers for a sequence
    which: Int[Tensor, "*B K"]  # index into names; -1 for padding
    t: Float[Tensor, "*B K"]  # differentiable; NaN for padding
    y: State  # [B, K, ...] state at the event, before its change; differentiable, NaN for padding

    def of(self, name: str) -> "Events":
        """The events of one name, padded to the most that a sample has.

        Raises:
            ValueError: there is no such name.
        """
        if name not in self.names:
            raise ValueError(f"name: expected one of {', '.join(self.names)}, got {name!r}")
        chosen = self.which == self.names.index(name)
        order = (~chosen).long().argsort(dim=-1, stable=True)
        order = order[..., : int(chosen.sum(-1).max())] if chosen.numel() else order
        exists = chosen.gather(-1, order)

        def taken(x: Tensor) -> Tensor:
            """[B, K', ...] the chosen columns of x [B, K, ...]."""
            shape = (*order.shape, *(1 for _ in range(x.ndim - order.ndim)))
            rows = order.view(shape).expand(*order.shape, *x.shape[order.ndim :])
            return torch.where(exists.view(shape), x.gather(order.ndim - 1, rows), torch.nan)

        which = torch.where(exists, self.which.gather(-1, order), -1)
        if isinstance(self.y, dict):
            y: State = {key: taken(part) for key, part in self.y.items()}
        else:
            y = tuple(taken(part) for part in self.y) if isinstance(self.y, tuple) else taken(self.y)
        return Events(self.names, which, taken(self.t), y)


class EventLog:
    """Observer that keeps the events of a solve.

    Args:
        names: of the events.
        problem: the whole batch.
    """

    joins_rounds = True

    def __init__(self, names: tuple[str, ...], problem: Problem) -> None:
        self._names, self._problem = names, problem
        self._starts = torch.zeros_like(problem.t0, dtype=torch.int64)  # [B] how often a sample started over
        self._happened: list[StepEvents] = []
        self._starts_then: list[Tensor] = []
        self._sorted: StepEvents | None = None  # all of them

    def see(self, record: StepRecord) -> None:
        """Keep the events of a step."""
        if record.events is not None:
            self._sorted = None
            self._happened.append(record.events)
            self._starts_then.append(self._starts[record.events.sample])

    def start_over(self, sample: Tensor) -> None:
        """Discard the events of these samples, which another integrator solves from the start."""
        self._sorted = None
        self._starts = self._starts.index_add(0, sample, torch.ones_like(sample))

    def stopped_by(self) -> Tensor:
        """[B] index of the event that stopped each sample; -1: none did."""
        events = self._all()
        return torch.full_like(self._starts, -1).index_put((events.sample[events.stop],), events.which[events.stop])

    def events(self, result: Result) -> Events:
        """All events, sample by sample; those that stopped a sample have the times and states of the result."""
        events = self._all()
        last = events.stop.nonzero().flatten()
        t = events.t.index_put((last,), result.t[events.sample[last]])
        y = events.y.index_put((last,), result.y[events.sample[last]])
        return _padded(events._replace(t=t, y=y), self._names, self._problem)

    def _all(self) -> StepEvents:
        if self._sorted is None:
            self._sorted = self._in_order()
        return self._sorted

    def _in_order(self) -> StepEvents:
        if not self._happened:
            none = self._starts[:0]
            return StepEvents(none, none, self._problem.t0[:0], self._problem.y0[:0], none.bool())
        events = StepEvents(*(torch.cat(column) for column in zip(*self._happened, strict=True)))
        kept = (torch.cat(self._starts_then) == self._starts[events.sample]).nonzero().flatten()
        kept = kept[events.sample[kept].argsort(stable=True)]
        return StepEvents(*(column[kept] for column in events))


def _padded(events: StepEvents, names: tuple[str, ...], problem: Problem) -> Events:
    rows = PaddedRows.of(events.sample, len(problem))
    which, t, y = rows(events.which, -1), rows(events.t), rows(events.y)
    if not problem.layout.batched:
        which, t = which[0], t[0]
    return Events(names, which, t, problem.layout.unpack_saved(y))
