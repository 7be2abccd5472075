"""MNIST classification as a task: data, loss, optimizer, candidates, selectors and reports."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn import functional as F

from dise.integrate import RK4, Dopri5, Euler, Integrator
from dise.select import ClassificationCost, Dynamic, PooledNetwork
from dise_experiments.common.plots import quality_against_nfe
from dise_experiments.common.table import Table
from dise_experiments.common.task import Coarse, Loss, Quality, Run, SelectorSpec, Task
from dise_experiments.mnist.data import Batches, MnistSplits, load_mnist, load_mnist_sample
from dise_experiments.mnist.evaluate import with_ode, without_ode
from dise_experiments.mnist.model import CHANNELS, ImageClassifier, odenet, resnet, rknet
from dise_experiments.mnist.presets import ALPHA, PENALTY, PRESETS, WEIGHTS, Preset
from dise_experiments.mnist.report import model_table, own_row, policy_table, table_1, table_3
from dise_experiments.mnist.selector import PaperNetwork, confidence_network

_DECAY_EPOCHS = (60, 100, 140)
TEST_BATCH = 100
_OF_DOPRI = ("error", "raw-error", "weighted-error", "stiffness")  # regularizers that need DOPRI's stages
_ONE_STEP_OF_DOPRI = Dopri5(rtol=1e-3, atol=1e-3, first_step="span", dt_min=1.0, accept_at_dt_min=True)
ACCURACY_LOSS = 1e-3  # tolerance of selectors: 0.1 points of accuracy


class MnistTask(Task):
    """See `dise_experiments.common.task.Task`."""

    name = "mnist"
    quality = Quality("accuracy", "accuracy", lambda row: row["accuracy"])
    presets = PRESETS
    weights = WEIGHTS
    models: ClassVar = {"odenet": odenet, "rknet": rknet, "resnet": resnet}
    reference = Dopri5(rtol=1e-3, atol=1e-3)
    candidates: tuple[Integrator, ...] = (Euler(steps=1), RK4(steps=1), reference)
    baselines: tuple[Integrator, ...] = (Dopri5(rtol=1e-3, atol=1e-3, first_step="span"),)
    selectors: Mapping[str, SelectorSpec] = {
        "paper": SelectorSpec(lambda model, candidates: PaperNetwork(candidates)),
        "pooled": SelectorSpec(lambda model, candidates: PooledNetwork(CHANNELS, candidates), tolerance=ACCURACY_LOSS),
        "confidence": SelectorSpec(confidence_network, tolerance=ACCURACY_LOSS),
    }
    default_selector = "confidence"

    def check(self, model: str, reg: str) -> str | None:
        """ResNet has no ODE; RKNet is trained without an error estimate."""
        if model == "resnet" and reg not in ("none", "l1", "l2"):
            return f"reg: {reg!r} needs an ODE, and model 'resnet' has none; use none, l1 or l2"
        if model == "rknet" and reg in _OF_DOPRI:
            return f"reg: {reg!r} needs DOPRI's stages, and model 'rknet' is trained with RK4"
        return None

    def coarse(self, preset: Preset, epoch: int, reg: str) -> Coarse | None:
        """The first epochs take one step of RK4, or one of DOPRI, whatever its error, if that is regularized."""
        dtype = torch.bfloat16 if preset.precision == "bfloat16" else None
        if epoch >= preset.coarse_epochs:
            return None if dtype is None else Coarse(None, dtype)
        return Coarse(_ONE_STEP_OF_DOPRI if reg in _OF_DOPRI else RK4(steps=1), dtype)

    def rule(self, alpha: float | None, penalty: float | None, equation: int) -> ClassificationCost:
        """Eq. 4."""
        return ClassificationCost(alpha=ALPHA if alpha is None else alpha, M=PENALTY if penalty is None else penalty)

    def load(self, preset: Preset, data_dir: Path | None) -> MnistSplits:
        """The preset's images."""
        return load_mnist_sample() if preset.data == "sample" else load_mnist(data_dir)

    def training_batches(self, splits: MnistSplits, preset: Preset, *, seed: int, epoch: int) -> Batches:
        """Batches of one epoch, shuffled and cropped as determined by (seed, epoch)."""
        return Batches(splits.train, batch_size=preset.batch_size, seed=seed, epoch=epoch)

    def monitored_batches(self, splits: MnistSplits, preset: Preset) -> Batches:
        """Held-out images on which accuracy is logged during training; it decides nothing."""
        return Batches.evaluation(splits.held_out[: preset.monitored], batch_size=TEST_BATCH)

    def rows(self, batch: tuple[Tensor, Tensor]) -> int:
        """Number of images."""
        return len(batch[1])

    def take(self, batch: tuple[Tensor, Tensor], rows: slice) -> tuple[Tensor, Tensor]:
        """Some of the images."""
        return batch[0][rows], batch[1][rows]

    def selection_batches(self, model: nn.Module, splits: MnistSplits, *, on: str, unit: str) -> Batches:
        """The held-out images, the same number of training images, or the test images."""
        parts = {"held-out": splits.held_out, "train": splits.train[: len(splits.held_out)], "test": splits.test}
        return Batches.evaluation(parts[on], batch_size=TEST_BATCH)

    def draw(self, axes: Axes, x: Tensor, row: int) -> None:
        """The image."""
        axes.imshow(x[row, 0].numpy(force=True), cmap="gray_r", vmin=0, vmax=1)

    def timed_batches(self, splits: MnistSplits, number: int, *, unit: str) -> Iterable[Tensor]:
        """Test images in batches of 100, as in the paper."""
        return (x for x, _ in islice(self._test_batches(splits), number))

    def metrics(
        self,
        model: nn.Module,
        dynamics: Mapping[str, Dynamic],
        selector_macs: Mapping[str, float],
        splits: MnistSplits,
    ) -> dict[str, Any]:
        """Accuracy and NFE of every policy."""
        batches = self._test_batches(splits)
        if not dynamics:
            return without_ode(model, batches)
        return with_ode(model, self.candidates, self.baselines, dynamics, selector_macs, batches)

    def own_row(self, run: Run) -> dict[str, Any]:
        """Its evaluation with the integrator that it was trained with."""
        return own_row(run)

    def tables(self, runs: Sequence[Run]) -> list[Table]:
        """Tables 1 and 3, and the models compared in pairs."""
        return [table_1(runs), table_3(runs), model_table(runs)]

    def details(self, run: Run) -> list[Table]:
        """The table of all policies."""
        return [policy_table(run)]

    def plots(self, runs: Sequence[Run], folder: Path, load: Callable[[Run], nn.Module]) -> list[Path]:
        """Accuracy against NFE, one figure per run."""
        files = []
        for run in runs:
            if "nfe" in own_row(run):  # a model without an ODE has none
                files.append(folder / run.name / "accuracy-nfe.png")
                quality_against_nfe(run.policies(), run.name, files[-1], quality=_percent, label="accuracy, %")
        return files

    def _test_batches(self, splits: MnistSplits) -> Batches:
        return Batches.evaluation(splits.test, batch_size=TEST_BATCH)

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


def _percent(row: dict[str, Any]) -> float:
    return 100 * row["accuracy"]
