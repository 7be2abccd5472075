"""Fit of a run's selectors: collect the costs of Eq. 4 or 5, regress them, check for collapse."""

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
    run_candidates,
    selector_choice,
)
from dise_experiments.common.task import AsPublished, SelectorSpec, Task
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.published import SELECTION, Beta, find_beta, published_task
from dise_experiments.run.rundir import (
    load_model,
    load_weights,
    open_run,
    read_json,
    save_weights,
    weight_names,
    write_json,
)


def select_run(
    path: Path,
    *,
    data_dir: Path | None = None,
    on: str = "held-out",
    alpha: float | None = None,
    penalty: float | None = None,
    device: str = "cpu",
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fit all of the task's selector networks for a trained run; an existing selection is reused.

    Args:
        path: the run's directory.
        data_dir: folder of the data.
        on: "held-out" data, or "train".
        alpha: α of Eq. 4 or 5; default: the paper's.
        penalty: M; default: for each selector as the task says, the paper's or that of `choose_penalty`.
        device: torch device of the model.
        log: called with each line on the progress.

    Returns:
        the content of `selection.json`: settings, each candidate's share of adequate results and NFE, and the fits.

    Raises:
        ExperimentError: the model is not trained or has no ODE, or there is a selection with other settings.
    """
    config = open_run(path)
    task, _ = config.found
    rules = check_rules(task, alpha, penalty)
    expected = {"on": on, "alpha": next(iter(rules.values())).alpha, "M": penalty}
    if (path / SELECTION).exists():
        return _reuse(path, expected, task)
    return _select(task, path, path, data_dir, expected, rules, device, log)


def select_as_published(
    path: Path,
    about: AsPublished,
    *,
    data_dir: Path | None = None,
    alpha: float | None = None,
    penalty: float | None = None,
    beta: float | None = None,
    device: str = "cpu",
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fit the paper's selector as published for a trained run, in a folder of the run's directory of its own.

    Args:
        path: the run's directory.
        about: what the paper leaves open.
        data_dir: folder of the data.
        alpha, penalty: α and M of Eq. 4 or 5; default: the paper's.
        beta: β of Eq. 5; default: see `find_beta`.
        device: torch device of the model.
        log: called with each line on the progress.

    Returns:
        as in `select_run`, with "beta" and the run whose mean task error it is, "beta_of".

    Raises:
        ExperimentError: as in `select_run`, or there is no run for β.
    """
    config, folder = open_run(path), path / about.folder
    load_model(path, config)  # a run without a model is an error before β is computed
    stored = read_json(folder / SELECTION) if (folder / SELECTION).exists() else None
    found: Beta | None
    if beta is not None:
        if config.task != "circles":
            raise ExperimentError(f"beta: the published selector of {config.task} has Eq. 4, which has no β; omit it")
        found = Beta(beta, None)
    elif stored is not None and stored["beta_of"] is not None:
        found = Beta(stored["beta"], stored["beta_of"])
    else:
        found = find_beta(path, config, about)
    task = published_task(path, config, about, None if found is None else found.value)
    rules = check_rules(task, alpha, penalty)
    rule = next(iter(rules.values()))
    known = {"beta": None, "beta_of": None} if found is None else {"beta": found.value, "beta_of": found.of}
    expected = {"on": "train", "alpha": rule.alpha, "M": rule.M, **known}
    if stored is not None:
        return _reuse(folder, expected, task)
    folder.mkdir(exist_ok=True)
    return _select(task, path, folder, data_dir, expected, rules, device, log)


def _select(
    task: Task,
    path: Path,
    folder: Path,
    data_dir: Path | None,
    expected: dict[str, Any],
    rules: dict[int, CostRule],
    device: str,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Fit the task's selectors for a run and store them in the folder."""
    config = open_run(path)
    _, settings = config.found
    model = load_model(path, config).to(device)
    if not task.selects(model):
        raise ExperimentError(
            f"{path}: the answers of model {config.model!r} do not depend on its integrator, "
            "so there is nothing to select"
        )
    log(f"selecting for {config.name}")
    splits = task.load(settings, data_dir)
    selection: dict[str, Any] = expected | {"units": {}, "selectors": {}}
    for unit in dict.fromkeys(spec.unit for spec in task.selectors.values()):
        log(f"running all candidates, unit: {unit}")
        try:
            data = task.selection_batches(model, splits, on=expected["on"], unit=unit)
            outcomes = run_candidates(model, [((x,), target) for x, target in data], task.candidates)
            for name, spec in task.selectors.items():
                if spec.unit == unit:
                    costs = Costs.of(outcomes, rules[spec.equation])
                    selection["units"].setdefault(spec.costs, _outcome(costs))
                    selection["selectors"][name] = _fit(
                        name, spec, model, costs, folder, config, tune=expected["M"] is None, log=log
                    )
        except ValueError as error:  # M below a measured NFE, or too few samples
            raise ExperimentError(str(error)) from error
    write_json(folder / SELECTION, selection)
    return selection


def check_rules(task: Task, alpha: float | None, penalty: float | None) -> dict[int, CostRule]:
    """The cost rules of the task's selectors with these α and M, by equation.

    Raises:
        ExperimentError: α or M is out of its range.
    """
    equations = dict.fromkeys(spec.equation for spec in task.selectors.values())
    try:
        return {equation: task.rule(alpha, penalty, equation) for equation in equations}
    except ValueError as error:
        raise ExperimentError(str(error)) from error


def load_dynamic(path: Path, name: str, task: Task, model: nn.Module) -> Dynamic:
    """The run's selector of that name for its model, as an integrator.

    Raises:
        ExperimentError: it is not fitted, or its file belongs to another network.
    """
    file = _file(path, name)
    if not file.is_file():
        raise ExperimentError(f"{path} has no selector {name!r} ({file.name} is missing); `dise select` fits it")
    spec = task.selectors[name]
    candidates = spec.choosable(task.candidates)
    # the weights of a committee have names with the number of the member: members.0.…
    number = len({weight.split(".")[1] for weight in weight_names(file) if weight.startswith("members.")})
    networks = [spec.network(model, len(candidates)) for _ in range(number or 1)]
    members = [CostSelector(network, candidates=len(candidates)) for network in networks]
    selector = Committee(members) if number else members[0]
    load_weights(selector, file)
    return Dynamic(candidates, selector.to(next(model.parameters()).device).eval())


def _reuse(path: Path, expected: dict[str, Any], task: Task) -> dict[str, Any]:
    found = read_json(path / SELECTION)
    if missing := task.selectors.keys() - found["selectors"].keys():
        raise ExperimentError(
            f"{path / SELECTION} is of selectors {', '.join(found['selectors'])}, and lacks {', '.join(missing)}; "
            "move it away to fit them"
        )
    different = {key: found.get(key) for key, value in expected.items() if found.get(key) != value}
    if different:
        raise ExperimentError(
            f"{path / SELECTION} was fitted with {different}, expected {expected}; "
            "move it away to fit another selection"
        )
    return found


def _outcome(costs: Costs) -> dict[str, Any]:
    """Share of adequate results and mean NFE of each candidate."""
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
    costs = costs.take_candidates(choosable)
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
            selector = CostSelector.fit(network(), costs, seed=config.seed)
    fits = [module.history for module in selector.modules() if isinstance(module, CostSelector)]
    save_weights(selector, _file(path, name))
    choice = selector_choice(selector, costs)
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
        "initial_loss": fmean(fit.initial_loss for fit in fits),
        "validation_loss": fmean(min([fit.initial_loss, *fit.validation_losses]) for fit in fits),
        "epochs": fmean(len(fit.validation_losses) for fit in fits),
        "best_epoch": fmean(fit.best_epoch for fit in fits),
        "shares": torch.bincount(torch.tensor(choosable)[choice], minlength=number).div(len(choice)).tolist(),
        "warning": warning,
    }


def _file(path: Path, name: str) -> Path:
    return path / f"selector-{''.join(c if c.isalnum() or c in '._' else '-' for c in name)}.safetensors"
