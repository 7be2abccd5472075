"""Mortality in intensive care as a task: data, loss, optimizer, candidates, selectors and reports."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from dise.integrate import RK4, Bosh3, Dopri5, Euler, Integrator
from dise.select import BinaryCost, CostRule, Dynamic, PooledNetwork, TaskErrorCost
from dise_experiments.common.plots import COLOURS, quality_against_nfe
from dise_experiments.common.table import Table
from dise_experiments.common.task import Loss, Quality, Run, SelectorSpec, Task
from dise_experiments.physionet.batches import TestBatches, TrainingBatches, draw
from dise_experiments.physionet.data import PhysionetSplits, load_physionet, load_physionet_sample
from dise_experiments.physionet.evaluate import published_test, with_ode, without_ode
from dise_experiments.physionet.loss import latent_ode_loss
from dise_experiments.physionet.model import LATENT, TRAINING_INTEGRATOR, LatentODE
from dise_experiments.physionet.presets import (
    ALPHA,
    BETA,
    PENALTY,
    PRESETS,
    PREVALENCE,
    TEST_BATCH,
    WEIGHTS,
    Preset,
)
from dise_experiments.physionet.records import Scaling
from dise_experiments.physionet.report import against_dopri, own_row, policy_tables, seed_table, table_5, table_6
from dise_experiments.physionet.selector import PaperNetwork
from dise_experiments.physionet.starts import encoded
from dise_experiments.physionet.stays import Stays

DEVIATING_RECORDS = 0.02  # tolerance of `pooled`: share of records farther than β from the reference
_PAPER = (0, 2, 7)  # the paper's candidates: Euler and RK4 with one step over the whole stay, and DOPRI


class PhysionetTask(Task):
    """See `dise_experiments.common.task.Task`."""

    name = "physionet"
    quality = Quality("AUROC", "auroc", lambda row: row["auroc"])
    presets = PRESETS
    weights = WEIGHTS
    keeps = "held_out/auroc"  # the classifier overfits after about twenty epochs
    models: ClassVar = {"z_end": partial(LatentODE, "z_end"), "z0": partial(LatentODE, "z0")}
    reference = TRAINING_INTEGRATOR
    candidates: tuple[Integrator, ...] = (
        Euler(steps=1),
        Euler(steps=4),
        RK4(steps=1),
        RK4(steps=2),
        RK4(steps=4),
        Bosh3(rtol=1e-2, atol=1e-3, first_step="span"),
        Dopri5(rtol=1e-3, atol=1e-4, first_step="span"),
        reference,
    )
    baselines: tuple[Integrator, ...] = tuple(
        Dopri5(rtol=rtol, atol=atol) for rtol, atol in ((1e-1, 1e-2), (1e-2, 1e-3), (1e-5, 1e-6))
    )
    selectors: Mapping[str, SelectorSpec] = {
        "paper": SelectorSpec(lambda model, number: PaperNetwork(number), unit="record", candidates=_PAPER),
        "paper-dropout": SelectorSpec(
            lambda model, number: PaperNetwork(number, dropout=0.25), unit="record", candidates=_PAPER
        ),
        "paper-gap": SelectorSpec(
            lambda model, number: PaperNetwork(number), unit="record", equation=5, candidates=_PAPER
        ),
        "pooled": SelectorSpec(
            lambda model, number: PooledNetwork(LATENT, number), DEVIATING_RECORDS, unit="record", equation=5
        ),
    }
    default_selector = "pooled"

    def selects(self, model: nn.Module) -> bool:
        """Whether the classifier reads z(t_end)."""
        return isinstance(model, LatentODE) and model.head == "z_end"

    def rule(self, alpha: float | None, penalty: float | None, equation: int) -> CostRule:
        """Eq. 4 with the prevalence as threshold, or Eq. 5 with Γ the distance from the reference's probability."""
        alpha, penalty = ALPHA if alpha is None else alpha, PENALTY if penalty is None else penalty
        if equation == 4:
            return BinaryCost(alpha=alpha, M=penalty, threshold=PREVALENCE)
        return TaskErrorCost(alpha=alpha, M=penalty, task_error=probability_gap, beta=BETA, resolution=BETA)

    def load(self, preset: Preset, data_dir: Path | None) -> PhysionetSplits:
        """The preset's records, scaled by the training part's extremes."""
        if preset.data == "sample":
            splits = load_physionet_sample(q=preset.quantization)
            splits = replace(splits, held_out=splits.held_out[: preset.held_out])
        else:
            splits = load_physionet(data_dir, q=preset.quantization, held_out=preset.held_out)
        scaling = Scaling.fit(splits.train)
        parts = (splits.train, splits.held_out, splits.test, splits.set_b)
        return PhysionetSplits(*(scaling(part) for part in parts))

    def training_batches(self, splits: PhysionetSplits, preset: Preset, *, seed: int, epoch: int) -> TrainingBatches:
        """Batches of one epoch, shuffled and sampled as determined by (seed, epoch)."""
        size, samples, reconstructed = preset.batch_size, preset.samples, _reconstructs(preset)
        return TrainingBatches(splits.train, size, samples, seed, epoch, preset.left_out, reconstructed)

    def monitored_batches(self, splits: PhysionetSplits, preset: Preset) -> list[Stays]:
        """The held-out records in one batch, since the area under the curve is that of all of them."""
        noise = draw(preset.samples, len(splits.held_out), torch.Generator().manual_seed(0))
        return [Stays.of(splits.held_out, noise=noise, reconstructed=_reconstructs(preset))]

    def reaches_all_parameters(self, preset: Preset) -> bool:
        """Not without a reconstruction: the cross-entropy leaves out the decoder, or the ODE if the head reads z(0)."""
        return _reconstructs(preset)

    def rows(self, batch: Stays) -> int:
        """Number of stays."""
        return len(batch)

    def take(self, batch: Stays, rows: slice) -> Stays:
        """Some of the stays."""
        return batch[rows]

    def selection_batches(
        self, model: nn.Module, splits: PhysionetSplits, *, on: str, unit: str
    ) -> Iterable[tuple[Stays, Tensor]]:
        """The held-out records, the same number of training records, or the test records."""
        parts = {"held-out": splits.held_out, "train": splits.train[: len(splits.held_out)], "test": splits.test}
        return TestBatches(parts[on], TEST_BATCH)

    def draw(self, axes: Axes, x: Stays, row: int) -> None:
        """When what was measured, a line for each variable, red for a death."""
        own = x.stay == row
        measured, variable = x.mask[own].nonzero().T
        times = x.times[own][measured].numpy(force=True)
        colour = COLOURS[3] if x.labels[row] else COLOURS[0]
        axes.scatter(times, variable.numpy(force=True), s=0.5, color=colour)
        axes.set(xlim=(0, 1), ylim=(x.mask.shape[1], -1))

    def timed_batches(self, splits: PhysionetSplits, number: int, *, unit: str) -> Iterable[Stays]:
        """Test records in batches of 60, as in the paper, without a last smaller batch."""
        whole = max(len(splits.test) // TEST_BATCH, 1)
        return (x for x, _ in islice(TestBatches(splits.test, TEST_BATCH), min(number, whole)))

    def loss(self, model: nn.Module, batch: Stays, accumulate: Any) -> Loss:
        """L_task of the preset; in evaluation mode also the area under the ROC curve of the batch."""
        latent = _latent_ode(model)
        made = latent.reconstruct(batch, accumulate=accumulate)
        value, metrics = latent_ode_loss(made, batch)
        if not latent.training:
            metrics["auroc"] = binary_auroc(made.logits.flatten(), batch.labels.repeat(len(made.logits)).long())
        return Loss(value, made.solution, latent.block.f, metrics)

    def optimizer(self, model: nn.Module, preset: Preset, steps_per_epoch: int) -> dict[str, Any]:
        """Adamax with a rate that falls by a factor per batch down to a floor, in Lightning's form."""
        optimizer = torch.optim.Adamax(model.parameters(), lr=preset.learning_rate)
        lowest = preset.floor / preset.learning_rate
        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(preset.decay**step, lowest))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}

    def metrics(
        self,
        model: nn.Module,
        dynamics: Mapping[str, Dynamic],
        selector_macs: Mapping[str, float],
        splits: PhysionetSplits,
    ) -> dict[str, Any]:
        """All policies on the test part of set a and on set b, and the result of the published test."""
        latent, metrics = _latent_ode(model), dict[str, Any]()
        for suffix, records in (("", splits.test), ("_b", splits.set_b)):
            batches = encoded(latent, records)
            metrics[f"samples{suffix}"] = len(records)
            metrics[f"policies{suffix}"] = (
                with_ode(latent, self.candidates, self.baselines, dynamics, selector_macs, batches)
                if dynamics
                else without_ode(latent, batches)
            )
            metrics[f"published{suffix}"] = published_test(latent, batches)
        return metrics

    def own_row(self, run: Run) -> dict[str, Any]:
        """Its evaluation with the integrator that it was trained with."""
        return own_row(run.metrics["policies"])

    def tables(self, runs: Sequence[Run]) -> list[Table]:
        """Tables 5 and 6, DISE against DOPRI, and each regularizer over its seeds."""
        return [table_5(runs), table_6(runs), against_dopri(runs), seed_table(runs)]

    def details(self, run: Run) -> list[Table]:
        """The tables of all policies, on the test part and on set b."""
        return policy_tables(run)

    def plots(self, runs: Sequence[Run], folder: Path, load: Callable[[Run], nn.Module]) -> list[Path]:
        """Distance from the reference's probability against NFE, one figure per run."""
        files = []
        for run in runs:
            rows = [row for row in run.policies() if row.get("gap")]  # the reference's is 0
            if rows:
                files.append(folder / run.name / "gap-nfe.png")
                label = "mean distance of probability from the reference's"
                quality_against_nfe(rows, run.name, files[-1], quality=lambda row: row["gap"], label=label, log=True)
        return files


def _reconstructs(preset: Preset) -> bool:
    return preset.loss == "latent-ode"


def _latent_ode(model: nn.Module) -> LatentODE:
    if not isinstance(model, LatentODE):
        raise TypeError(f"model: expected a LatentODE, got {type(model).__name__}")
    return model


def probability_gap(output: Tensor, target: Tensor) -> Tensor:
    """[N, K] distance of each candidate's probability from that of the last one, from logits [N, K]."""
    p = output.sigmoid()
    return (p - p[:, -1:]).abs()
