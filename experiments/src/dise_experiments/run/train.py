"""Training one run with Lightning: L = L_task + λ·R (Eq. 3)."""

import csv
import pickle
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from dise.integrate import SolveError
from dise_experiments.common.task import Loss
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.rundir import MODEL, TRAINING, claim_run, save_weights, write_json


class Training(L.LightningModule):
    """A task's model in training. λ·R is logged beside the task loss, so that one sees whether it is felt."""

    def __init__(self, config: RunConfig, splits: Any) -> None:
        super().__init__()
        self.config, self.splits = config, splits
        self.task, self.settings = config.found
        self.regularizer = config.regularizer
        self.model = self.task.models[config.model]()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """Eq. 3."""
        loss = self.task.loss(self.model, batch, self.regularizer.accumulate)
        penalty = self.config.weight * self.regularizer(loss.solution, loss.dynamics)
        self._log("train", loss, {"loss": loss.value, "penalty": penalty})
        return loss.value + penalty

    def validation_step(self, batch: Any, index: int) -> None:
        """The same measures on held-out data."""
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
            shown = name in ("loss", "penalty", "nfe", "accuracy")
            self.log(f"{part}/{name}", value, prog_bar=shown, batch_size=batch_size)

    def train_dataloader(self) -> Any:
        """The current epoch's batches (Lightning asks again each epoch)."""
        return self.task.training_batches(self.splits, self.settings, seed=self.config.seed, epoch=self.current_epoch)

    def val_dataloader(self) -> Any:
        """The monitored batches."""
        return _Loader(list(self.task.monitored_batches(self.splits, self.settings)))

    def configure_optimizers(self) -> Any:
        """The task's optimizer and schedule."""
        steps = len(self.train_dataloader())
        return self.task.optimizer(self.model, self.settings, steps)


class _Loader:
    """A list of batches as one loader: of a bare list Lightning takes every entry for a loader."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class EpochLine(Callback):
    """A line an epoch, for logs that are no terminal."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write it."""
        if not trainer.sanity_checking:
            numbers = {k: float(v) for k, v in trainer.callback_metrics.items()}
            text = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            sys.stderr.write(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {text}\n")


def train(
    config: RunConfig, path: Path, *, data_dir: Path | None = None, device: str = "auto", resume: bool = True
) -> bool:
    """Train a run to its end: continue if it was interrupted, do nothing if it is done.

    Interrupted runs go on from the last whole epoch, to the same result as if they had not been.

    Args:
        config: the run.
        path: its directory.
        data_dir: where the task's data are.
        device: Lightning's accelerator: "auto", "cpu" or "gpu".
        resume: False refuses to go on with a directory that exists.

    Returns:
        whether anything was trained.

    Raises:
        ExperimentError: the directory belongs to another run, or exists and `resume` is False.
        DataError: the data are missing or damaged.
    """
    if not resume and path.exists():
        raise ExperimentError(f"{path} exists; leave --no-resume out to continue or reuse it, or move it away")
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
    trainer = _trainer(
        path, settings.epochs, device, clock, [keep(filename=checkpoint.stem), *([best] if best else [])]
    )
    _fit(trainer, module, checkpoint)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if value.isfinite()}
    if best is not None:
        metrics |= _take_best(module, Path(best.best_model_path))
    write_json(path / TRAINING, {"seconds": clock.seconds, "threads": torch.get_num_threads()} | metrics)
    save_weights(module.model, path / MODEL)
    return True


def _fit(trainer: L.Trainer, module: Training, checkpoint: Path) -> None:
    """Train, from the checkpoint if there is one; Ctrl-C stays a KeyboardInterrupt."""
    with warnings.catch_warnings():
        # the batches lie in memory: loader workers would only cost
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
        # small experiments have short epochs; what is logged each epoch does not depend on it
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
        try:
            trainer.fit(module, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=False)
        except SolveError as error:
            raise ExperimentError(f"training diverged at step {trainer.global_step}: {error}") from error
        except SystemExit:  # how Lightning ends on Ctrl-C
            if not trainer.interrupted:
                raise
        except (pickle.UnpicklingError, EOFError, KeyError, RuntimeError) as error:
            if trainer.global_step > 0 or not checkpoint.exists() or _readable(checkpoint):
                raise
            raise ExperimentError(
                f"{checkpoint} is damaged ({type(error).__name__}); move it away to train from the start"
            ) from error
    if trainer.interrupted:
        raise KeyboardInterrupt


def _take_best(module: Training, checkpoint: Path) -> dict[str, float]:
    """Give the module the weights of its best epoch; which one (from 1) that was."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=False)
    module.load_state_dict(saved["state_dict"])
    return {"best_epoch": saved["epoch"] + 1}


def _readable(checkpoint: Path) -> bool:
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=False)
    except Exception:  # whatever a damaged file makes of the unpickler
        return False
    return True


class _Clock(Callback):
    """Seconds spent in training, over all the processes that a resumed run took."""

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
    """A resumed run logs beside its earlier logs: Lightning's CSV logger would delete them."""
    taken = len(list(logs.glob(f"{name}*")))
    return f"{name}-{taken}" if taken else name


def read_log(path: Path) -> list[dict[str, float]]:
    """The training log of a run, a row a logged step: `step`, `train/loss`, `train/penalty`, `train/nfe`, …"""
    rows = []
    for file in sorted((path / "logs").glob("csv*/metrics.csv")):
        with file.open() as lines:
            rows += [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(lines)]
    # a resumed run repeats the steps after its checkpoint; the later log holds
    last = {row["step"]: row for row in rows if "train/loss" in row}
    return [last[step] for step in sorted(last)]


def _trainer(path: Path, epochs: int, device: str, clock: Callback, checkpoints: Sequence[Callback]) -> L.Trainer:
    terminal = sys.stderr.isatty()
    return L.Trainer(
        accelerator=device,
        devices=1,
        max_epochs=epochs,
        callbacks=[
            clock,
            RichProgressBar() if terminal else EpochLine(),
            *checkpoints,
        ],
        logger=[
            CSVLogger(path, name="logs", version=_new_version(path / "logs", "csv")),
            TensorBoardLogger(path, name="logs", version="tensorboard"),
        ],
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_progress_bar=terminal,
        enable_model_summary=False,
    )
