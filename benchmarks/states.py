"""What the benchmarks of policies share: a trained ODE-Net as block and head, and the states where they begin."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dise_experiments.mnist.data import Batches, Images
from dise_experiments.run.rundir import load_model, open_run

SIZE = 250  # samples at once, where time is not measured
LEARN = 6000  # training images that policies are learnt from


class Samples(NamedTuple):
    """h(0) [N, 64, 6, 6] and labels [N]."""

    h0: Tensor
    label: Tensor

    def take(self, rows: slice | Tensor) -> "Samples":
        return Samples(self.h0[rows], self.label[rows])

    def batches(self, size: int = SIZE) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.h0.split(size), self.label.split(size), strict=True))


class Trained(NamedTuple):
    """A trained ODE-Net without its stem, which is the same for every policy."""

    name: str
    model: nn.Module
    part: nn.Sequential  # block and head
    learn: Samples  # of the training images
    held_out: Samples
    test: Samples


def load(run: Path, data_dir: Path | None, images: int | None, learn: int = LEARN) -> Trained:
    """The run's model, and states of `learn` training images, of all held-out and of all test images.

    With `images` of the first so many of each.
    """
    config = open_run(run)
    task, settings = config.found
    model = load_model(run, config)
    splits = task.load(settings, data_dir)
    parts = (splits.train[: images or learn], splits.held_out[:images], splits.test[:images])
    block_and_head = nn.Sequential(model.get_submodule("block"), model.get_submodule("head"))
    return Trained(config.name, model, block_and_head, *(_states(model, part) for part in parts))


@torch.no_grad()
def _states(model: nn.Module, images: Images) -> Samples:
    stem = model.get_submodule("stem")
    return Samples(torch.cat([stem(x) for x, _ in _batches(images)]), images.labels)


def _batches(images: Images) -> Iterator[tuple[Tensor, Tensor]]:
    return iter(Batches.evaluation(images, batch_size=SIZE))
