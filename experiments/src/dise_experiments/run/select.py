"""Fitting a run's selectors: collect Eq. 4's or 5's costs, regress them, look for collapse."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from dise.select import (
    Committee,
    CostRule,
    Costs,
    CostSelector,
    Dynamic,
    choose_penalty,
    diagnose,
    route,
    run_candidates,
)
from dise_experiments.common.task import SelectorSpec, Task
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.registry import TASKS
from dise_experiments.run.rundir import (
    load_model,
    load_weights,
    open_run,
    read_json,
    save_weights,
    weight_names,
    write_json,
)

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
        alpha: α of Eq. 4 or 5; default: the paper's.
        penalty: M; default: what the task says of each selector, the paper's or the choice of `choose_penalty`.
        device: where to run the model.
        log: gets lines on the progress.

    Returns:
        what `selection.json` holds: settings, how often each candidate is adequate and its NFE, and how each fit went.

    Raises:
        ExperimentError: no trained model, a model without an ODE, or a selection with other settings is there.
    """
    config = open_run(path)
    task, settings = config.found
    rules = check_rules(config.task, alpha, penalty)
    wanted = {"on": on, "alpha": next(iter(rules.values())).alpha, "M": penalty}
    if (path / SELECTION).exists():
        return _reuse(path, wanted)
    model = load_model(path, config).to(device)
    if not task.selects(model):
        raise ExperimentError(
            f"{path}: the answers of model {config.model!r} depend on no integrator, so there is nothing to select"
        )
    splits = task.load(settings, data_dir)
    selection: dict[str, Any] = wanted | {"units": {}, "selectors": {}}
    for unit in dict.fromkeys(spec.unit for spec in task.selectors.values()):
        log(f"running the candidates, a {unit} each")
        try:
            data = task.selection_batches(model, splits, on=on, unit=unit)
            outcomes = run_candidates(model, data, task.candidates)
            for name, spec in task.selectors.items():
                if spec.unit == unit:
                    costs = Costs.of(outcomes, rules[spec.equation])
                    selection["units"].setdefault(spec.costs, _outcome(costs))
                    selection["selectors"][name] = _fit(
                        name, spec, model, costs, path, config, tune=penalty is None, log=log
                    )
        except ValueError as error:  # M below the NFE that was measured, or too few samples to fit to
            raise ExperimentError(str(error)) from error
    write_json(path / SELECTION, selection)
    return selection


def check_rules(task: str, alpha: float | None, penalty: float | None) -> dict[int, CostRule]:
    """The rules of the task's selectors with these α and M, by equation.

    Raises:
        ExperimentError: α or M is out of its range.
    """
    equations = dict.fromkeys(spec.equation for spec in TASKS[task].selectors.values())
    try:
        return {equation: TASKS[task].rule(alpha, penalty, equation) for equation in equations}
    except ValueError as error:
        raise ExperimentError(str(error)) from error


def load_dynamic(path: Path, name: str, task: Task, model: nn.Module) -> Dynamic:
    """The run's selector of that name for its model, as an integrator.

    Raises:
        ExperimentError: it is not fitted, or another network's.
    """
    file = _file(path, name)
    if not file.is_file():
        raise ExperimentError(f"{path} has no selector {name!r} ({file.name} is missing); `dise select` makes it")
    spec = task.selectors[name]
    candidates = spec.choosable(task.candidates)
    # a committee's weights say which member they are of: members.0.…
    number = len({weight.split(".")[1] for weight in weight_names(file) if weight.startswith("members.")})
    networks = [spec.network(model, len(candidates)) for _ in range(number or 1)]
    members = [CostSelector(network, candidates=len(candidates)) for network in networks]
    selector = Committee(members) if number else members[0]
    load_weights(selector, file)
    return Dynamic(candidates, selector.to(next(model.parameters()).device).eval())


def _reuse(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    there = read_json(path / SELECTION)
    different = {key: there.get(key) for key, value in wanted.items() if there.get(key) != value}
    if different:
        raise ExperimentError(
            f"{path / SELECTION} was made with {different}, wanted {wanted}; move it away to fit another selection"
        )
    return there


def _outcome(costs: Costs) -> dict[str, Any]:
    """What the candidates did on the data."""
    columns = zip(costs.adequate.double().mean(0).tolist(), costs.nfe.double().mean(0).tolist(), strict=True)
    outcomes = [{"adequate": adequate, "nfe": nfe} for adequate, nfe in columns]
    return {"samples": len(costs), "candidates": dict(zip(map(str, costs.candidates), outcomes, strict=True))}


def _fit(
    name: str,
    spec: SelectorSpec,
    model: nn.Module,
    costs: Costs,
    path: Path,
    config: RunConfig,
    *,
    tune: bool,
    log: Callable[[str], None],
) -> dict[str, Any]:
    trials, passed, number = [], None, len(costs.candidates)
    choosable = range(number) if spec.candidates is None else spec.candidates
    costs = costs.among(choosable)
    network = partial(spec.network, model, len(costs.candidates))
    selector: nn.Module
    if tune and spec.tolerance is not None:
        log(f"fitting selector {name!r}, M by cross-validation")
        found = choose_penalty(costs, network, tolerance=spec.tolerance, seed=config.seed, log=log)
        costs, trials, passed = costs.with_penalty(found.M), [asdict(t) for t in found.trials], found.passed
        selector = found.selector
    else:
        log(f"fitting selector {name!r}, M = {costs.rule.M:g}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            selector = CostSelector.fit(network(), costs, seed=config.seed, log=log)
    fits = [module.history for module in selector.modules() if isinstance(module, CostSelector)]
    save_weights(selector, _file(path, name))
    choice = route(selector, costs)
    warning = diagnose(choice, costs)
    if warning:
        log(f"warning: selector {name!r}: {warning}")
    return {
        "unit": spec.costs,
        "M": costs.rule.M,
        "trials": trials,
        "passed": passed,
        "members": len(fits),
        # means over the members
        "initial_loss": fmean(fit.initial for fit in fits),
        "validation_loss": fmean(min([fit.initial, *fit.validation]) for fit in fits),
        "epochs": fmean(len(fit.validation) for fit in fits),
        "best_epoch": fmean(fit.best_epoch for fit in fits),
        "shares": torch.bincount(torch.tensor(choosable)[choice], minlength=number).div(len(choice)).tolist(),
        "warning": warning,
    }


def _file(path: Path, name: str) -> Path:
    return path / f"selector-{name}.safetensors"
