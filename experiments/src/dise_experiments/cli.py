"""The command line: `dise run`, and its parts `dise train | select | evaluate | report`."""

from enum import StrEnum
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from dise_experiments.common.table import Table

# The heavy imports are inside the commands: `dise --help` should not wait for Lightning.
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode="rich")
console = Console()
errors = Console(stderr=True)
_INTERRUPTED = 130


class Data(StrEnum):
    """What a selector is fitted to."""

    held_out = "held-out"
    train = "train"


TaskName = Annotated[str, typer.Argument(metavar="TASK", help="Experiment: mnist, physionet or circles.")]
Preset = Annotated[
    str,
    typer.Option(help="Size of the experiment: sample (minutes), cpu (at most a quarter of an hour a model) or paper."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of weights, order and what is drawn in training.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="DISE_DATA",
        help="Folder that holds mnist/*.gz and physionet2012/*. Without it, what a task needs is downloaded and "
        "checked. The preset sample and circles need no data.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or gpu.")]
Out = Annotated[Path, typer.Option(help="Where run directories are made.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of torch.")]
Resume = Annotated[bool, typer.Option(help="Continue an interrupted run and reuse a finished one; otherwise refuse.")]
Changes = Annotated[
    list[str],
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting of the preset, e.g. target=moons. Repeatable."),
]
Weight = Annotated[float | None, typer.Option(min=0.0, help="λ of the regularizer; the paper's by default.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, made by `dise train`.")]
Alpha = Annotated[float | None, typer.Option(help="Exponent α of Eq. 4 and 5; the paper's by default.")]
Penalty = Annotated[
    float | None,
    typer.Option(
        "--penalty",
        "-M",
        help="Penalty M of Eq. 4 and 5 for all selectors. By default the paper's selectors have the paper's M; the "
        "others' is chosen on held-out data.",
    ),
]
On = Annotated[Data, typer.Option(help="Collect costs on held-out data, or on training data as the paper does.")]
Timing = Annotated[bool, typer.Option(help="Measure wall-clock too; let nothing else run meanwhile.")]


@app.callback()
def about() -> None:
    """Neural ODEs that are fast at inference: train, regularize, select integrators, evaluate.

    [bold]dise run mnist[/bold] does everything; the other commands do its parts on a run directory. A command that is
    given again continues or reuses what is there and never overwrites it.
    """


@app.command()
def run(
    task: TaskName,
    preset: Preset = "sample",
    reg: Annotated[
        list[str], typer.Option(help="Regularizer: none, kinetic, l1, l2, error, raw-error. Repeatable.")
    ] = ["none", "error"],  # noqa: B006
    model: Annotated[
        list[str],
        typer.Option(
            help="Model, by default the task's first; mnist: odenet, rknet, resnet; physionet: z_end, z0. Repeatable; "
            "the other models only without regularizer."
        ),
    ] = [],  # noqa: B006
    weight: Weight = None,
    seed: Seed = 0,
    changes: Changes = [],  # noqa: B006
    alpha: Alpha = None,
    penalty: Penalty = None,
    on: On = Data.held_out,
    data_dir: DataDir = None,
    device: Device = "auto",
    out: Out = Path("runs"),
    threads: Threads = None,
    resume: Resume = True,
    timing: Timing = True,
) -> None:
    """Train every model, fit its selectors, evaluate, and print the paper's tables beside the results."""
    from dise_experiments.run.config import RunConfig
    from dise_experiments.run.evaluate import evaluate as evaluate_run
    from dise_experiments.run.select import check_rules
    from dise_experiments.run.select import select as select_run
    from dise_experiments.run.train import train as train_run

    accelerator = _start(device, threads)
    configs = [
        RunConfig.of(task, preset, model=m, reg=r, weight=weight if r != "none" else None, seed=seed, changes=changes)
        for m, r in _combinations(task, model, reg)
    ]
    check_rules(task, alpha, penalty)  # before hours of training
    for config in configs:
        path = config.directory(out)
        _say(f"training {config.name} in {path}")
        trained = train_run(config, path, data_dir=data_dir, device=device, resume=resume)
        _say("trained" if trained else "was trained before: reused")
    for config in configs:
        path = config.directory(out)
        task_found, _ = config.found
        if task_found.selects(task_found.models[config.model]()):
            select_run(path, data_dir=data_dir, on=on.value, alpha=alpha, penalty=penalty, device=accelerator, log=_say)
    for config in configs:
        evaluate_run(config.directory(out), data_dir=data_dir, device=accelerator, timing=timing, log=_say)
    _report(out / task / preset)


@app.command()
def train(
    task: TaskName,
    preset: Preset = "sample",
    reg: Annotated[str, typer.Option(help="Regularizer: none, kinetic, l1, l2, error, raw-error.")] = "none",
    model: Annotated[
        str | None,
        typer.Option(help="Model, by default the task's first; mnist: odenet, rknet, resnet; physionet: z_end, z0."),
    ] = None,
    weight: Weight = None,
    seed: Seed = 0,
    changes: Changes = [],  # noqa: B006
    data_dir: DataDir = None,
    device: Device = "auto",
    out: Out = Path("runs"),
    threads: Threads = None,
    resume: Resume = True,
) -> None:
    """Train one model; prints its run directory."""
    from dise_experiments.run.config import RunConfig
    from dise_experiments.run.train import train as train_run

    _start(device, threads)
    config = RunConfig.of(task, preset, model=model, reg=reg, weight=weight, seed=seed, changes=changes)
    path = config.directory(out)
    trained = train_run(config, path, data_dir=data_dir, device=device, resume=resume)
    _say("trained" if trained else "was trained before: reused")
    console.print(str(path), soft_wrap=True, highlight=False, markup=False)


@app.command()
def select(
    run_dir: RunDir,
    alpha: Alpha = None,
    penalty: Penalty = None,
    on: On = Data.held_out,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Fit the integrator selectors of a trained run."""
    from dise_experiments.run.report import selection_tables
    from dise_experiments.run.select import select as select_run

    accelerator = _start(device, threads)
    result = select_run(
        run_dir, data_dir=data_dir, on=on.value, alpha=alpha, penalty=penalty, device=accelerator, log=_say
    )
    for table in selection_tables(result):
        _print(table)


@app.command()
def evaluate(
    run_dir: RunDir,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    timing: Timing = True,
) -> None:
    """Evaluate a run on the test set: every policy, its quality, NFE and wall-clock."""
    from dise_experiments.run.evaluate import evaluate as evaluate_run
    from dise_experiments.run.report import read_run, wall_clock
    from dise_experiments.run.rundir import open_run

    accelerator = _start(device, threads)
    evaluate_run(run_dir, data_dir=data_dir, device=accelerator, timing=timing, log=_say)
    result = read_run(run_dir)
    task, _ = open_run(run_dir).found
    for table in task.details(result):
        _print(table)
    if result.timing:
        _print(wall_clock(result))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A preset's folder, such as runs/mnist/cpu.")],
) -> None:
    """Print and write the report of all evaluated runs below a folder."""
    _report(folder)


def _combinations(task: str, models: list[str], regs: list[str]) -> list[tuple[str, str]]:
    """Models and regularizers to run: the task's first model with each regularizer, the others without."""
    from dise_experiments.run.config import ExperimentError, choose
    from dise_experiments.run.registry import TASKS

    found = choose("task", task, TASKS)
    first = next(iter(found.models))
    for reg in regs:
        choose("reg", reg, found.weights)
    for model in models:
        if choose("model", model, found.models) and model != first and "none" not in regs:
            raise ExperimentError(f"reg: model {model!r} is a baseline, run without regularizer; add --reg none")
    return [(model, reg) for model in models or [first] for reg in regs if model == first or reg == "none"]


def _report(folder: Path) -> None:
    from dise_experiments.run.report import write_report

    file, tables = write_report(folder)
    for table in tables:
        _print(table)
    _say(f"report: {file}")


def _start(device: str, threads: int | None) -> str:
    """Set torch up; the torch device that Lightning's accelerator name means."""
    import torch

    from dise_experiments.run.config import ExperimentError

    if device not in ("auto", "cpu", "gpu"):
        raise ExperimentError(f"device: there is no {device!r}; choose one of auto, cpu, gpu")
    if device == "gpu" and not torch.cuda.is_available():
        raise ExperimentError("device: no GPU that torch can use was found; use --device cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _say(line: str) -> None:
    errors.print(line, style="dim", highlight=False, soft_wrap=True, markup=False)


def _print(table: "Table") -> None:
    from rich.table import Table as RichTable

    shown = RichTable(title=escape(table.title), title_justify="left", header_style="bold")
    for i, name in enumerate(table.header):
        # a header no wider than its column, so that what is wide is there for the names of runs
        width = max(map(len, ["-", *name.split(), *(row[i] for row in table.rows)]))
        header = "\n".join(wrap(name, width, break_long_words=False))
        shown.add_column(escape(header), justify="left" if i == 0 else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(escape(cell) for cell in row))
    console.print(shown)
    if table.note:
        console.print(table.note, style="dim", markup=False)
    console.print()


def main() -> None:
    """Run the command line; expected errors are one line and exit code 2."""
    from dise_experiments.common.errors import UserError

    try:
        app()
    except UserError as error:
        errors.print(f"[bold red]error:[/bold red] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise SystemExit(2) from None
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # how typer ends on Ctrl-C
            _say("interrupted; the same command continues")
        raise


if __name__ == "__main__":
    main()
