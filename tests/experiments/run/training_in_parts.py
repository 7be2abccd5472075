"""Trainings that a test starts by torchrun, with this script, and repeats in one process.

torchrun --standalone --nproc-per-node 2 training_in_parts.py OUT
"""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dise_experiments.mnist import task as mnist_task
from dise_experiments.mnist.data import MnistSplits, load_mnist_sample
from dise_experiments.mnist.presets import PRESETS, Preset
from dise_experiments.run import train
from dise_experiments.run.config import RunConfig
from dise_experiments.run.processes import Processes, rank


@contextmanager
def small_world():
    """MNIST's preset "sample" is tiny and learns slowly, so that rounding does not grow; every step is logged."""
    sample = load_mnist_sample()
    splits = MnistSplits(sample.train[:28], sample.held_out[:20], sample.test[:20])
    with pytest.MonkeyPatch.context() as patch:
        preset = Preset(data="sample", epochs=2, schedule="one-cycle", batch_size=7, learning_rate=0.02, monitored=20)
        patch.setitem(PRESETS, "sample", preset)
        patch.setattr(mnist_task, "load_mnist_sample", lambda: splits)
        patch.setattr(train, "LOGGED_EVERY", 1)
        yield


def configs():
    """Batches of 7 images, which are 3 and 4 of two processes; 64 points of one system; 33 records."""
    circles = ["epochs=2", "iterations=3", "batch_size=64"]
    records = ["epochs=2", "quantization=6", "batch_size=33"]
    return {
        "mean": RunConfig.of("mnist", "sample", model="rknet", reg="kinetic", weight=0.5, reduce="mean"),
        "sum": RunConfig.of("mnist", "sample", model="rknet", reg="kinetic", weight=1e-4, reduce="sum"),
        "parameters": RunConfig.of("mnist", "sample", model="rknet", reg="l2", weight=0.1),
        "steer": RunConfig.of("mnist", "sample", model="rknet", reg="steer"),
        "one system": RunConfig.of("circles", "sample", reg="kinetic", changes=circles),
        "bound": RunConfig.of("physionet", "sample", reg="l1", changes=records),
        "cross-entropy": RunConfig.of("physionet", "sample", changes=[*records, "loss=cross-entropy"]),
    }


def main(out):
    """Train all of them in this process's part."""
    torch.set_num_threads(1)
    with small_world():
        for name, config in configs().items():
            train.train_run(config, out / name, device="cpu", processes=Processes(2))
    (out / f"rank{rank()}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
