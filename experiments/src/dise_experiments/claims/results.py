"""Committed results of the three tasks."""

from pathlib import Path
from typing import Any, NamedTuple

from dise_experiments.common.task import Run
from dise_experiments.run.report import evaluated, read_run

ROOT = Path(__file__).parents[4]
RESULTS = ROOT / "results"


class Results(NamedTuple):
    """Evaluated runs of each task, of the preset `cpu`; of MNIST's preset `long`; and of PhysioNet by cross-entropy."""

    mnist: list[Run]
    physionet: list[Run]
    circles: list[Run]
    mnist_long: list[Run]
    cross_entropy: list[Run]

    @classmethod
    def read(cls, folder: Path = RESULTS) -> "Results":
        """The committed runs."""
        names = ("mnist-cpu", "physionet-cpu", "circles-cpu", "mnist-long", "physionet-cross-entropy")
        return cls(*([read_run(path) for path in evaluated(folder / name)[1]] for name in names))


def of(runs: list[Run], reg: str, *, model: str | None = None, changes: str = "") -> list[Run]:
    """Runs of the first model with a regularizer, with the paper's λ; `changes` are those of the preset's settings."""
    first = {"mnist": "odenet", "physionet": "z_end", "circles": "flow"}
    kind = model or next(m for m in first.values() if any(run.model == m for run in runs))
    named = [run for run in runs if run.name == f"{kind}-{reg}{changes}-seed{run.seed}"]
    return [run for run in named if (run.model, run.reg) == (kind, reg)]


def row(run: Run, policy: str) -> dict[str, Any]:
    """The first row of a policy; the circles' are of sets first."""
    return next(row for row in run.policies() if row["policy"] == policy)


def published(run: Run) -> list[dict[str, Any]]:
    """Rows of the paper's selector as published."""
    return run.policies("DISE (as published")
