"""Fitting a run's selectors: collect Eq. 4's costs, regress them, look for collapse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dise.experiment.config import ExperimentError, RunConfig
from dise.experiment.rundir import load_model, load_weights, open_run, read_json, save_weights, write_json
from dise.nn import NeuralODE
from dise.select import Costs, CostSelector, Dynamic, collect_costs, diagnose
from dise.tasks.task import Task

SELECTION = "selection.json"


def select(
    path: Path,
    *,
    data_dir: Path | None = None,
    on: str = "held-out",
    alpha: float | None = None,
    penalty: float | None = None,
    device: str = "cpu",
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fit all of the task's selector networks for a trained run; a selection that is there is reused.

    Args:
        path: the run's directory.
        data_dir: where the task's data are.
        on: "held-out" data, or "train" as in the paper.
        alpha, penalty: α and M of Eq. 4; default: the paper's.
        device: where to run the model.
        log: gets lines on the progress.

    Returns:
        what `selection.json` holds: settings, each candidate's accuracy and NFE, and how each fit went.

    Raises:
        ExperimentError: no trained model, a model without an ODE, or a selection with other settings is there.
    """
    config = open_run(path)
    task, settings = config.found
    try:
        rule = task.rule(alpha, penalty)
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    wanted = {"on": on, "alpha": rule.alpha, "M": rule.M}
    if (path / SELECTION).exists():
        return _reuse(path, wanted)
    model = load_model(path, config).to(device)
    if not any(isinstance(module, NeuralODE) for module in model.modules()):
        raise ExperimentError(f"{path}: model {config.model!r} has no ODE, so there is nothing to select")
    batches = task.selection_batches(task.load(settings, data_dir), on=on)
    log("collecting the candidates' costs")
    try:
        costs = collect_costs(model, batches, task.candidates, rule)
    except ValueError as error:  # M below the NFE that was measured
        raise ExperimentError(str(error)) from error
    fits = {name: _fit(name, costs, path, config, task, log) for name in task.selectors}
    selection = wanted | {
        "samples": len(costs),
        "candidates": {
            str(candidate): {
                "accuracy": float(costs.adequate[:, i].float().mean()),
                "nfe": float(costs.nfe[:, i].float().mean()),
            }
            for i, candidate in enumerate(costs.candidates)
        },
        "selectors": fits,
    }
    write_json(path / SELECTION, selection)
    return selection


def load_dynamic(path: Path, name: str, task: Task, *, device: str = "cpu") -> Dynamic:
    """The run's selector of that name, as an integrator.

    Raises:
        ExperimentError: it is not fitted, or another network's.
    """
    file = _file(path, name)
    if not file.is_file():
        raise ExperimentError(f"{path} has no selector {name!r} ({file.name} is missing); `dise select` makes it")
    number = len(task.candidates)
    selector = CostSelector(task.selectors[name](number), candidates=number)
    load_weights(selector, file)
    return Dynamic(task.candidates, selector.to(device).eval())


def _reuse(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    there = read_json(path / SELECTION)
    different = {key: there.get(key) for key, value in wanted.items() if there.get(key) != value}
    if different:
        raise ExperimentError(
            f"{path / SELECTION} was made with {different}, wanted {wanted}; move it away to fit another selection"
        )
    return there


def _fit(
    name: str, costs: Costs, path: Path, config: RunConfig, task: Task, log: Callable[[str], None]
) -> dict[str, Any]:
    log(f"fitting selector {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = task.selectors[name](len(costs.candidates))
    selector = CostSelector.fit(network, costs, seed=config.seed, log=log)
    fit = selector.history
    save_weights(selector, _file(path, name))
    with torch.no_grad():
        scores = [selector(h0, k1) for h0, k1 in zip(costs.h0.split(500), costs.k1.split(500), strict=True)]
    choice = torch.cat(scores).argmin(1)
    warning = diagnose(choice, costs)
    if warning:
        log(f"warning: selector {name!r}: {warning}")
    return {
        "initial_loss": fit.initial,
        "validation_loss": min([fit.initial, *fit.validation]),
        "epochs": len(fit.validation),
        "best_epoch": fit.best_epoch,
        "shares": torch.bincount(choice, minlength=len(costs.candidates)).div(len(choice)).tolist(),
        "warning": warning,
    }


def _file(path: Path, name: str) -> Path:
    return path / f"selector-{name}.safetensors"
