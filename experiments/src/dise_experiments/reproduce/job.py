"""The job of a cell, the same in a process of this machine and on Ray."""

from pathlib import Path
from typing import NamedTuple

import torch

from dise_experiments.reproduce.grid import Cell, Part
from dise_experiments.reproduce.lock import locked
from dise_experiments.reproduce.logs import failure, log_file, logged, note_failure
from dise_experiments.run.evaluate import evaluate_run
from dise_experiments.run.select import select_as_published, select_run
from dise_experiments.run.start import start
from dise_experiments.run.terminal import say
from dise_experiments.run.train import train_run

PATIENCE = 60  # seconds for which a job waits for an earlier process of the same cell to end


class Work(NamedTuple):
    """What all jobs of a grid share.

    Attributes:
        out: folder of the run directories, the same on all machines.
        data_dir: folder of the data.
        device: Lightning's accelerator: "auto", "cpu" or "gpu".
        threads: threads of torch per job.
    """

    out: Path
    data_dir: Path | None
    device: str
    threads: int


def carry_out(cell: Cell, work: Work) -> bool:
    """Do a cell's job with its output in the cell's log; whether it succeeded."""
    lock = log_file(work.out, cell.name).with_suffix(".lock")
    taken = f"{cell.name}: another process does this job; end it, or wait for it"
    try:
        with locked(lock, taken, patience=PATIENCE), logged(work.out, cell.name):
            _do(cell, work)
    except Exception as error:
        if failure(work.out, cell.name) is None:  # the lock's
            note_failure(work.out, cell.name, str(error))
        return False
    return True


def _do(cell: Cell, work: Work) -> None:
    accelerator = start(work.device, work.threads)
    config, path = cell.config, cell.config.directory(work.out)
    torch.manual_seed(config.seed)
    if cell.part is Part.train:
        train_run(config, path, data_dir=work.data_dir, device=work.device)
        return
    about = cell.about if cell.part is Part.published else None
    task, _ = config.found
    if about is not None:
        select_as_published(path, about, data_dir=work.data_dir, device=accelerator, log=say)
    elif task.selects(task.models[config.model]()):
        select_run(path, data_dir=work.data_dir, device=accelerator, log=say)
    evaluate_run(path, data_dir=work.data_dir, device=accelerator, timing=False, published=about, log=say)
