"""Samples in memory, and their split into those to fit on and those to test on."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dise.select.model.data import Batch, Data, as_batches
from dise.select.model.inputs import Inputs, concatenate_batches


class Samples(NamedTuple):
    """Inputs of N samples, targets [N, ...] (None without any), and the size of a batch."""

    inputs: Inputs
    target: Tensor | None
    size: int

    def batches(self, rows: Tensor, size: int) -> list[Batch]:
        """Some of the samples, `size` at a time."""
        parts = torch.split(rows, size)
        return [Batch(self.inputs.take(some), None if self.target is None else self.target[some]) for some in parts]


def collect_samples(name: str, data: Data, model: nn.Module) -> Samples:
    """The samples of batches for a model (see `as_batches`); `name` is the argument's, for the error.

    Raises:
        ValueError: no batches, inputs that are not tensors of the same shapes in all batches, or targets that are not.
    """
    batches = list(as_batches(name, data, model))
    inputs = Inputs.concatenate([batch.inputs for batch in batches], name)
    targets = [batch.target for batch in batches]
    whole = None if all(t is None for t in targets) else concatenate_batches(f"{name}: expected targets", targets)
    return Samples(inputs, whole, len(batches[0].inputs))


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
    generator = torch.Generator().manual_seed(int(seed))
    data, to_fit = given[0], given[-1]
    order = torch.randperm(len(data.inputs), generator=generator)
    if len(given) > 1:
        rows = torch.randperm(len(to_fit.inputs), generator=generator)
    else:
        cut = len(order) - max(needed, round((1 - fit_part) * len(order)))
        rows, order = order[:cut], order[cut:]
    size = min(to_fit.size, max(1, math.ceil(len(rows) / 4)))  # the batches will be halved
    return to_fit.batches(rows, size), data.batches(order, data.size)
