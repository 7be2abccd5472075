"""Ragged lists of samples as padded tensors."""

from typing import NamedTuple

import torch
from torch import Tensor


class PaddedRows(NamedTuple):
    """Places of X entries, sorted by sample, in a table with a row for each of B samples.

    Args:
        sample: [X] increasing.
        place: [X] column.
        shape: of the table, B and the most entries of a sample.
    """

    sample: Tensor
    place: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, sample: Tensor, number: int) -> "PaddedRows":
        """The places of entries of samples [X], increasing, of `number` samples."""
        counts = torch.bincount(sample, minlength=number)
        place = torch.arange(len(sample), device=sample.device) - (counts.cumsum(0) - counts)[sample]
        return cls(sample, place, (number, int(counts.max()) if number else 0))

    def __call__(self, entries: Tensor, padding: float = torch.nan) -> Tensor:
        """[B, K, ...] the entries [X, ...] in their places; integers and bool are padded with 0 instead of NaN."""
        if padding != padding and not (entries.is_floating_point() or entries.is_complex()):
            padding = 0
        blank = entries.new_full((*self.shape, *entries.shape[1:]), padding)
        return blank.index_put((self.sample, self.place), entries)
