"""The paper's selector as published, for a run of any task."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dise_experiments.circles.published import PublishedCircles, mean_nll, training_sets
from dise_experiments.circles.task import CirclesTask
from dise_experiments.common.task import AsPublished, Task
from dise_experiments.mnist.published import PublishedMnist
from dise_experiments.physionet.published import PublishedPhysionet
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.registry import TASKS
from dise_experiments.run.rundir import MODEL, load_model, open_run, read_json

SELECTION = "selection.json"
BETA_SETS = 64  # sets of points at once


def published_task(path: Path, config: RunConfig, about: AsPublished, beta: float | None) -> Task:
    """The run's task with the paper's selector alone: its three candidates, and its equation as printed.

    Args:
        path: the run's directory.
        config: the run.
        about: what the paper leaves open.
        beta: β of Eq. 5, for a task whose costs are those of Eq. 4 None; see `find_beta`.

    Raises:
        ExperimentError: the run's model cannot have the paper's selector.
    """
    if config.task == "circles":
        if beta is None:
            raise ExperimentError(f"{path}: Eq. 5 needs β")
        return PublishedCircles(about, seed=config.seed, beta=beta)
    task = _with_eq_4(config, about)
    if reason := task.check(config.model, config.reg):
        raise ExperimentError(f"{path}: {reason}")
    return task


def has_published(config: RunConfig) -> bool:
    """Whether the run's model can have the paper's selector."""
    if config.task == "circles":
        return True
    task = _with_eq_4(config, AsPublished())
    return task.check(config.model, config.reg) is None and task.selects(task.models[config.model]())


def _with_eq_4(config: RunConfig, about: AsPublished) -> Task:
    return PublishedMnist(about) if config.task == "mnist" else PublishedPhysionet(about)


def stored_task(path: Path, config: RunConfig, about: AsPublished) -> Task:
    """`published_task` with the β that the run's selector was fitted with."""
    file = path / about.folder / SELECTION
    if not file.exists():
        raise ExperimentError(f"{path} has no published selection; `dise select RUN --selector published` fits it")
    return published_task(path, config, about, read_json(file)["beta"])


class Beta(NamedTuple):
    """β of Eq. 5, and the name of the run whose mean task error it is; None: it was given."""

    value: float
    of: str | None


def run_of_beta(config: RunConfig) -> RunConfig | None:
    """The run whose mean task error is β of Eq. 5: with R_err, the paper's λ, and the same seed and settings.

    None for a task whose costs are those of Eq. 4.
    """
    return config.with_error if isinstance(TASKS[config.task], CirclesTask) else None


def find_beta(path: Path, config: RunConfig, about: AsPublished) -> Beta | None:
    """β of Eq. 5 as published: the mean task error, on its training data, of the model trained with R_err.

    It is that of `run_of_beta`, beside the run's directory, or of the run itself. None for a task whose costs are those
    of Eq. 4.

    Raises:
        ExperimentError: that run is not trained.
    """
    task, with_error = TASKS[config.task], run_of_beta(config)
    if with_error is None or not isinstance(task, CirclesTask):
        return None
    source = path if with_error == config else path.absolute().parent / with_error.name
    if not (source / MODEL).exists():
        raise ExperimentError(
            f"{path}: β of Eq. 5 is the mean NLP of the flow trained with R_err, and there is no {source}; "
            "train it (--reg error with the same seed and settings), or give --beta"
        )
    known = source / about.folder / SELECTION
    if known.exists() and read_json(known)["beta_of"] == with_error.name:
        return Beta(read_json(known)["beta"], with_error.name)
    _, preset = config.found
    points = about.cut(training_sets(preset, config.seed))
    return Beta(mean_nll(task, load_model(source, open_run(source)), points.split(BETA_SETS)), with_error.name)


def published_parts(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The metrics of a run's published selectors, by the name of their folder."""
    for file in sorted(path.glob("published*/metrics.json")):
        yield file.parent.name, read_json(file)
