"""Samples in memory, and their split into those to fit on and those to test on."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dise.select.model.data import Data, as_batches

Batch = tuple[Tensor, Tensor | None]


class Samples(NamedTuple):
    """Inputs [N, ...], targets [N, ...] (None without any), and the size of a batch."""

    x: Tensor
    target: Tensor | None
    size: int

    def batches(self, rows: Tensor, size: int) -> list[Batch]:
        """Some of the samples, `size` at a time."""
        parts = torch.split(rows, size)
        return [(self.x[some], None if self.target is None else self.target[some]) for some in parts]


def collect_samples(name: str, data: Data) -> Samples:
    """The samples of batches x or (x, target) (see `as_batches`); `name` is the argument's, for the error.

    Raises:
        ValueError: no batches, inputs that are not tensors of one shape, or targets that are not.
    """
    batches = list(as_batches(name, data))
    x = _concatenate(f"{name}: expected inputs x", [x for x, _ in batches])
    targets = [target for _, target in batches]
    whole = None if all(t is None for t in targets) else _concatenate(f"{name}: expected targets", targets)
    return Samples(x, whole, len(batches[0][0]))


def _concatenate(expected: str, parts: list[object]) -> Tensor:
    """Tensors of all batches as one; an error says what was expected."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    shapes = {tuple(part.shape[1:]) for part in tensors}
    if len(tensors) < len(parts):
        other = next(part for part in parts if not isinstance(part, Tensor))
        raise ValueError(f"{expected} that are tensors in all batches, got {type(other).__name__}")
    if len(shapes) > 1:
        raise ValueError(f"{expected} of one shape in all batches, got samples of {sorted(shapes)}")
    return torch.cat(tensors)


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
