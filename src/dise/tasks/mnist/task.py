"""MNIST classification as a task: what training needs to know of it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dise.tasks.mnist.data import Batches, MnistSplits, load_mnist, load_mnist_sample
from dise.tasks.mnist.model import ImageClassifier, odenet, resnet, rknet
from dise.tasks.mnist.presets import PRESETS, WEIGHTS, Preset
from dise.tasks.task import Loss

_DECAY_EPOCHS = (60, 100, 140)


class MnistTask:
    """See `dise.tasks.task.Task`."""

    name = "mnist"
    presets = PRESETS
    weights = WEIGHTS
    models = {"odenet": odenet, "rknet": rknet, "resnet": resnet}

    def load(self, preset: Preset, data_dir: Path | None) -> MnistSplits:
        """The preset's images."""
        return load_mnist_sample() if preset.data == "sample" else load_mnist(data_dir)

    def training_batches(self, splits: MnistSplits, preset: Preset, *, seed: int, epoch: int) -> Batches:
        """Batches of one epoch, shuffled and cropped as (seed, epoch) say."""
        return Batches(splits.train, batch_size=preset.batch_size, seed=seed, epoch=epoch)

    def monitored_batches(self, splits: MnistSplits, preset: Preset) -> Batches:
        """Held-out images whose accuracy is logged while training; nothing is chosen by it."""
        return Batches.evaluation(splits.held_out[: preset.monitored], batch_size=100)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], accumulate: Any) -> Loss:
        """Cross-entropy and accuracy."""
        if not isinstance(model, ImageClassifier):
            raise TypeError(f"model: expected an ImageClassifier, got {type(model).__name__}")
        x, labels = batch
        logits, solution = model.solve(x, accumulate=accumulate)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return Loss(F.cross_entropy(logits, labels), solution, model.dynamics, {"accuracy": accuracy})

    def optimizer(self, model: nn.Module, preset: Preset, steps_per_epoch: int) -> dict[str, Any]:
        """SGD with momentum 0.9 and the preset's schedule, in Lightning's form."""
        rate = preset.learning_rate * preset.batch_size / 128
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        schedulers = torch.optim.lr_scheduler
        if preset.schedule == "one-cycle":
            total = preset.epochs * steps_per_epoch
            cycle = schedulers.OneCycleLR(optimizer, max_lr=rate, total_steps=total)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
        steps = schedulers.MultiStepLR(optimizer, milestones=list(_DECAY_EPOCHS), gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": steps, "interval": "epoch"}}
