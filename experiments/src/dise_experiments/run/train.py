"""Training of one run with Lightning: L = L_task + λ·R (Eq. 3)."""

import csv
import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from dise.integrate import SolveError
from dise.regularize import NoRegularizer, RandomEndTime, Regularizer
from dise.select import contains_block, find_block
from dise_experiments.common.task import Coarse, Loss
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.progress import progress
from dise_experiments.run.quiet import quiet_lightning
from dise_experiments.run.rundir import MODEL, TRAINING, claim_run, save_weights, write_json


class Training(L.LightningModule):
    """A task's model in training. λ·R is logged beside the task loss, so that the two can be compared."""

    def __init__(self, config: RunConfig, splits: Any) -> None:
        super().__init__()
        self.config, self.splits = config, splits
        self.task, self.settings = config.found
        self.regularizer = config.regularizer
        self.model = self.task.models[config.model]()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """The loss of Eq. 3."""
        coarse = self.task.coarse(self.settings, self.current_epoch)
        off = coarse is not None and self.config.reg in coarse.without
        regularizer = NoRegularizer() if off else self.regularizer
        with coarsely(self.model, coarse), random_end(self.model, regularizer):
            loss = self.task.loss(self.model, batch, regularizer.accumulate)
        penalty = self.config.weight * regularizer(loss.solution, loss.dynamics)
        self._log("train", loss, {"loss": loss.value, "penalty": penalty})
        return loss.value + penalty

    def validation_step(self, batch: Any, index: int) -> None:
        """Log the same measures on held-out data."""
        loss = self.task.loss(self.model, batch, None)
        self._log("held_out", loss, {"loss": loss.value})

    def _log(self, part: str, loss: Loss, values: dict[str, torch.Tensor]) -> None:
        values = {name: value.detach() for name, value in (values | loss.metrics).items()}
        if loss.solution is not None:
            values |= {
                "nfe": loss.solution.nfe.float().mean(),
                "nfe_batch": torch.tensor(float(loss.solution.calls)),
            }
            values |= {"error": loss.solution.error.detach().mean()}
        batch_size = 1 if loss.solution is None else loss.solution.nfe.numel()
        for name, value in values.items():
            self.log(f"{part}/{name}", value, batch_size=batch_size)

    def train_dataloader(self) -> Any:
        """The current epoch's batches; Lightning calls this once per epoch."""
        return self.task.training_batches(self.splits, self.settings, seed=self.config.seed, epoch=self.current_epoch)

    def val_dataloader(self) -> Any:
        """The monitored batches."""
        return _Loader(list(self.task.monitored_batches(self.splits, self.settings)))

    def configure_optimizers(self) -> Any:
        """The task's optimizer and schedule."""
        steps = len(self.train_dataloader())
        return self.task.optimizer(self.model, self.settings, steps)


@contextmanager
def coarsely(model: nn.Module, coarse: Coarse | None) -> Iterator[None]:
    """Within it the model's ODE, if it has one, is integrated as an epoch's `Coarse` says."""
    if coarse is None:
        yield
        return
    blocks = [find_block(model)] if contains_block(model) else []
    own = [block.integrator for block in blocks]
    for block in blocks:
        block.integrator = coarse.integrator
    device = next(model.parameters()).device.type
    try:
        with torch.autocast(device, coarse.dtype, enabled=coarse.dtype is not None):
            yield
    finally:
        for block, integrator in zip(blocks, own, strict=True):
            block.integrator = integrator


@contextmanager
def random_end(model: nn.Module, regularizer: Regularizer) -> Iterator[None]:
    """Within it the model's ODE ends at a random time, if the regularizer is STEER."""
    if not isinstance(regularizer, RandomEndTime):
        yield
        return
    block = find_block(model)
    end = block.t1
    block.t1 = regularizer.end(block.t0, end)
    try:
        yield
    finally:
        block.t1 = end


class _Loader:
    """A list of batches as one loader; Lightning would take each entry of a list for a loader."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def train_run(
    config: RunConfig, path: Path, *, data_dir: Path | None = None, device: str = "auto", resume: bool = True
) -> bool:
    """Train a run to its end: continue an interrupted training, do nothing if it is finished.

    An interrupted training continues after its last complete epoch, with the same result as an uninterrupted one.

    Args:
        config: the run.
        path: its directory.
        data_dir: folder of the data.
        device: Lightning's accelerator: "auto", "cpu" or "gpu".
        resume: False refuses a directory that exists.

    Returns:
        whether anything was trained.

    Raises:
        ExperimentError: the directory belongs to another run, or exists and `resume` is False; the training diverged;
            the checkpoint is damaged or contains other objects than a training's state.
        DataError: the data are missing or damaged.
    """
    if not resume and path.exists():
        raise ExperimentError(f"{path} exists; omit --no-resume to continue or reuse it, or move it away")
    task, settings = config.found
    if (path / MODEL).exists():
        claim_run(path, config)
        return False
    splits = task.load(settings, data_dir)
    claim_run(path, config)
    checkpoint = path / "checkpoints" / "last.ckpt"
    torch.manual_seed(config.seed)
    module = Training(config, splits)
    clock, keep = _Clock(), partial(ModelCheckpoint, checkpoint.parent, enable_version_counter=False)
    best = None if task.keeps is None else keep(filename="best", monitor=task.keeps, mode="max")
    callbacks = [clock, progress(task.quality), keep(filename=checkpoint.stem), *([best] if best else [])]
    with quiet_lightning():
        trainer = _trainer(path, settings.epochs, device, callbacks)
        _fit(trainer, module, checkpoint)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if value.isfinite()}
    if best is not None:
        metrics |= _take_best(module, Path(best.best_model_path))
    write_json(path / TRAINING, {"seconds": clock.seconds, "threads": torch.get_num_threads()} | metrics)
    save_weights(module.model, path / MODEL)
    return True


def _fit(trainer: L.Trainer, module: Training, checkpoint: Path) -> None:
    """Train, from the checkpoint if there is one; Ctrl-C raises KeyboardInterrupt."""
    if checkpoint.exists():
        _load(checkpoint)  # report a damaged file before the training starts
    try:
        trainer.fit(module, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
    except SolveError as error:
        raise ExperimentError(f"training diverged at step {trainer.global_step}: {error}") from error
    except SystemExit:  # Lightning's end after Ctrl-C
        if not trainer.interrupted:
            raise
    if trainer.interrupted:
        raise KeyboardInterrupt


def _take_best(module: Training, checkpoint: Path) -> dict[str, float]:
    """Load the weights of the best epoch into the module; the number of that epoch, from 1."""
    saved = _load(checkpoint)
    module.load_state_dict(saved["state_dict"])
    return {"best_epoch": saved["epoch"] + 1}


def _load(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's content: tensors, numbers and text alone, so that loading a file runs no code from it.

    Raises:
        ExperimentError: the file is damaged, or contains other objects.
    """
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "damaged, or contains objects that a training does not save"
        raise ExperimentError(f"{checkpoint} is {reason}; move it away to train from the start") from error
    except (EOFError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise ExperimentError(
            f"{checkpoint} is damaged ({type(error).__name__}); move it away to train from the start"
        ) from error


class _Clock(Callback):
    """Seconds of training, summed over the processes of a resumed run."""

    def __init__(self) -> None:
        self.seconds, self._since = 0.0, time.perf_counter()

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds + time.perf_counter() - self._since}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.seconds = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds += time.perf_counter() - self._since


def _new_version(logs: Path, name: str) -> str:
    """A new name for a resumed run's log: Lightning's CSV logger deletes an earlier log of the same name."""
    taken = len(list(logs.glob(f"{name}*")))
    return f"{name}-{taken}" if taken else name


def read_log(path: Path) -> list[dict[str, float]]:
    """The training log of a run, one row per logged step: `step`, `train/loss`, `train/penalty`, `train/nfe`, …"""
    rows = []
    for file in sorted((path / "logs").glob("csv*/metrics.csv")):
        with file.open() as lines:
            rows += [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(lines)]
    # a resumed run repeats the steps after its checkpoint: take those of the later log
    last = {row["step"]: row for row in rows if "train/loss" in row}
    return [last[step] for step in sorted(last)]


def _trainer(path: Path, epochs: int, device: str, callbacks: Sequence[Callback]) -> L.Trainer:
    return L.Trainer(
        accelerator=device,
        devices=1,
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=[
            CSVLogger(path, name="logs", version=_new_version(path / "logs", "csv")),
            TensorBoardLogger(path, name="logs", version="tensorboard"),
        ],
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
