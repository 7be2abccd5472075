"""Jobs in processes of this machine."""

import multiprocessing
import signal
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from dise_experiments.reproduce.engine import Engine
from dise_experiments.reproduce.grid import Cell
from dise_experiments.reproduce.job import Work, carry_out
from dise_experiments.run.processes import end_with_parent

PRELOADED = "dise_experiments.reproduce.job"


class LocalEngine(Engine):
    """A process per job, forked where the system can from a server that has imported what jobs need.

    Args:
        workers: number of jobs at the same time.
        work: what all jobs share.
    """

    def __init__(self, workers: int, work: Work) -> None:
        self.workers, self.work = workers, work
        fork = "forkserver" in multiprocessing.get_all_start_methods()
        self.context: Any = multiprocessing.get_context("forkserver" if fork else "spawn")
        if fork:
            self.context.set_forkserver_preload([PRELOADED])
        self.running: list[tuple[Cell, BaseProcess]] = []

    def submit(self, cell: Cell) -> None:
        """See `Engine`."""
        process = self.context.Process(target=_job, args=(cell, self.work), name=cell.name)
        process.start()
        self.running.append((cell, process))

    def finished(self, seconds: float) -> list[tuple[Cell, str | None]]:
        """See `Engine`."""
        wait([process.sentinel for _, process in self.running], timeout=seconds)
        ended = [(cell, process) for cell, process in self.running if process.exitcode is not None]
        self.running = [entry for entry in self.running if entry not in ended]
        return [(cell, _reason(process.exitcode)) for cell, process in ended]

    def close(self) -> None:
        """See `Engine`."""
        for _, process in self.running:
            process.kill()
        for _, process in self.running:
            process.join()
        self.running = []


def _reason(code: int | None) -> str | None:
    """Why a job's process ended early, from its exit code; None if it did not."""
    if not code:
        return None
    if code < 0:
        return f"the process was ended by signal {signal.Signals(-code).name}"
    return f"the process ended with exit code {code}"


def _job(cell: Cell, work: Work) -> None:
    """The process of a job, which ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its jobs
    end_with_parent()
    carry_out(cell, work)
