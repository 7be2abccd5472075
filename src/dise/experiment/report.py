"""The report of all runs of a preset: the paper's tables beside this project's numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dise.experiment.config import ExperimentError, RunConfig
from dise.experiment.evaluate import METRICS, TIMING
from dise.experiment.plots import accuracy_against_nfe, training_curves
from dise.experiment.rundir import CONFIG, TRAINING, open_run, read_json, write_text
from dise.experiment.train import read_log
from dise.tasks.mnist.paper import TABLE_1, TABLE_3, Row

REPORT = "report.md"


@dataclass(frozen=True)
class Table:
    """A table to print or to write."""

    title: str
    header: Sequence[str]
    rows: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"## {self.title}\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")


@dataclass(frozen=True)
class Run:
    """An evaluated run."""

    config: RunConfig
    metrics: dict[str, Any]
    training: dict[str, Any]
    timing: dict[str, Any] | None

    @classmethod
    def read(cls, path: Path) -> "Run":
        """The run in a directory."""
        timing = read_json(path / TIMING) if (path / TIMING).exists() else None
        return cls(open_run(path), read_json(path / METRICS), read_json(path / TRAINING), timing)

    def policies(self, prefix: str = "") -> list[dict[str, Any]]:
        """Rows of the evaluation whose policy starts with `prefix`."""
        return [row for row in self.metrics["policies"] if row["policy"].startswith(prefix)]

    @property
    def own(self) -> dict[str, Any]:
        """The model with the integrator it was trained with."""
        name = {"rknet": "RK4", "resnet": "no ODE"}.get(self.config.model, "Dopri5")
        return next(row for row in self.policies() if row["policy"] == name)


def read_runs(folder: Path) -> list[Run]:
    """All evaluated runs below a preset's folder, OUT/task/preset.

    Raises:
        ExperimentError: there is none.
    """
    paths = sorted(file.parent for file in folder.glob(f"*/{CONFIG}") if (file.parent / METRICS).exists())
    if not paths:
        raise ExperimentError(f"{folder} holds no evaluated run; `dise run` makes them")
    return [Run.read(path) for path in paths]


def tables(runs: Sequence[Run]) -> list[Table]:
    """The report's tables."""
    made = [table_1(runs), table_3(runs)]
    for run in runs:
        made.append(policies(run))
        if run.timing:
            made.append(wall_clock(run))
    return made


def table_1(runs: Sequence[Run]) -> Table:
    """Table 1: accuracy and NFE of each model, the paper's and ours."""
    rows = []
    for paper in TABLE_1:
        found = [run for run in runs if (run.config.model, run.config.reg) == (paper.model, paper.reg)]
        for run in found:
            rows += [_line(paper, run, row) for row in (run.policies("DISE") if paper.dise else [run.own])]
        if not found:
            rows.append([paper.label, f"{paper.accuracy:.4f}", _number(paper.nfe), "not run", *["–"] * 4])
    header = [
        "model", "paper: accuracy", "paper: NFE", "run", "accuracy", "NFE a sample", "selector (in f)", "NFE a batch",
    ]  # fmt: skip
    return Table(
        "Table 1: MNIST, accuracy and number of function evaluations",
        header,
        rows,
        "NFE a sample: mean over the test set, each sample with its own steps, selector not included. Selector: its "
        "multiply–adds as a multiple of those of one evaluation of f. NFE a batch: evaluations for a batch of 100 "
        "as the paper counts them: DOPRI with one step size for the batch; DISE in lockstep.",
    )


def _line(paper: Row, run: Run, row: dict[str, Any]) -> list[str]:
    label = run.config.name + (f", {row['policy'][5:]}" if paper.dise else "")
    return [
        paper.label,
        f"{paper.accuracy:.4f}",
        _number(paper.nfe),
        label,
        f"{row['accuracy']:.4f}",
        _number(row.get("nfe")),
        _number(row.get("selector_macs")),
        _number(row.get("nfe_batch")),
    ]


def table_3(runs: Sequence[Run]) -> Table:
    """Table 3: share of each integrator under "Our reg. & DISE", and ours for every run."""
    names = list(TABLE_3)
    rows = [["paper: Our reg. & DISE", *(f"{TABLE_3[name]:.0%}" for name in names)]]
    for run in runs:
        for row in run.policies("DISE"):
            shares = [row["shares"].get(name, 0.0) for name in names]
            rows.append([f"{run.config.name}, {row['policy']}", *(f"{share:.1%}" for share in shares)])
    return Table("Table 3: MNIST, share of test images for each integrator", ["run", *names], rows)


def selection_table(selection: dict[str, Any]) -> Table:
    """What the selectors were fitted to, and how the fits went."""
    candidates = selection["candidates"]
    rows = [
        [
            name,
            f"{c['accuracy']:.4f}",
            _number(c["nfe"]),
            *(f"{s['shares'][i]:.1%}" for s in selection["selectors"].values()),
        ]
        for i, (name, c) in enumerate(candidates.items())
    ]
    fits = "; ".join(
        f"{name}: validation loss {fit['validation_loss']:.3f} of {fit['initial_loss']:.3f} in {fit['epochs']} epochs"
        for name, fit in selection["selectors"].items()
    )
    warnings = "".join(
        f"\nWarning, {name}: {fit['warning']}" for name, fit in selection["selectors"].items() if fit["warning"]
    )
    header = ["candidate", "accuracy", "NFE", *(f"share by {name}" for name in selection["selectors"])]
    settings = f"α = {selection['alpha']:g}, M = {selection['M']:g}"
    title = f"Selection on {selection['samples']} {selection['on']} samples, {settings}"
    return Table(title, header, rows, fits + warnings)


def policies(run: Run) -> Table:
    """Every policy on one run's model."""
    rows = [
        [
            row["policy"],
            f"{row['accuracy']:.4f}",
            _number(row.get("nfe")),
            _number(row["nfe"] + row["selector_macs"]) if "selector_macs" in row else _number(row.get("nfe")),
            _number(row.get("nfe_batch")),
            _paired(row.get("mcnemar")),
        ]
        for row in run.policies()
    ]
    return Table(
        f"{run.config.name}: every policy",
        ["policy", "accuracy", "NFE: solver", "NFE: with selector", "NFE a batch", "McNemar against DOPRI"],
        rows,
        "McNemar: images that DOPRI alone gets right / that the policy alone gets right, two-sided exact p.",
    )


def _paired(test: dict[str, Any] | None) -> str:
    return "–" if test is None else f"{test['only_first']} / {test['only_second']}, p = {test['p']:.3g}"


def wall_clock(run: Run) -> Table:
    """Milliseconds a batch."""
    timing = run.timing or {}
    ode, whole = timing["ode_ms"], timing["model_ms"]
    reference = "torchdiffeq dopri5"
    rows = [
        [name, f"{ode[name]:.1f}", f"{ode[reference] / ode[name]:.1f}×", f"{whole[name]:.1f}",
         f"{whole[reference] / whole[name]:.1f}×"]
        for name in ode
    ]  # fmt: skip
    parts = ", ".join(f"{name} {ms:.2f} ms" for name, ms in timing["parts_ms"].items())
    return Table(
        f"{run.config.name}: wall-clock",
        ["policy", "ODE part, ms", "faster", "whole model, ms", "faster"],
        rows,
        f"Median over {timing['batches']} batches of {timing['batch']}, {timing['threads']} threads, "
        f"{timing['device']}, all in one run. One evaluation: {parts}.",
    )


def write_report(folder: Path, runs: Iterable[Run], *, command: str = "") -> Path:
    """Write `report.md` into a preset's folder."""
    runs = list(runs)
    plots = [file for run in runs for file in _plot(folder / run.config.name, run)]
    text = [f"# {runs[0].config.task}, preset {runs[0].config.preset}\n"]
    if command:
        text.append(f"Made by `{command}`.\n")
    text += [table.markdown() for table in [*tables(runs), _training(runs)]]
    text.append("\n".join(f"![{file.stem} of {file.parent.name}]({file.relative_to(folder)})\n" for file in plots))
    file = folder / REPORT
    write_text(file, "\n".join(text))
    return file


def _plot(path: Path, run: Run) -> list[Path]:
    """The run's plots, in its directory."""
    curves, front = path / "training.png", path / "accuracy-nfe.png"
    training_curves(read_log(path), run.config.name, curves)
    if "nfe" not in run.own:  # no ODE
        return [curves]
    accuracy_against_nfe(run.policies(), run.config.name, front)
    return [curves, front]


def _training(runs: Sequence[Run]) -> Table:
    rows = [
        [
            run.config.name,
            f"{run.config.weight:g}",
            *(_number(run.training.get(f"train/{key}"), 4) for key in ("loss", "penalty", "error")),
            f"{run.training['seconds'] / 60:.1f}",
            str(run.training["threads"]),
        ]
        for run in runs
    ]
    header = ["run", "λ", "task loss", "λ·R", "Σ error ratio", "minutes", "threads"]
    return Table("Training", header, rows, "Task loss, λ·R and Σ error ratio: of the last training batch.")


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
