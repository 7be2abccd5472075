"""Evaluating a run on the test set: every policy, and what it costs."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dise.experiment.config import ExperimentError
from dise.experiment.rundir import load_model, open_run, read_json, write_json
from dise.experiment.select import SELECTION, load_dynamic
from dise.experiment.statistics import mcnemar
from dise.experiment.timing import count_macs, time_policies
from dise.integrate import FixedStep, Integrator
from dise.nn import NeuralODE
from dise.select import Costs, Dynamic, PolicyScore, find_block, oracle, random_mix, run_candidates, single
from dise.tasks.task import Task

METRICS, TIMING = "metrics.json", "timing.json"
TIMED = 30  # test batches on which wall-clock is measured


def evaluate(
    path: Path,
    *,
    data_dir: Path | None = None,
    device: str = "cpu",
    timing: bool = True,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Evaluate a run on the test set; results that are there are reused.

    Args:
        path: the run's directory, with a trained model and, if it has an ODE, fitted selectors.
        data_dir: where the task's data are.
        device: where to run the model.
        timing: also measure wall-clock times (let nothing else run meanwhile).
        log: gets lines on the progress.

    Returns:
        what `metrics.json` and `timing.json` hold.

    Raises:
        ExperimentError: the model is not trained, or its selectors are not fitted.
    """
    config = open_run(path)
    task, settings = config.found
    results = {name: read_json(path / name) for name in (METRICS, TIMING) if (path / name).exists()}
    model = load_model(path, config).to(device)
    dynamics = _dynamics(model, path, task, device)
    selection = _selection(path) if dynamics else {}
    if METRICS in results and results[METRICS].get("selection", {}) != selection:
        raise ExperimentError(
            f"{path / METRICS} is of a selection with {results[METRICS]['selection']}, the one here has {selection}; "
            f"move {METRICS} and {TIMING} away to evaluate again"
        )
    splits = None
    if METRICS not in results:
        log(f"evaluating {config.name} on the test set")
        splits = task.load(settings, data_dir)
        metrics = _metrics(model, task, dynamics, task.test_batches(splits))
        results[METRICS] = ({"selection": selection} if selection else {}) | metrics
        write_json(path / METRICS, results[METRICS])
    if timing and dynamics and TIMING not in results:
        log(f"timing {config.name}")
        splits = splits or task.load(settings, data_dir)
        inputs = [x.to(device) for x, _ in islice(task.test_batches(splits), TIMED)]
        results[TIMING] = time_policies(model, (*task.candidates, *task.baselines), dynamics, inputs)
        write_json(path / TIMING, results[TIMING])
    return results[METRICS] | {"timing": results.get(TIMING)}


def _selection(path: Path) -> dict[str, Any]:
    """What the fitted selectors depend on."""
    selection = read_json(path / SELECTION)
    return {key: selection[key] for key in ("on", "alpha", "M")}


def _dynamics(model: nn.Module, path: Path, task: Task, device: str) -> dict[str, Dynamic]:
    """The run's selectors as integrators; none for a model without an ODE."""
    if not any(isinstance(module, NeuralODE) for module in model.modules()):
        return {}
    return {name: load_dynamic(path, name, task, device=device) for name in task.selectors}


def _metrics(
    model: nn.Module, task: Task, dynamics: dict[str, Dynamic], batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    rule = task.rule(None, None)
    if not dynamics:
        right = torch.cat([rule.adequate(_logits(model, x)[:, None], y)[:, 0] for x, y in batches])
        return {
            "samples": len(right),
            "policies": [{"policy": "no ODE", "accuracy": float(right.double().mean())}],
        }
    everyone = (*task.candidates, *task.baselines)
    outcomes = run_candidates(model, batches, everyone)
    costs = Costs.of(outcomes, rule)
    reference = len(task.candidates) - 1
    rows = [
        _row(single(costs, i), costs, reference) | {"nfe_batch": _batch_nfe(model, batches, candidate)}
        for i, candidate in enumerate(everyone)
    ]
    choosable = costs.first(len(task.candidates))
    rows.append(_row(oracle(choosable), costs, reference))
    macs = _macs(model, dynamics, outcomes.h0[:1], outcomes.k1[:1])
    for name, dynamic in dynamics.items():
        rows += _dynamic_rows(name, model, dynamic, batches, costs, choosable, macs)
    return {"samples": len(costs), "macs": macs, "policies": rows}


def _row(score: PolicyScore, costs: Costs, reference: int) -> dict[str, Any]:
    """A policy beside the reference; paired test where its results are definite."""
    row: dict[str, Any] = {"policy": score.name, "accuracy": score.accuracy, "nfe": score.mean_nfe}
    if bool(((score.adequate == 0) | (score.adequate == 1)).all()):
        row["mcnemar"] = mcnemar(costs.adequate[:, reference], score.adequate.bool())
    return row


def _dynamic_rows(
    name: str,
    model: nn.Module,
    dynamic: Dynamic,
    batches: Iterable[tuple[Tensor, Tensor]],
    costs: Costs,
    choosable: Costs,
    macs: dict[str, int],
) -> list[dict[str, Any]]:
    """The policy as executed, and random routing at its mix."""
    block = find_block(model)
    with block.using(dynamic), block.recording() as records:
        right = torch.cat([costs.rule.adequate(_logits(model, x)[:, None], y)[:, 0] for x, y in batches])
    choice = torch.cat([record.solution.choice for record in records if record.solution.choice is not None]).cpu()
    nfe = torch.cat([record.solution.nfe for record in records]).cpu()
    shares = torch.bincount(choice, minlength=len(dynamic.candidates)).double() / len(choice)
    executed = _row(PolicyScore(f"DISE ({name})", right.float(), nfe.float()), costs, len(dynamic.candidates) - 1)
    executed |= {
        "nfe_batch": sum(record.solution.calls for record in records) / len(records),
        "selector_macs": macs[name] / macs["f"],
        "shares": {str(c): float(s) for c, s in zip(dynamic.candidates, shares, strict=True)},
    }
    mixed = _row(random_mix(choosable, shares), costs, len(dynamic.candidates) - 1)
    return [executed, mixed | {"policy": f"random, mix of {name}"}]


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.to(next(model.parameters()).device)).cpu()


@torch.no_grad()
def _batch_nfe(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], integrator: Integrator) -> float:
    """Mean NFE of a batch solved as one system, the paper's way of counting."""
    if isinstance(integrator, FixedStep):
        return float(integrator.tableau.stages * integrator.steps)
    block = find_block(model)
    with block.using(integrator, batched=False), block.recording() as records:
        for x, _ in batches:
            _logits(model, x)
    return sum(int(record.solution.nfe) for record in records) / len(records)


def _macs(model: nn.Module, dynamics: dict[str, Dynamic], h0: Tensor, k1: Tensor) -> dict[str, int]:
    """Multiply–adds a sample of one evaluation of f, and of each selector."""
    device = next(model.parameters()).device
    h0, k1 = h0.to(device), k1.to(device)
    macs = {"f": count_macs(partial(find_block(model).first_stage, h0))}
    return macs | {name: count_macs(partial(dynamic.selector, h0, k1)) for name, dynamic in dynamics.items()}
