"""The cells of the grid, what each needs, and what is done."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from dise_experiments.common.task import AsPublished
from dise_experiments.reproduce.logs import begun, failure
from dise_experiments.run.config import ExperimentError, RunConfig, choose, combinations
from dise_experiments.run.evaluate import METRICS
from dise_experiments.run.published import has_published, run_of_beta
from dise_experiments.run.registry import TASKS
from dise_experiments.run.rundir import MODEL, open_run

# the paper's rows, then those of the literature
REGULARIZERS = (
    "none", "kinetic", "l1", "l2", "error",
    "jacobian", "taylor2", "taylor3", "stiffness", "weighted-error", "steer",
)  # fmt: skip
ONE_STEP = AsPublished()
BASELINES = {"mnist": ("resnet", "rknet")}  # models of the paper's tables beside each task's first


class Part(StrEnum):
    """A part of a run: its training, or the fit and the evaluation of selectors."""

    train = "train"
    standard = "standard"
    published = "published"


class State(StrEnum):
    """How far a cell is."""

    done = "done"
    begun = "begun"
    failed = "failed"
    waiting = "waiting"


class Cell(NamedTuple):
    """A job of the grid: a part of a run.

    Attributes:
        config: the run.
        part: what the job does.
        about: what the paper leaves open about its selector.
    """

    config: RunConfig
    part: Part
    about: AsPublished = ONE_STEP

    @property
    def name(self) -> str:
        """The cell's name, no two of a grid the same."""
        return f"{self.config.task}/{self.config.preset}/{self.config.name}/{self.folder}"

    @property
    def folder(self) -> str:
        """The part, or the folder of the published selector."""
        return self.about.folder if self.part is Part.published else self.part.value

    @property
    def needs(self) -> "list[Cell]":
        """Cells that must be done before: the training, and for β of Eq. 5 that with the error regularizer."""
        if self.part is Part.train:
            return []
        runs = [self.config]
        if self.part is Part.published and (with_error := run_of_beta(self.config)):
            runs.append(with_error)
        return [Cell(config, Part.train) for config in {config.name: config for config in runs}.values()]

    def results(self, out: Path) -> Path:
        """The file that is written last."""
        path = self.config.directory(out)
        return {
            Part.train: path / MODEL,
            Part.standard: path / METRICS,
            Part.published: path / self.about.folder / METRICS,
        }[self.part]

    def _owns(self, out: Path) -> bool:
        """Whether the run's directory is of this run; of one that cannot be read the job says why."""
        try:
            return open_run(self.config.directory(out)) == self.config
        except ExperimentError:
            return False

    def state(self, out: Path) -> State:
        """How far the cell is, as far as its files tell; a directory of another run is not done."""
        if self.results(out).exists() and self._owns(out):
            return State.done
        if failure(out, self.name):
            return State.failed
        return State.begun if begun(out, self.name) else State.waiting


def grid(
    tasks: Sequence[str],
    preset: str,
    *,
    seeds: int,
    models: Sequence[str] = (),
    regs: Sequence[str] = (),
    parts: Sequence[Part] = (Part.standard, Part.published),
    changes: Sequence[str] = (),
    about: AsPublished = ONE_STEP,
) -> list[Cell]:
    """The cells that are evaluated, task by task and seed by seed.

    Args:
        tasks: names of tasks.
        preset: size of the experiments.
        seeds: number of seeds, from 0.
        models: models; default: the task's first, and those of `BASELINES`.
        regs: regularizers, of which each task has those it knows; default: `REGULARIZERS`.
        parts: selectors.
        changes: changes of the preset's settings, "name=value".
        about: what the paper leaves open about its selector.

    Raises:
        ExperimentError: an unknown name, or nothing is left.
    """
    found = [choose("task", task, TASKS) for task in tasks]
    for reg in regs:
        choose("reg", reg, {known: None for task in found for known in task.weights})
    for model in models:
        choose("model", model, {known: None for task in found for known in task.models})
    cells = [
        Cell(config, part, about)
        for task in tasks
        for seed in range(seeds)
        for config in _runs(task, preset, seed, models, regs, changes)
        for part in parts
        if part is not Part.published or has_published(config)
    ]
    if not cells:
        raise ExperimentError("reproduce: no cell is left of the grid; choose other models, regularizers or selectors")
    return cells


def _runs(
    task: str, preset: str, seed: int, models: Sequence[str], regs: Sequence[str], changes: Sequence[str]
) -> list[RunConfig]:
    found = TASKS[task]
    chosen = [reg for reg in dict.fromkeys(regs or REGULARIZERS) if reg in found.weights]
    wanted = [
        m for m in dict.fromkeys(models or [next(iter(found.models)), *BASELINES.get(task, ())]) if m in found.models
    ]
    if "none" not in chosen:  # the other models have no regularizer
        wanted = [model for model in wanted if model == next(iter(found.models))]
    if not chosen or not wanted:
        return []
    return [
        RunConfig.of(task, preset, model=model, reg=reg, seed=seed, changes=changes)
        for model, reg in combinations(task, wanted, chosen)
    ]


def with_trainings(cells: Iterable[Cell], out: Path) -> list[Cell]:
    """The cells, each after those that it still needs; done cells need none, and may have no model stored."""
    found: dict[str, Cell] = {}
    for cell in cells:
        needed = [] if cell.state(out) is State.done else cell.needs
        found |= {each.name: each for each in [*needed, cell] if each.name not in found}
    return list(found.values())
