"""The last lines of a command: what was reached, what to look at, what to run next."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dise_experiments.common.task import Run, Task
from dise_experiments.run.timing import TORCHDIFFEQ


def conclusion(task: Task, preset: str, runs: Sequence[Run], report: Path, figures: Sequence[Path]) -> list[str]:
    """Three lines: DISE beside torchdiffeq's dopri5 on the same weights, the report and a figure, the next command."""
    run = _shown(task, runs)
    return [_reached(task, run), _look_at(run, report, figures), _next(task, preset)]


def _shown(task: Task, runs: Sequence[Run]) -> Run:
    """The first run that has the most of: DISE's default selector, wall-clock times, the paper's regularizer."""
    dise = f"DISE ({_selector(task, runs)})"
    return max(runs, key=lambda run: (bool(run.policies(dise)), run.timing is not None, run.reg == "error"))


def _selector(task: Task, runs: Sequence[Run]) -> str:
    """The selector that is shown: the task's default one, or else a published one, where there is no other."""
    found = [row["policy"][6:-1] for run in runs for row in run.policies("DISE")]
    return task.default_selector if task.default_selector in found else next(iter(found), task.default_selector)


def _reached(task: Task, run: Run) -> str:
    dise, reference = f"DISE ({_selector(task, [run])})", str(task.reference)
    rows = {row["policy"]: row for row in reversed(run.policies())}  # of two units the first
    if dise not in rows:
        return f"{run.name}: {task.quality.name} {task.quality.value(run.policies()[0]):.3f}"
    times = run.timing["model_ms"] if run.timing else {}
    ours = _measures(task, rows[dise], rows[dise]["nfe"] + rows[dise]["selector_macs"], times.get(dise))
    batch_nfe = rows[reference].get("nfe_batch", rows[reference]["nfe"])
    theirs = _measures(task, rows[reference], batch_nfe, times.get(TORCHDIFFEQ))
    return f"DISE: {task.quality.name} {ours}; {TORCHDIFFEQ}: {theirs}"


def _measures(task: Task, row: dict[str, Any], nfe: float, ms: float | None) -> str:
    time = [] if ms is None else [f"{_short(ms)} ms" if ms < 1000 else f"{_short(ms / 1000)} s"]
    return ", ".join([f"{task.quality.value(row):.3f}", f"{_short(nfe)} NFE", *time])


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _look_at(run: Run, report: Path, figures: Sequence[Path]) -> str:
    """The report, and the figure of all runs or, failing that, of the run of the first line."""
    shown = [file for file in figures if file.parent == report.parent]
    shown += [file for file in figures if file.parent.name == run.name]
    return f"See {report}" + (f" and {shown[0].relative_to(report.parent)} there" if shown else "")


def _next(task: Task, preset: str) -> str:
    presets = list(task.presets)
    larger = presets[min(presets.index(preset) + 1, len(presets) - 1)]
    return f"Next: dise run {task.name} --preset {larger}" + (" --seed 1" if larger == preset else "")
