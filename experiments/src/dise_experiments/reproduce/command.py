"""`dise reproduce`: the grid in one command."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dise_experiments.options import Changes, DataDir, Device, Limit, Out, Preset, Selectors

if TYPE_CHECKING:
    from dise_experiments.reproduce.engine import Engine
    from dise_experiments.reproduce.grid import Cell
    from dise_experiments.reproduce.job import Work


class EngineName(StrEnum):
    """What carries out the jobs."""

    local = "local"
    ray = "ray"


Tasks = Annotated[
    list[str],
    typer.Option("--task", help="mnist, physionet or circles; all by default. Repeatable. For flows: dise run flows."),
]
Rows = Annotated[
    list[str],
    typer.Option("--reg", help="Regularizer, see `dise run --help`; all of the grid by default. Repeatable."),
]
Models = Annotated[
    list[str],
    typer.Option("--model", help="Model; by default each task's first, and MNIST's resnet and rknet. Repeatable."),
]
Parts = Annotated[
    list[Selectors],
    typer.Option(
        "--selector",
        help="standard: DOPRI and the task's selectors; published: the paper's as published. Both by default.",
    ),
]
Seeds = Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Cells at the same time; by default as many as processors."),
]
ThreadsPerWorker = Annotated[
    int | None,
    typer.Option(min=1, help="Threads of torch per worker; by default the processors are divided among the workers."),
]
Address = Annotated[str | None, typer.Option(help="Ray cluster, or auto; by default one is started on this machine.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the cells and how far they are, and do nothing.")]


def reproduce(
    task: Tasks = [],  # noqa: B006
    preset: Preset = "sample",
    reg: Rows = [],  # noqa: B006
    model: Models = [],  # noqa: B006
    selector: Parts = [],  # noqa: B006
    seeds: Seeds = 3,
    changes: Changes = [],  # noqa: B006
    limit: Limit = None,
    engine: EngineName = EngineName.local,
    address: Address = None,
    workers: Workers = None,
    threads: ThreadsPerWorker = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    out: Out = Path("runs"),
    dry_run: DryRun = False,
) -> None:
    """Train, select and evaluate a grid of models, regularizers, selectors and seeds, and print the tables.

    Finished cells are never run again, an interrupted command continues where it was, and failed cells are repeated.
    """
    from dise_experiments.common.task import AsPublished
    from dise_experiments.reproduce.grid import Part, grid, with_trainings
    from dise_experiments.reproduce.job import Work
    from dise_experiments.reproduce.lock import locked
    from dise_experiments.reproduce.view import print_states
    from dise_experiments.run.config import ExperimentError
    from dise_experiments.run.registry import TASKS
    from dise_experiments.run.start import start

    on_gpu = start(device, None) == "cuda"
    if address is not None and engine is not EngineName.ray:
        raise ExperimentError("address: only --engine ray has one; add it, or omit --address")
    tasks = list(dict.fromkeys(task or TASKS))
    parts = [Part(name) for name in dict.fromkeys(selector or Selectors)]
    about = AsPublished(limit=limit)
    cells = grid(tasks, preset, seeds=seeds, models=model, regs=reg, parts=parts, changes=changes, about=about)
    out = out.absolute()
    if dry_run:
        print_states([(cell.name, cell.state(out)) for cell in with_trainings(cells, out)])
        return
    if workers is None and address is None:
        runs = len({cell.config.directory(out) for cell in cells})
        workers = 1 if on_gpu else min(_processors(), runs)
    threads = threads or max(_processors() // workers if workers else 1, 1)
    work = Work(out, data_dir and data_dir.absolute(), device, threads)
    taken = f"{out}: another `dise reproduce` works here; wait for it, or choose another --out"
    with locked(out / ".reproduce.lock", taken), _sigterm_as_ctrl_c():
        failed = _carry_out(cells, work, engine, workers, address)
    _print_reports(tasks, preset, out)
    if failed:
        _print_failed(failed)
        raise typer.Exit(1)


def _carry_out(
    cells: "list[Cell]", work: "Work", engine: EngineName, workers: int | None, address: str | None
) -> dict[str, str]:
    """Carry out what is not done; the reasons of failed cells by name."""
    from dise_experiments.reproduce.grid import State, with_trainings
    from dise_experiments.reproduce.schedule import Schedule, carry_out_all
    from dise_experiments.reproduce.view import view_of

    listed = with_trainings(cells, work.out)
    unfinished = [cell for cell in listed if cell.state(work.out) is not State.done]
    schedule = Schedule(unfinished, len(listed) - len(unfinished))
    if not unfinished:
        return {}
    with _engine(engine, workers, work, address) as running:
        carry_out_all(schedule, work.out, running, view_of(work.out))
    return schedule.failed


@contextmanager
def _engine(name: EngineName, workers: int | None, work: "Work", address: str | None) -> "Iterator[Engine]":
    """The engine, whose jobs end with it."""
    from dise_experiments.reproduce.local import LocalEngine
    from dise_experiments.reproduce.on_ray import RayEngine

    ray = name is EngineName.ray
    engine = RayEngine(workers, work, address) if ray else LocalEngine(workers or 1, work)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Within it, SIGTERM ends the command as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_reports(tasks: list[str], preset: str, out: Path) -> None:
    """Write and print the report of each task with evaluated runs."""
    from dise_experiments.run.report import has_evaluated
    from dise_experiments.run.show import print_report

    for task in tasks:
        if has_evaluated(out / task / preset):
            print_report(out / task / preset)


def _print_failed(failed: dict[str, str]) -> None:
    from dise_experiments.run.terminal import errors

    errors.print(f"{len(failed)} cells failed; the same command repeats them:", style="bold red", markup=False)
    for name, reason in failed.items():
        errors.print(f"  {name}: {reason}", soft_wrap=True, markup=False)


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
