"""Evaluation of a run on the test set: quality, NFE and wall-clock of all policies."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dise.integrate import Euler
from dise.select import Dynamic, concatenate_state, count_macs, find_block
from dise_experiments.common.task import AsPublished, Task
from dise_experiments.run.config import ExperimentError
from dise_experiments.run.published import SELECTION, stored_task
from dise_experiments.run.rundir import load_model, open_run, read_json, write_json
from dise_experiments.run.sample_plots import draw_chosen
from dise_experiments.run.samples import CHOSEN, SAMPLES, studied_batches, study
from dise_experiments.run.select import load_dynamic
from dise_experiments.run.timing import time_policies

METRICS, TIMING = "metrics.json", "timing.json"
TIMED = 30  # test batches for wall-clock times


def evaluate_run(
    path: Path,
    *,
    data_dir: Path | None = None,
    device: str = "cpu",
    timing: bool = True,
    published: AsPublished | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Evaluate a run on the test set; existing results are reused.

    Args:
        path: the run's directory, with a trained model and, if it has an ODE, fitted selectors.
        data_dir: folder of the data.
        device: torch device of the model.
        timing: also measure wall-clock times, during which nothing else should run.
        published: evaluate the paper's selector as published instead of the task's selectors, without times.
        log: called with each line on the progress.

    Returns:
        the content of `metrics.json` and `timing.json`.

    Raises:
        ExperimentError: the model is not trained, or its selectors are not fitted.
    """
    config = open_run(path)
    task, settings = config.found
    folder, timing = (path, timing) if published is None else (path / published.folder, False)
    task = task if published is None else stored_task(path, config, published)
    results = {name: read_json(folder / name) for name in (METRICS, TIMING) if (folder / name).exists()}
    model = load_model(path, config).to(device)
    selection = _selection(folder) if task.selects(model) else {}
    if METRICS in results and results[METRICS].get("selection", {}) != selection:
        raise ExperimentError(
            f"{folder / METRICS} belongs to a selection with {results[METRICS].get('selection')}, the present one has "
            f"{selection}; move {METRICS} and {TIMING} away to evaluate again"
        )
    timed = timing and selection and TIMING not in results
    dynamics = _dynamics(model, folder, task) if METRICS not in results or timed else {}
    splits = None
    if METRICS not in results:
        log(f"evaluating {config.name} on the test set")
        splits = task.load(settings, data_dir)
        macs = _macs(model, task, dynamics, splits)
        in_f = {name: of_unit[name] / of_unit["f"] for of_unit in macs.values() for name in of_unit if name != "f"}
        about = {"selection": selection, "macs": macs} if dynamics else {}
        results[METRICS] = about | task.metrics(model, dynamics, in_f, splits)
        write_json(folder / METRICS, results[METRICS])
    if selection and published is None and not (path / SAMPLES).exists():
        log(f"studying single samples of {config.name}")
        splits = splits or task.load(settings, data_dir)
        _study(path, model, task, splits)
    if timed:
        log(f"timing {config.name}")
        splits = splits or task.load(settings, data_dir)
        results[TIMING] = _timing(model, task, dynamics, splits, device)
        write_json(folder / TIMING, results[TIMING])
    return results[METRICS] | {"timing": results.get(TIMING)}


def _timing(model: nn.Module, task: Task, dynamics: dict[str, Dynamic], splits: Any, device: str) -> dict[str, Any]:
    """Wall-clock of the policies of the first selector's unit."""
    unit = next(iter(task.selectors.values())).unit
    inputs = [x.to(device) for x in task.timed_batches(splits, TIMED, unit=unit)]
    own = {name: dynamic for name, dynamic in dynamics.items() if task.selectors[name].unit == unit}
    return time_policies(model, (*task.candidates, *task.baselines), own, inputs, tolerance=task.reference)


def _study(path: Path, model: nn.Module, task: Task, splits: Any) -> None:
    """Write what the default selector does with single samples, and the picture of some."""
    dynamic = load_dynamic(path, task.default_selector, task, model)
    batches = studied_batches(model, task, splits)
    samples = study(model, task, dynamic, read_json(path / SELECTION), batches)
    pictures = [(x, row) for x, target in batches for row in range(len(target))]
    draw_chosen(samples, lambda axes, i: task.draw(axes, *pictures[i]), path.name, path / CHOSEN)
    write_json(path / SAMPLES, samples)


def _selection(path: Path) -> dict[str, Any]:
    """The settings of the fitted selectors."""
    if not (path / SELECTION).exists():
        raise ExperimentError(f"{path} has no selection ({SELECTION} is missing); `dise select` fits it")
    selection = read_json(path / SELECTION)
    return {key: selection[key] for key in ("on", "alpha", "M", "beta", "beta_of") if key in selection}


def _dynamics(model: nn.Module, path: Path, task: Task) -> dict[str, Dynamic]:
    """The run's selectors as integrators; none for a model without selection."""
    if not task.selects(model):
        return {}
    return {name: load_dynamic(path, name, task, model) for name in task.selectors}


@torch.no_grad()
def _macs(model: nn.Module, task: Task, dynamics: dict[str, Dynamic], splits: Any) -> dict[str, dict[str, int]]:
    """Multiply–adds per row of one evaluation of f and of each selector, by the selectors' unit."""
    macs: dict[str, dict[str, int]] = {}
    for name, dynamic in dynamics.items():
        unit = task.selectors[name].unit
        block = find_block(model)
        x = next(iter(task.timed_batches(splits, 1, unit=unit))).to(next(model.parameters()).device)
        with block.using(Euler()), block.recording() as records:
            model(x)
        h0, t0 = records[0].y0, records[0].t0
        k1 = block.first_stage(h0, t0=t0)
        macs.setdefault(unit, {"f": count_macs(partial(block.first_stage, h0, t0=t0)) // len(x)})
        macs[unit][name] = count_macs(partial(dynamic.selector, concatenate_state(h0), concatenate_state(k1))) // len(x)
    return macs
