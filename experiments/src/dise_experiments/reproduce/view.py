"""The progress over a grid: one live view in a terminal, lines elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from dise_experiments.reproduce.grid import Cell
from dise_experiments.reproduce.logs import log_end, log_file
from dise_experiments.run.terminal import errors, print_lines


class Counts(Protocol):
    """What a view shows of a schedule; see `dise_experiments.reproduce.schedule.Schedule`."""

    done: int
    total: int

    @property
    def running(self) -> dict[str, Cell]:
        """Running cells by name."""

    @property
    def failed(self) -> dict[str, str]:
        """Reasons by name."""

    def seconds_left(self, workers: int) -> float | None:
        """Estimate of the time left."""


def summary(counts: Counts, workers: int) -> str:
    """The numbers of cells, and the time left."""
    left = counts.seconds_left(workers)
    time = "" if left is None or counts.done == counts.total else f", about {duration(left)} left"
    return f"{counts.done} of {counts.total} done, {len(counts.running)} running, {len(counts.failed)} failed{time}"


def duration(seconds: float) -> str:
    """A duration as text, in two units at most."""
    minutes, whole = divmod(round(seconds), 60)
    if not minutes:
        return f"{whole} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole} s"


def _line(text: str) -> None:
    """Print a line on the progress, on stderr, whole whatever the width, so that logs can be searched."""
    errors.print(text, style="dim", soft_wrap=True, markup=False)


class View:
    """Lines on stderr: one for each cell that begins or ends.

    Args:
        out: folder of the run directories.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, counts: Counts, workers: int) -> None:
        """Show the numbers."""

    def began(self, cell: Cell) -> None:
        """Show that a cell began."""
        _line(f"{cell.name}: begins")

    def ended(self, cell: Cell, seconds: float, counts: Counts, workers: int) -> None:
        """Show that a cell ended, and the end of its log if it failed."""
        if cell.name in counts.failed:
            self._failed(cell.name)
        else:
            _line(f"{cell.name}: done in {duration(seconds)}; {summary(counts, workers)}")

    def _failed(self, name: str) -> None:
        print_failure(self.out, name)


def print_failure(out: Path, name: str) -> None:
    """Print the end of a failed cell's log, on stderr."""
    errors.print(f"{name}: failed; the end of {log_file(out, name)}:", style="bold red", soft_wrap=True, markup=False)
    for line in log_end(out, name):
        errors.print(f"  {line}", soft_wrap=True, markup=False)


class LiveView(View):
    """One bar over all cells with their numbers and the time left, and a line for each running cell."""

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        self.all = Progress(
            TextColumn("cells"), BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
            console=errors, expand=True,
        )  # fmt: skip
        self.cells = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=errors)
        self.bar = self.all.add_task("cells", total=None, text="")
        self.lines: dict[str, TaskID] = {}
        self.live = Live(Group(self.cells, self.all), console=errors, refresh_per_second=4)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(self, counts: Counts, workers: int) -> None:
        """See `View`."""
        text = summary(counts, workers).partition(", ")[2]
        self.all.update(self.bar, total=counts.total, completed=counts.done, text=text)

    def began(self, cell: Cell) -> None:
        """See `View`."""
        self.lines[cell.name] = self.cells.add_task(cell.name, total=None)

    def ended(self, cell: Cell, seconds: float, counts: Counts, workers: int) -> None:
        """See `View`."""
        self.cells.remove_task(self.lines.pop(cell.name))
        self.show(counts, workers)
        if cell.name in counts.failed:
            self._failed(cell.name)


def view_of(out: Path) -> View:
    """The view for where stderr goes."""
    return LiveView(out) if errors.is_terminal else View(out)


def print_states(lines: Sequence[tuple[str, str]]) -> None:
    """Print cells with their states, on stdout."""
    print_lines([f"{state:8} {name}" for name, state in lines])
