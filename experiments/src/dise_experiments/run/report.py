"""The report of all runs of a preset, beside the paper's numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from dise_experiments.common.table import Table, number
from dise_experiments.common.task import PER_SAMPLE, Run, Task
from dise_experiments.common.time_fits import time_fits
from dise_experiments.run.conclusion import conclusion
from dise_experiments.run.config import ExperimentError
from dise_experiments.run.evaluate import METRICS, TIMING
from dise_experiments.run.over_seeds import over_seeds
from dise_experiments.run.page import page
from dise_experiments.run.plots import training_curves
from dise_experiments.run.published import published_parts
from dise_experiments.run.registry import TASKS
from dise_experiments.run.rundir import CONFIG, TRAINING, load_model, open_run, read_json, write_text
from dise_experiments.run.sample_plots import SAMPLE_PLOTS
from dise_experiments.run.samples import CHOSEN, SAMPLES
from dise_experiments.run.timing import TORCHDIFFEQ
from dise_experiments.run.train import read_log

REPORT, PAGE = "report.md", "report.html"


def read_run(path: Path) -> Run:
    """The evaluated run in a directory.

    Raises:
        ExperimentError: it is not evaluated, or cannot be read.
    """
    config, published = open_run(path), dict(published_parts(path))
    if not (path / METRICS).exists() and not published:
        raise ExperimentError(f"{path} is not evaluated ({METRICS} is missing); `dise evaluate` evaluates it")
    if not (path / TRAINING).exists():
        raise ExperimentError(f"{path} is not a finished training ({TRAINING} is missing); `dise train` finishes it")
    timing = read_json(path / TIMING) if (path / TIMING).exists() else None
    # not the config's name: the directory may have been renamed, and the preset's settings changed
    names = {"name": path.absolute().name} | {
        key: getattr(config, key) for key in ("model", "reg", "weight", "seed", "reduce")
    }
    own = {"own selectors": read_json(path / METRICS)} if (path / METRICS).exists() else {}
    parts = own | published
    selections = {name: part["selection"] for name, part in parts.items() if "selection" in part}
    metrics = _together(list(parts.values())) | {"selections": selections}
    return Run(**names, metrics=metrics, training=read_json(path / TRAINING), timing=timing)


def _together(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of a run's first evaluation, with the policies that only the others have."""
    first, *others = parts
    for key in (key for key in first if key.startswith("policies")):
        known = {row["policy"] for row in first[key]}
        new = [row for part in others for row in part[key] if row["policy"] not in known | {"oracle"}]
        first = first | {key: first[key] + new}
    return first


def evaluated_parts(path: Path) -> list[Path]:
    """The files with a run's metrics: of its own selectors, and of the published one."""
    return sorted([*path.glob(METRICS), *path.glob(f"published*/{METRICS}")])


def preset_folders(folder: Path, *, besides: Sequence[Path] = ()) -> list[Path]:
    """The folders of presets with evaluated runs: the given one, those below it, or that of a run directory.

    Args:
        folder: to look in.
        besides: folders of flows, which have reports of their own.

    Raises:
        ExperimentError: there is no evaluated run, and nothing besides.
    """
    if folder.parent in besides:
        return []
    if (folder / CONFIG).exists():
        read_run(folder)
        return [folder.parent]
    runs = (file.parent for file in folder.rglob(CONFIG) if evaluated_parts(file.parent))
    folders = sorted({run.parent for run in runs})
    if not folders and not besides:
        raise ExperimentError(f"{folder} contains no evaluated run; `dise run` creates them")
    return folders


def has_evaluated(folder: Path) -> bool:
    """Whether a preset's folder has evaluated runs."""
    return any(evaluated_parts(file.parent) for file in folder.glob(f"*/{CONFIG}"))


def evaluated(folder: Path) -> tuple[Task, list[Path]]:
    """The task, and the directories of all evaluated runs below a preset's folder, OUT/task/preset.

    Raises:
        ExperimentError: there are none, or they belong to several tasks.
    """
    paths = sorted(file.parent for file in folder.glob(f"*/{CONFIG}") if evaluated_parts(file.parent))
    if not paths:
        raise ExperimentError(f"{folder} contains no evaluated run; `dise run` creates them")
    names = {open_run(path).task for path in paths}
    if len(names) > 1:
        raise ExperimentError(
            f"{folder} contains runs of several tasks ({', '.join(sorted(names))}); give one task's folder"
        )
    return TASKS[names.pop()], paths


def selection_tables(selection: dict[str, Any]) -> list[Table]:
    """The costs and the fits of the selectors, one table per unit."""
    return [_selection_table(selection, unit) for unit in selection["units"]]


_PASSED = {None: "", True: " (passed its test)", False: " (no M passed the test; the best one is used)"}


def _members(fit: dict[str, Any]) -> str:
    number = fit.get("members", 1)
    return f", mean of {number} selectors" if number > 1 else ""


def _selection_table(selection: dict[str, Any], unit: str) -> Table:
    outcome = selection["units"][unit]
    fits = {name: fit for name, fit in selection["selectors"].items() if fit["unit"] == unit}
    rows = [
        [name, f"{c['adequate']:.4f}", number(c["nfe"]), *(f"{fit['shares'][i]:.1%}" for fit in fits.values())]
        for i, (name, c) in enumerate(outcome["candidates"].items())
    ]
    notes = [
        f"{name}: M = {fit['M']:g}{_PASSED[fit.get('passed')]}{_members(fit)}, validation loss "
        f"{fit['validation_loss']:.3f} of {fit['initial_loss']:.3f} in {fit['epochs']:.0f} epochs"
        for name, fit in fits.items()
    ]
    warnings = [f"Warning, {name}: {fit['warning']}" for name, fit in fits.items() if fit["warning"]]
    return Table(
        f"Selection on {outcome['samples']} {selection['on']} rows ({unit}), α = {selection['alpha']:g}",
        ["candidate", "adequate", "NFE", *(f"share by {name}" for name in fits)],
        rows,
        "\n".join(["; ".join(notes), *warnings]),
    )


def wall_clock(run: Run) -> Table:
    """Milliseconds per batch."""
    timing = run.timing or {}
    ode, whole = timing["ode_ms"], timing["model_ms"]
    rows = [
        [name, f"{ode[name]:.1f}", f"{ode[TORCHDIFFEQ] / ode[name]:.1f}×", f"{whole[name]:.1f}",
         f"{whole[TORCHDIFFEQ] / whole[name]:.1f}×"]
        for name in ode
    ]  # fmt: skip
    parts = [f"{name} {ms:.2f} ms ({ms / timing['parts_ms']['f']:.2f} f)" for name, ms in timing["parts_ms"].items()]
    return Table(
        f"{run.name}: wall-clock",
        ["policy", "ODE part, ms", "ODE part faster", "whole model, ms", "whole faster"],
        rows,
        f"Median over {timing['batches']} batches of {timing['batch']}, {timing['threads']} threads, "
        f"{timing['device']}, all in one run. torchdiffeq has one step size for the batch; where spans differ, "
        f"a step is the same fraction of each. One evaluation: {', '.join(parts)}.",
    )


class Report(NamedTuple):
    """A written report: its Markdown and its HTML file, the paper's tables, and the last lines of a command."""

    file: Path
    page: Path
    tables: list[Table]
    conclusion: list[str]


def write_report(folder: Path) -> Report:
    """Write `report.md` and the self-contained `report.html` of all evaluated runs into a preset's folder.

    Runs that cannot be read are named and left out.

    Raises:
        ExperimentError: there are no others.
    """
    task, paths = evaluated(folder)
    runs, left_out = _readable(paths)
    configs = [open_run(folder / run.name) for run in runs]
    headline = [*task.tables(runs), over_seeds(task, runs)]
    tables = list(headline)
    for run in runs:
        tables += task.details(run)
        if run.timing:
            tables.append(wall_clock(run))
    tables += [table for table in (_time(runs), _selections(runs), _training(runs)) if table.rows]
    plots = task.plots(runs, folder, lambda run: _model(folder / run.name))
    drawn = _curves(runs, folder) + plots + _of_samples(runs, folder)
    figures = [(file, f"{file.stem} of {file.parent.name}") for file in drawn]
    title = f"{task.name}, preset {configs[0].preset}"
    text = [f"# {title}\n", *(f"{line}\n" for line in left_out), *(table.markdown() for table in tables)]
    text.append("\n".join(f"![{caption}]({file.relative_to(folder)})\n" for file, caption in figures))
    file, html = folder / REPORT, folder / PAGE
    lines = conclusion(task, configs[0].preset, runs, html, plots) + left_out
    commands = [config.command for config in configs]
    write_text(file, "\n".join(text))
    write_text(html, page(title, tables, figures, summary=[lines[0], *left_out], commands=commands))
    return Report(file, html, headline, lines)


def _readable(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs that can be read, and a line on each other one, such as a run whose training was started again."""
    runs, errors = [], []
    for path in paths:
        try:
            runs.append(read_run(path))
        except ExperimentError as error:
            errors.append(error)
    if not runs:
        raise errors[0]
    return runs, [f"Left out: {error}" for error in errors]


def _curves(runs: Sequence[Run], folder: Path) -> list[Path]:
    """The training curves, in each run's directory."""
    files = []
    for run in runs:
        file = folder / run.name / "training.png"
        if log := read_log(folder / run.name):  # committed results have the figure without its log
            training_curves(log, run.name, file)
        files += [file] if file.exists() else []
    return files


def _of_samples(runs: Sequence[Run], folder: Path) -> list[Path]:
    """The figures of single test samples, in each run's directory."""
    files = []
    for path in (folder / run.name for run in runs):
        if (path / SAMPLES).exists():
            samples = read_json(path / SAMPLES)
            for name, draw in SAMPLE_PLOTS.items():
                files.append(path / name)
                draw(samples, path.name, files[-1])
            files += [path / CHOSEN] if (path / CHOSEN).exists() else []
    return files


def _model(path: Path) -> nn.Module:
    return load_model(path, open_run(path))


def _time(runs: Sequence[Run]) -> Table:
    """The paper's "inference time is linear in NFE", in each run that was timed."""
    rows = [
        [fit.run, f"{fit.slope:.2f}", f"{fit.r2:.3f}", *(f"{part:.1f}×" for part in fit.routed or ())]
        for fit in time_fits(runs)
    ]
    header = ["run", "slope, in times of f", "R²", "routed batches, least", "routed batches, most"]
    note = (
        "Least squares of the ODE part's milliseconds on NFE per sample, for single integrators. Routed batches: their "
        "time as a multiple of NFE times the time of one evaluation of f."
    )
    return Table("Time against NFE", header, rows, note)


def _selections(runs: Sequence[Run]) -> Table:
    """On what the selectors were fitted, and with which constants."""
    rows = [
        [
            run.name,
            name,
            selection["on"],
            f"{selection['alpha']:g}",
            "chosen, or the paper's" if selection["M"] is None else f"{selection['M']:g}",
            "–" if selection.get("beta") is None else f"{selection['beta']:.4f}, of {selection['beta_of'] or '--beta'}",
        ]
        for run in runs
        for name, selection in run.metrics["selections"].items()
    ]
    header = ["run", "selectors", "fitted to data", "α", "M", "β as published"]
    return Table("Selections", header, rows, "Published selectors: the folder of the run tells steps and limits.")


def _training(runs: Sequence[Run]) -> Table:
    rows = [
        [
            run.name,
            run.reduce if run.reg in PER_SAMPLE else "–",
            f"{run.weight:g}",
            *(number(run.training.get(f"train/{key}"), 4) for key in ("loss", "penalty", "error")),
            f"{run.training['seconds'] / 60:.1f}",
            str(run.training["threads"]),
        ]
        for run in runs
    ]
    header = ["run", "R over the batch", "λ", "task loss", "λ·R", "Σ error ratio", "minutes", "threads"]
    return Table("Training", header, rows, "Task loss, λ·R and Σ error ratio of the last training batch.")
