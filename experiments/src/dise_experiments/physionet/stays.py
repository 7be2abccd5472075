"""Inputs of the network: ragged stays, with the steps of the encoder's walk backwards in time."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from dise_experiments.physionet.records import Records

HORIZON = 48.0  # hours, the length of a record and the unit of the model's time
LEAD = 0.01  # the encoder starts this long after the last observation
STRIDES = 50  # the encoder's Euler steps have at most about a fiftieth of the horizon's length


@dataclass(frozen=True, eq=False)
class Walk:
    """The encoder's steps from the last to the first observation of every stay.

    Step s covers the `sizes[s]` longest walks, packed as in torch's `PackedSequence`. A gap between observations that
    is longer than the stride is divided into several steps, and only the last of them ends at an observation.

    Attributes:
        t: [P] time at which a step starts, in units of 48 h.
        t_next: [P] time at which it ends, earlier.
        row: [P] index of the observation at t_next; −1 for none.
        sizes: number of stays in each step, non-increasing; they sum to P.
        place: [B] index of each stay's walk.
    """

    t: Tensor
    t_next: Tensor
    row: Tensor
    sizes: tuple[int, ...]
    place: Tensor

    @classmethod
    def of(cls, times: Tensor, stay: Tensor, end: Tensor) -> "Walk":
        """The walk of B stays.

        Args:
            times: [M] times of all observations, stay by stay, increasing within each.
            stay: [M] index of each observation's stay.
            end: [B] time of each stay's last observation.
        """
        last = torch.ones_like(stay, dtype=torch.bool)
        last[:-1] = stay[1:] != stay[:-1]
        start = torch.where(last, end[stay] + LEAD, times.roll(-1))
        gap = start - times
        # as published: one step for a short gap, else linspace's int(gap / stride) points, the ends among them
        steps = ((gap * STRIDES + 1e-4).long() - 1).clamp(min=1)
        lengths = torch.zeros_like(end, dtype=torch.int64).index_add_(0, stay, steps)
        rank = lengths.argsort(descending=True, stable=True).argsort()
        row = (
            torch.arange(len(times)).flip(0).repeat_interleave(steps.flip(0))
        )  # in reverse: the last stay's last observation first
        position = _count_up(steps.flip(0))  # within the gap
        index = _count_up(lengths.flip(0))  # within the walk
        t = start[row] - gap[row] * position / steps[row]
        arrives = position + 1 == steps[row]
        t_next = torch.where(arrives, times[row], start[row] - gap[row] * (position + 1) / steps[row])
        order = (index * len(end) + rank[stay[row]]).argsort()
        return cls(
            t=t[order],
            t_next=t_next[order],
            row=torch.where(arrives, row, -1)[order],
            sizes=tuple(torch.bincount(index).tolist()),
            place=rank,
        )


def _count_up(lengths: Tensor) -> Tensor:
    """0, 1, …, n − 1 for each n."""
    ends = lengths.cumsum(0)
    return torch.arange(int(ends[-1])) - (ends - lengths).repeat_interleave(lengths)


@dataclass(frozen=True, eq=False)
class Stays:
    """B stays with M observations, stay by stay, in the order of time.

    Attributes:
        times: [M], in units of 48 h.
        values: [M, 41] scaled, 0 where not measured.
        mask: [M, 41] 1 where measured, else 0.
        stay: [M] index of each observation's stay.
        place: [M] index of each observation within its stay.
        end: [B] time of the last observation.
        labels: [B] 1 for a death in hospital, else 0.
        walk: the encoder's walk.
        noise: [S, B, 20] standard normal, for S samples of z(0); S = 0 if none are drawn.
        kl_weight: weight of the Kullback–Leibler term in this epoch.
        reconstructed: whether L_task has the bound on the observations' likelihood beside the cross-entropy.
    """

    times: Tensor
    values: Tensor
    mask: Tensor
    stay: Tensor
    place: Tensor
    end: Tensor
    labels: Tensor
    walk: Walk
    noise: Tensor
    kl_weight: float = 1.0
    reconstructed: bool = True

    @classmethod
    def of(
        cls, records: Records, *, noise: Tensor | None = None, kl_weight: float = 1.0, reconstructed: bool = True
    ) -> "Stays":
        """Stays from (scaled) records with times in hours."""
        times = records.times / HORIZON
        stay = torch.arange(len(records)).repeat_interleave(records.counts)
        end = times[records.counts.cumsum(0) - 1]
        return cls(
            times=times,
            values=records.values,
            mask=records.mask.float(),
            stay=stay,
            place=_count_up(records.counts),
            end=end,
            labels=records.labels.float(),
            walk=Walk.of(times, stay, end),
            noise=torch.empty(0, len(records), 0) if noise is None else noise,
            kl_weight=kl_weight,
            reconstructed=reconstructed,
        )

    def __len__(self) -> int:
        return len(self.end)

    def __getitem__(self, rows: slice) -> "Stays":
        """Some of the stays, consecutive ones."""
        index = torch.arange(len(self))[rows]
        kept = (self.stay >= index[0]) & (self.stay <= index[-1])
        times, stay, end = self.times[kept], self.stay[kept] - index[0], self.end[rows]
        return replace(
            self,
            times=times,
            values=self.values[kept],
            mask=self.mask[kept],
            stay=stay,
            place=self.place[kept],
            end=end,
            labels=self.labels[rows],
            walk=Walk.of(times, stay, end),
            noise=self.noise[:, rows],
        )

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.times.device

    def to(self, device: torch.device | str) -> "Stays":
        """A copy on another device."""
        walk = replace(self.walk, **_tensors_on(self.walk, device))
        return replace(self, walk=walk, **_tensors_on(self, device))

    def padded_times(self) -> tuple[Tensor, Tensor]:
        """[B, T] times of each stay's observations, padded with 0, and a mask that is False at padding."""
        shape = (len(self), int(self.place.max()) + 1)
        times = self.times.new_zeros(shape).index_put((self.stay, self.place), self.times)
        mask = torch.zeros(shape, dtype=torch.bool, device=self.times.device)
        return times, mask.index_put((self.stay, self.place), torch.ones_like(self.stay, dtype=torch.bool))


def _tensors_on(value: Walk | Stays, device: torch.device | str) -> dict[str, Any]:
    """The fields that are tensors, on the device."""
    columns = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: column.to(device) for name, column in columns.items() if isinstance(column, Tensor)}
