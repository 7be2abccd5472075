"""Batches of stays, to train, select and test on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dise_experiments.physionet.model import LATENT
from dise_experiments.physionet.records import Records
from dise_experiments.physionet.stays import Stays

KL_FREE, KL_DECAY = 10, 0.99  # as published: epochs without the KL term; afterwards its weight is 1 − 0.99^epochs


@dataclass(frozen=True)
class TrainingBatches:
    """One epoch's batches of scaled records, a pure function of seed and epoch; the last one may be smaller.

    Args:
        records: training records.
        batch_size: stays per batch.
        samples: samples of z(0) per stay.
        seed, epoch: they determine the order, the samples and the measurements left out.
        left_out: share of the measurements left out, different ones in each epoch, against overfitting.
        reconstructed: as in `Stays`.
    """

    records: Records
    batch_size: int
    samples: int
    seed: int
    epoch: int
    left_out: float = 0.0
    reconstructed: bool = True

    def __len__(self) -> int:
        return -(-len(self.records) // self.batch_size)

    def __iter__(self) -> Iterator[Stays]:
        generator = _generator(self.seed, self.epoch)
        order = torch.randperm(len(self.records), generator=generator)
        for rows in order.split(self.batch_size):
            records = self.records[rows]
            if self.left_out > 0:
                records = records.without(torch.rand(records.mask.shape, generator=generator) < self.left_out)
            yield Stays.of(
                records,
                noise=draw(self.samples, len(rows), generator),
                kl_weight=kl_weight(self.epoch),
                reconstructed=self.reconstructed,
            )


@dataclass(frozen=True)
class TestBatches:
    """Every record once, in order, as (stays, labels [B])."""

    __test__ = False  # not a test case for pytest, in spite of its name

    records: Records
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.records) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Stays, Tensor]]:
        for start in range(0, len(self.records), self.batch_size):
            stays = Stays.of(self.records[start : start + self.batch_size])
            yield stays, stays.labels


def kl_weight(epoch: int) -> float:
    """Weight of the Kullback–Leibler term in an epoch (from 0): 0 in the first ten, then increasing to 1."""
    return 1 - KL_DECAY ** max(epoch - KL_FREE, 0)


def draw(samples: int, stays: int, generator: torch.Generator) -> Tensor:
    """[S, B, 20] standard normal noise."""
    return torch.randn(samples, stays, LATENT, generator=generator)


def _generator(seed: int, epoch: int) -> torch.Generator:
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))
