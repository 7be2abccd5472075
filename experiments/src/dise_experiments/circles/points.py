"""Points for training, selection and tests: each part is drawn from its own random stream."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dise_experiments.circles.data import TARGETS
from dise_experiments.circles.presets import Preset
from dise_experiments.circles.selector import SET


def draw(target: str, number: int, *stream: object) -> Tensor:
    """[number, 2] points of the target, a pure function of the arguments."""
    seed = hashlib.sha256("/".join(map(str, stream)).encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)
    return TARGETS[target](number, generator)


@dataclass(frozen=True)
class FreshBatches:
    """One epoch of training batches [1, batch, 2]; each is solved as one system, as with torchdiffeq."""

    preset: Preset
    seed: int
    epoch: int

    def __len__(self) -> int:
        return self.preset.iterations

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(len(self)):
            yield draw(self.preset.target, self.preset.batch_size, "train", self.seed, self.epoch, index)[None]


def sets(target: str, number: int, part: str) -> Tensor:
    """[number, 32, 2] sets of points of a part; all runs get the same, so that they can be compared."""
    return draw(target, number * SET, part).reshape(number, SET, 2)
