"""The command line: `dise run`, its parts `dise train | select | evaluate | report`, and `dise reproduce`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.markup import escape

from dise_experiments.common.errors import UserError
from dise_experiments.options import (
    Alpha,
    Beta,
    Changes,
    Data,
    DataDir,
    Device,
    Devices,
    EulerSteps,
    Limit,
    Models,
    Nodes,
    On,
    Out,
    Penalty,
    Preset,
    Reduce,
    Regularizers,
    Resume,
    RK4Steps,
    RunDir,
    Seed,
    Selector,
    Selectors,
    Targets,
    TaskName,
    TaskOrFlows,
    Threads,
    Timing,
    Weight,
)
from dise_experiments.reproduce.command import reproduce
from dise_experiments.run.terminal import errors, print_lines, print_table, say

if TYPE_CHECKING:
    from dise_experiments.common.task import AsPublished
    from dise_experiments.run.config import RunConfig
    from dise_experiments.run.processes import Processes

# The heavy imports are inside the commands: `dise --help` must not wait for Lightning.
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode="rich")
_INTERRUPTED = 130
FLOWS = "flows"
COMMON_OPTIONS = {"task", "preset", "seed", "data_dir", "device", "out", "threads", "resume", "timing"}


@app.callback()
def about() -> None:
    """Neural ODEs that are fast at inference: train, regularize, select integrators, evaluate.

    [bold]dise run mnist[/bold] runs all steps; each of the other commands runs one of them.
    A repeated command continues or reuses existing results and overwrites none.
    """


@app.command()
def run(
    context: typer.Context,
    task: TaskOrFlows,
    target: Targets = [],  # noqa: B006
    preset: Preset = "sample",
    reg: Regularizers = ["none", "error"],  # noqa: B006
    model: Models = [],  # noqa: B006
    weight: Weight = None,
    reduce: Reduce = None,
    seed: Seed = 0,
    changes: Changes = [],  # noqa: B006
    alpha: Alpha = None,
    penalty: Penalty = None,
    on: On = Data.held_out,
    selector: Selector = Selectors.standard,
    euler_steps: EulerSteps = 1,
    rk4_steps: RK4Steps = 1,
    limit: Limit = None,
    beta: Beta = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    out: Out = Path("runs"),
    threads: Threads = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
    resume: Resume = True,
    timing: Timing = True,
) -> None:
    """Train all models, fit their selectors, evaluate, and print the results beside the paper's; or train flows, and
    compare their solvers.
    """
    _check_options(context, task)
    if task == FLOWS:
        _run_flows(target, preset, seed, data_dir, device, out, threads, resume, timing)
        return
    from dise_experiments.run.processes import Processes, rank
    from dise_experiments.run.select import check_rules
    from dise_experiments.run.show import print_report

    accelerator, published = _start(device, threads), _published(selector, euler_steps, rk4_steps, limit, beta)
    configs = _configs(task, preset, model, reg, weight, reduce, seed, changes)
    check_rules(configs[0].found[0], alpha, penalty)  # before hours of training
    runs = {config.directory(out): config for config in configs}
    _train(runs, data_dir, device, resume, Processes(devices, nodes))
    if rank() > 0:  # of several processes the first goes on
        return
    for path, config in runs.items():
        task_found, _ = config.found
        if task_found.selects(task_found.models[config.model]()):
            _select(path, published, on, alpha, penalty, beta, data_dir, accelerator)
    for path in runs:
        _evaluate(path, published, data_dir, accelerator, timing)
    print_report(out / task / preset)


@app.command()
def train(
    task: TaskName,
    preset: Preset = "sample",
    reg: Annotated[str, typer.Option(help="Regularizer; `dise run --help` lists them.")] = "none",
    model: Annotated[
        str | None,
        typer.Option(help="Model, by default the task's first; mnist: odenet, rknet, resnet; physionet: z_end, z0."),
    ] = None,
    weight: Weight = None,
    reduce: Reduce = None,
    seed: Seed = 0,
    changes: Changes = [],  # noqa: B006
    data_dir: DataDir = None,
    device: Device = "auto",
    out: Out = Path("runs"),
    threads: Threads = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
    resume: Resume = True,
) -> None:
    """Train one model and print its run directory."""
    from dise_experiments.run.config import RunConfig
    from dise_experiments.run.processes import Processes, rank
    from dise_experiments.run.train import train_run

    _start(device, threads)
    config = RunConfig.of(task, preset, model=model, reg=reg, weight=weight, reduce=reduce, seed=seed, changes=changes)
    path = config.directory(out)
    processes = Processes(devices, nodes)
    trained = train_run(config, path, data_dir=data_dir, device=device, resume=resume, processes=processes)
    if rank() == 0:
        say("trained" if trained else "trained before: reused")
        print_lines([str(path)])


@app.command()
def select(
    run_dir: RunDir,
    alpha: Alpha = None,
    penalty: Penalty = None,
    on: On = Data.held_out,
    selector: Selector = Selectors.standard,
    euler_steps: EulerSteps = 1,
    rk4_steps: RK4Steps = 1,
    limit: Limit = None,
    beta: Beta = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Fit the integrator selectors of a trained run."""
    from dise_experiments.run.report import selection_tables

    accelerator, published = _start(device, threads), _published(selector, euler_steps, rk4_steps, limit, beta)
    result = _select(run_dir, published, on, alpha, penalty, beta, data_dir, accelerator)
    for table in selection_tables(result):
        print_table(table)


@app.command()
def evaluate(
    run_dir: RunDir,
    selector: Selector = Selectors.standard,
    euler_steps: EulerSteps = 1,
    rk4_steps: RK4Steps = 1,
    limit: Limit = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    timing: Timing = True,
) -> None:
    """Evaluate a run on the test set: quality, NFE and wall-clock of all policies."""
    from dise_experiments.run.evaluate import evaluate_run
    from dise_experiments.run.report import read_run, wall_clock
    from dise_experiments.run.rundir import open_run

    accelerator, published = _start(device, threads), _published(selector, euler_steps, rk4_steps, limit)
    evaluate_run(run_dir, data_dir=data_dir, device=accelerator, timing=timing, published=published, log=say)
    result = read_run(run_dir)
    task, _ = open_run(run_dir).found
    for table in task.details(result):
        print_table(table)
    if result.timing:
        print_table(wall_clock(result))


@app.command()
def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder of a preset, e.g. runs/mnist/cpu, or one above or below it."),
    ],
) -> None:
    """Print and write a report for each preset that has evaluated runs in a folder."""
    from dise_experiments.flows.measure.report import measured_folders
    from dise_experiments.run.report import preset_folders
    from dise_experiments.run.show import print_report

    flows = measured_folders(folder)
    for found in flows:
        _report_flows(found)
    for found in preset_folders(folder, besides=flows):
        print_report(found)


app.command()(reproduce)


def _check_options(context: typer.Context, task: str) -> None:
    """Refuse options that the task does not have, which it would ignore."""
    from dise_experiments.run.config import ExperimentError, choose
    from dise_experiments.run.registry import TASKS

    choose("task", task, {**TASKS, FLOWS: None})
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if source is None or source.name != "COMMANDLINE" or option.name in COMMON_OPTIONS:
            continue
        if (option.name == "target") != (task == FLOWS):
            hint = "; other tasks have --set target=NAME" if option.name == "target" else ""
            raise ExperimentError(f"{option.opts[0]}: no option of the task {task}{hint}")


def _run_flows(
    targets: list[str],
    preset: str,
    seed: int,
    data_dir: Path | None,
    device: str,
    out: Path,
    threads: int | None,
    resume: bool,
    timing: bool,
) -> None:
    from dise_experiments.flows.run import run_flows

    _start(device, threads)
    folder = run_flows(
        targets, preset, seed, out=out, data_dir=data_dir, device=device, resume=resume, timing=timing, log=say
    )
    _report_flows(folder)


def _report_flows(folder: Path) -> None:
    from dise_experiments.flows.measure.report import write_flows_report

    report = write_flows_report(folder)
    for table in report.tables:
        print_table(table)
    print_lines(report.conclusion)


def _train(
    runs: "dict[Path, RunConfig]", data_dir: Path | None, device: str, resume: bool, processes: "Processes"
) -> None:
    """Train runs, by their directories; the first of several processes says so."""
    from dise_experiments.run.processes import rank
    from dise_experiments.run.train import train_run

    for path, config in runs.items():
        if rank() == 0:
            say(f"training {config.name} in {path}")
        trained = train_run(config, path, data_dir=data_dir, device=device, resume=resume, processes=processes)
        if rank() == 0:
            say("trained" if trained else "trained before: reused")


def _configs(
    task: str,
    preset: str,
    models: list[str],
    regs: list[str],
    weight: float | None,
    reduce: str | None,
    seed: int,
    changes: list[str],
) -> "list[RunConfig]":
    """The runs of a command; λ and the reduction are of those regularizers that have one."""
    from dise_experiments.common.task import PER_SAMPLE
    from dise_experiments.run.config import RunConfig, combinations

    return [
        RunConfig.of(
            task,
            preset,
            model=model,
            reg=reg,
            weight=weight if reg != "none" else None,
            reduce=reduce if reg in PER_SAMPLE else None,
            seed=seed,
            changes=changes,
        )
        for model, reg in combinations(task, models, regs)
    ]


def _published(
    selector: Selectors,
    euler: int,
    rk4: int,
    limit: int | None,
    beta: float | None = None,
) -> "AsPublished | None":
    """What the options say of the published selector; None if it is not asked for."""
    from dise_experiments.common.task import AsPublished
    from dise_experiments.run.config import ExperimentError

    if selector is Selectors.published:
        return AsPublished(euler, rk4, limit)
    if (euler, rk4, limit, beta) != (1, 1, None, None):
        raise ExperimentError("euler-steps, rk4-steps, limit and beta are options of --selector published; add it")
    return None


def _start(device: str, threads: int | None) -> str:
    """Set up torch; the torch device of Lightning's accelerator."""
    from dise_experiments.run.start import start

    return start(device, threads)


def _evaluate(path: Path, published: "AsPublished | None", data_dir: Path | None, device: str, timing: bool) -> None:
    """Evaluate a run, with the published selector if it has it."""
    from dise_experiments.run.evaluate import evaluate_run

    about = published if published is not None and (path / published.folder).exists() else None
    evaluate_run(path, data_dir=data_dir, device=device, timing=timing, published=about, log=say)


def _select(
    path: Path,
    published: "AsPublished | None",
    on: Data,
    alpha: float | None,
    penalty: float | None,
    beta: float | None,
    data_dir: Path | None,
    device: str,
) -> dict[str, Any]:
    """Fit the run's own selectors, or the published one."""
    from dise_experiments.run.select import select_as_published, select_run

    if published is None:
        return select_run(path, data_dir=data_dir, on=on.value, alpha=alpha, penalty=penalty, device=device, log=say)
    return select_as_published(
        path, published, data_dir=data_dir, alpha=alpha, penalty=penalty, beta=beta, device=device, log=say
    )


def main() -> None:
    """Run the command line; an expected error prints one line and exits with code 2."""
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except OSError as error:  # a read-only folder, a full disk, a file in place of a folder
        if error.errno is None:
            raise
        _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error))
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # how typer ends on Ctrl-C
            say("interrupted; the same command continues")
        raise


def _fail(message: str) -> NoReturn:
    errors.print(f"[bold red]error:[/bold red] {escape(message)}", soft_wrap=True, highlight=False)
    raise SystemExit(2) from None
