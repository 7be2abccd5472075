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
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from dise.integrate import SolveError
from dise.regularize import RandomEndTime, Regularizer
from dise.select import contains_block, find_block
from dise_experiments.common.shares import sharing
from dise_experiments.common.task import PER_SAMPLE, Coarse, Loss
from dise_experiments.run.checkpoints import AtomicCheckpoints
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.processes import ONE, Processes, in_processes, rank
from dise_experiments.run.progress import progress
from dise_experiments.run.quiet import quiet_lightning
from dise_experiments.run.rundir import MODEL, TRAINING, claim_run, save_weights, write_json

LOGGED_EVERY = 10  # training steps


class Training(L.LightningModule):
    """A task's model in training. λ·R is logged beside the task loss, so that the two can be compared."""

    def __init__(self, config: RunConfig, splits: Any) -> None:
        super().__init__()
        self.config, self.splits = config, splits
        self.task, self.settings = config.found
        self.regularizer = config.regularizer
        self.model = self.task.models[config.model]()

    def on_train_epoch_start(self) -> None:
        """Seed the regularizers' draws, so that a resumed training draws the same as an uninterrupted one."""
        torch.manual_seed(epoch_seed(self.config.seed, self.current_epoch, self.global_rank))
        if isinstance(self.regularizer, RandomEndTime) and self.regularizer.generator is not None:
            # all processes have the same end
            self.regularizer.generator.manual_seed(epoch_seed(self.config.seed, self.current_epoch))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """The loss of Eq. 3; with several processes this one's part, whose mean over processes is the loss."""
        coarse = self.task.coarse(self.settings, self.current_epoch, self.config.reg)
        batch, share = self._own_part(batch)
        parts = sharing(share if self._number > 1 else None)
        with coarsely(self.model, coarse), random_end(self.model, self.regularizer), parts:
            loss = self.task.loss(self.model, batch, self.regularizer.accumulate)
        value = self._number * share * loss.value
        penalty = self._penalty_factor(share) * self.config.weight * self.regularizer(loss.solution, loss.dynamics)
        self._log("train", loss, {"loss": value, "penalty": penalty}, self._number * share)
        return value + penalty

    @property
    def _number(self) -> int:
        """Number of processes."""
        return self._trainer.world_size if self._trainer else 1

    def _own_part(self, batch: Any) -> tuple[Any, float]:
        """This process's rows of a batch, and their share; a process without any has the first one with share 0."""
        number, rows = self._number, self.task.rows(batch)
        if number == 1:
            return batch, 1.0
        own = range(self.global_rank * rows // number, (self.global_rank + 1) * rows // number)
        part = slice(own.start, own.stop) if own else slice(0, 1)
        return self.task.take(batch, part), len(own) / rows

    def _penalty_factor(self, share: float) -> float:
        """The factor of this process's λ·R, so that the mean over processes is that of the whole batch."""
        if self.config.reg not in PER_SAMPLE:
            return 1.0
        if self.config.reduce == "sum" and not self.task.splits_systems:
            return float(self._number) if share > 0 else 0.0
        return self._number * share

    def validation_step(self, batch: Any, index: int) -> None:
        """Log the same measures on held-out data, all of which each process has: some are no means over rows."""
        loss = self.task.loss(self.model, batch, None)
        self._log("held_out", loss, {"loss": loss.value}, 1.0)

    def _log(self, part: str, loss: Loss, values: dict[str, torch.Tensor], factor: float) -> None:
        """Log values of the whole batch: the means over processes of their own, times their shares."""
        values = {name: value.detach() for name, value in values.items()}
        own, batch_size = dict(loss.metrics), 1
        if loss.solution is not None:
            own |= {"nfe": loss.solution.nfe.float().mean(), "error": loss.solution.error.mean()}
            batch_size = loss.solution.nfe.numel()
            calls, largest = torch.tensor(float(loss.solution.calls)), "max" if part == "train" else "mean"
            self.log(f"{part}/nfe_batch", calls, batch_size=batch_size, sync_dist=True, reduce_fx=largest)
        for name, value in (values | {name: factor * value.detach() for name, value in own.items()}).items():
            self.log(f"{part}/{name}", value, batch_size=batch_size, sync_dist=True)

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


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """The seed of an epoch's random numbers in a process, for a run's seed."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0])


@contextmanager
def coarsely(model: nn.Module, coarse: Coarse | None) -> Iterator[None]:
    """Within it the model computes, and its ODE, if it has one, is integrated as an epoch's `Coarse` says."""
    if coarse is None:
        yield
        return
    blocks = [find_block(model)] if contains_block(model) else []
    own = [block.integrator for block in blocks]
    for block in blocks:
        block.integrator = coarse.integrator or block.integrator
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
    config: RunConfig,
    path: Path,
    *,
    data_dir: Path | None = None,
    device: str = "auto",
    resume: bool = True,
    processes: Processes = ONE,
) -> bool:
    """Train a run to its end: continue an interrupted training, do nothing if it is finished.

    An interrupted training continues after its last complete epoch, with the same result as an uninterrupted one.

    Args:
        config: the run.
        path: its directory.
        data_dir: folder of the data.
        device: Lightning's accelerator: "auto", "cpu" or "gpu".
        resume: False refuses a directory that exists.
        processes: those that share out each batch; they are started if this is none of them. Processes on several
            machines need the directory on all of them.

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
    if processes.must_be_started:
        threads = max(torch.get_num_threads() // processes.devices, 1)
        return in_processes(processes.devices, _train_part, config, path, data_dir, device, processes, threads)
    splits = task.load(settings, data_dir)
    if rank() == 0:
        claim_run(path, config)
    checkpoint = path / "checkpoints" / "last.ckpt"
    torch.manual_seed(config.seed)
    module = Training(config, splits)
    clock, keep = _Clock(), partial(ModelCheckpoint, checkpoint.parent, enable_version_counter=False)
    best = None if task.keeps is None else keep(filename="best", monitor=task.keeps, mode="max")
    # the best epoch's first: the last checkpoint then knows of it, so that a resumed training compares with it
    shown = [progress(task.quality)] if rank() == 0 else []
    callbacks = [clock, *shown, *([best] if best else []), keep(filename=checkpoint.stem)]
    with quiet_lightning():
        strategy = _strategy(processes, search=not task.reaches_all_parameters(settings))
        trainer = _trainer(path, settings.epochs, device, processes, strategy, callbacks)
        _fit(trainer, module, checkpoint)
    if rank() > 0:
        return True
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if value.isfinite()}
    if best is not None:
        metrics |= _take_best(module, Path(best.best_model_path))
    write_json(path / TRAINING, {"seconds": clock.seconds, "threads": torch.get_num_threads()} | metrics)
    save_weights(module.model, path / MODEL)
    return True


def _train_part(
    config: RunConfig, path: Path, data_dir: Path | None, device: str, processes: Processes, threads: int
) -> bool:
    """`train_run` in one of several processes."""
    torch.set_num_threads(threads)
    return train_run(config, path, data_dir=data_dir, device=device, processes=processes)


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


def _strategy(processes: Processes, *, search: bool) -> str:
    """Lightning's strategy; `search`: in each step, look for the parameters that get a gradient."""
    if processes.number == 1:
        return "auto"
    return "ddp_find_unused_parameters_true" if search else "ddp"


def _trainer(
    path: Path, epochs: int, device: str, processes: Processes, strategy: str, callbacks: Sequence[Callback]
) -> L.Trainer:
    return L.Trainer(
        accelerator=device,
        devices=processes.devices,
        num_nodes=processes.nodes,
        strategy=strategy,
        max_epochs=epochs,
        callbacks=list(callbacks),
        plugins=[AtomicCheckpoints()],
        logger=[
            CSVLogger(path, name="logs", version=_new_version(path / "logs", "csv")),
            TensorBoardLogger(path, name="logs", version="tensorboard"),
        ],
        log_every_n_steps=LOGGED_EVERY,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
