"""Samples in memory, and their split into those to fit on and those to test on."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


class Samples(NamedTuple):
    """Inputs [N, ...], targets [N, ...] (zeros if there are none), and the size of a batch."""

    x: Tensor
    target: Tensor
    size: int

    def batches(self, rows: Tensor, size: int) -> list[Batch]:
        """Some of the samples, `size` at a time."""
        return [(self.x[some], self.target[some]) for some in torch.split(rows, size)]


def collect_samples(name: str, data: Iterable[Tensor | Batch]) -> Samples:
    """The samples of batches x or (x, target); `name` is the argument's, for the error.

    Raises:
        ValueError: no batches.
    """
    batches = [(batch, None) if isinstance(batch, Tensor) else tuple(batch) for batch in data]
    if not batches:
        raise ValueError(f"{name}: expected batches x or (x, target), got none")
    targets = [torch.zeros(len(x)) if target is None else target for x, target in batches]
    return Samples(torch.cat([x for x, _ in batches]), torch.cat(targets), len(batches[0][0]))


def check_number(number: int, needed: int, fit_part: float) -> None:
    """Raise a ValueError unless `needed` samples are left when a part of `number` is set apart for fitting."""
    least = math.ceil(needed / (1 - fit_part))
    if number < least:
        raise ValueError(
            f"data: at least {least} samples are needed, {needed} of them to certify this epsilon with this delta even "
            f"without a single loss; got {number}"
        )


def split_samples(given: list[Samples], needed: int, *, fit_part: float, seed: int) -> tuple[list[Batch], list[Batch]]:
    """Batches to fit on and batches to test on, in random order.

    Args:
        given: the data, and samples to fit on if there are any; else a part of the data is for fitting.
        needed: number of samples that the test needs.
        fit_part: that part of the data.
        seed: of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    data, to_fit = given[0], given[-1]
    order = torch.randperm(len(data.x), generator=generator)
    if len(given) > 1:
        rows = torch.randperm(len(to_fit.x), generator=generator)
    else:
        cut = len(order) - max(needed, round((1 - fit_part) * len(order)))
        rows, order = order[:cut], order[cut:]
    size = min(to_fit.size, max(1, math.ceil(len(rows) / 4)))  # the batches will be halved
    return to_fit.batches(rows, size), data.batches(order, data.size)
