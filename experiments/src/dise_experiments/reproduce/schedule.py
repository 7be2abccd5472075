"""Which job is next: cells in their order, each as soon as those that it needs are done."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from dise_experiments.reproduce.engine import Engine
from dise_experiments.reproduce.grid import Cell, State
from dise_experiments.reproduce.logs import failure, note_failure
from dise_experiments.reproduce.view import View

PAUSE = 0.5  # seconds between two looks at the time


class Schedule:
    """The cells of a grid while they are carried out.

    Attributes:
        waiting, running: cells by name.
        done: number of cells that are done, those of earlier commands included.
        failed: reasons by name.
        total: number of cells.
    """

    def __init__(self, unfinished: Sequence[Cell], done: int) -> None:
        self.waiting = {cell.name: cell for cell in unfinished}
        self.running: dict[str, Cell] = {}
        self.done, self.total = done, done + len(unfinished)
        self.failed: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._seconds: dict[tuple[str, str], list[float]] = {}

    def ready(self) -> Cell | None:
        """The next cell whose needs are done; cells that need a failed one fail as well."""
        for cell in list(self.waiting.values()):
            missing = [needed.name for needed in cell.needs]
            if broken := next((name for name in missing if name in self.failed), None):
                del self.waiting[cell.name]
                self.failed[cell.name] = f"needs {broken}, which failed"
            elif not any(name in self.waiting or name in self.running for name in missing):
                return cell
        return None

    def begin(self, cell: Cell) -> None:
        """Count a cell as running."""
        self.running[cell.name] = self.waiting.pop(cell.name)
        self._since[cell.name] = time.monotonic()

    def end(self, cell: Cell, reason: str | None) -> float:
        """Count a cell as done, or as failed with a reason; its seconds."""
        del self.running[cell.name]
        seconds = time.monotonic() - self._since[cell.name]
        if reason is None:
            self.done += 1
            self._seconds.setdefault(_kind(cell), []).append(seconds)
        else:
            self.failed[cell.name] = reason
        return seconds

    def seconds_left(self, workers: int) -> float | None:
        """Estimate from the cells that were done, of the same task and part where there are any; None without any."""
        if not self._seconds:
            return None
        of_all = fmean(seconds for kind in self._seconds.values() for seconds in kind)
        means = {kind: fmean(seconds) for kind, seconds in self._seconds.items()}
        now = time.monotonic()
        left = sum(means.get(_kind(cell), of_all) for cell in self.waiting.values())
        left += sum(
            max(means.get(_kind(cell), of_all) - (now - self._since[name]), 0.0) for name, cell in self.running.items()
        )
        return left / min(workers, max(len(self.waiting) + len(self.running), 1))


def _kind(cell: Cell) -> tuple[str, str]:
    return cell.config.task, cell.part


def carry_out_all(schedule: Schedule, out: Path, engine: Engine, view: View) -> None:
    """Carry out the cells of a schedule; a failed one is shown and stops nothing but those that need it."""
    with view:
        view.show(schedule, engine.workers)
        while True:
            while len(schedule.running) < engine.workers and (cell := schedule.ready()):
                schedule.begin(cell)
                engine.submit(cell)
                view.began(cell)
            if not schedule.running:
                return
            view.show(schedule, engine.workers)
            for cell, ended_early in engine.finished(PAUSE):
                if ended_early:
                    note_failure(out, cell.name, ended_early)
                seconds = schedule.end(cell, _outcome(cell, out))
                view.ended(cell, seconds, schedule, engine.workers)


def _outcome(cell: Cell, out: Path) -> str | None:
    """None if the cell is done, or why it failed."""
    if reason := failure(out, cell.name):
        return reason
    return None if cell.state(out) is State.done else f"left no results; is {out} the same folder on all machines?"
