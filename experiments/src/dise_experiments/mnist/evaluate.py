"""All policies on the test images: accuracy, NFE, shares."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from dise.integrate import FixedStep, Integrator
from dise.select import (
    ClassificationCost,
    Costs,
    Dynamic,
    PolicyScore,
    find_block,
    oracle,
    random_mix,
    run_candidates,
    single_candidate,
)
from dise_experiments.common.statistics import mcnemar

Batches = Iterable[tuple[Tensor, Tensor]]


def without_ode(model: nn.Module, batches: Batches) -> dict[str, Any]:
    """Accuracy of a model that has no ODE."""
    right = torch.cat([_right(model, x, labels) for x, labels in batches])
    row = {"policy": "no ODE", "accuracy": float(right.double().mean())}
    return {"samples": len(right), "wrong": _indices(~right), "policies": [row]}


def with_ode(
    model: nn.Module,
    candidates: tuple[Integrator, ...],
    baselines: tuple[Integrator, ...],
    dynamics: Mapping[str, Dynamic],
    selector_macs: Mapping[str, float],
    batches: Batches,
) -> dict[str, Any]:
    """Each candidate and baseline alone, the oracle, every selector as executed, and random routing with its shares.

    "wrong" lists the images that the model, with its own integrator, classifies incorrectly: it pairs models by image.
    """
    integrators = (*candidates, *baselines)
    costs = Costs.of(run_candidates(model, batches, integrators), ClassificationCost())
    choosable, reference = costs.take_candidates(range(len(candidates))), costs.adequate[:, len(candidates) - 1]
    rows = [
        _row(single_candidate(costs, i), reference) | {"nfe_batch": _batch_nfe(model, batches, candidate)}
        for i, candidate in enumerate(integrators)
    ]
    rows.append(_row(oracle(choosable), reference))
    for name, dynamic in dynamics.items():
        score, calls = _executed(name, model, dynamic, batches)
        shares = score.weights.double().mean(0)
        executed = {
            "nfe_batch": calls,
            "selector_macs": selector_macs[name],
            "shares": dict(zip(map(str, dynamic.candidates), shares.tolist(), strict=True)),
        }
        mixed = random_mix(choosable, shares)
        rows += [_row(score, reference) | executed, _row(mixed, reference) | {"policy": f"random, mix of {name}"}]
    own = integrators.index(find_block(model).integrator)
    return {"samples": len(costs), "wrong": _indices(~costs.adequate[:, own]), "policies": rows}


def _row(score: PolicyScore, reference: Tensor) -> dict[str, Any]:
    """A policy's row; with a paired test against the reference [N] bool, unless the policy is random."""
    row: dict[str, Any] = {"policy": score.name, "accuracy": score.accuracy, "nfe": score.mean_nfe}
    if bool(((score.adequate == 0) | (score.adequate == 1)).all()):
        row["mcnemar"] = mcnemar(reference, score.adequate.bool())
    return row


def _executed(name: str, model: nn.Module, dynamic: Dynamic, batches: Batches) -> tuple[PolicyScore, float]:
    """The policy as executed, and its mean number of calls of f per batch."""
    block = find_block(model)
    with block.using(dynamic), block.recording() as records:
        right = torch.cat([_right(model, x, labels) for x, labels in batches])
    choice = torch.cat([record.solution.choice for record in records if record.solution.choice is not None]).cpu()
    nfe = torch.cat([record.solution.nfe for record in records]).cpu()
    weights = one_hot(choice, len(dynamic.candidates)).float()
    calls = sum(record.solution.calls for record in records) / len(records)
    return PolicyScore(f"DISE ({name})", weights, right.float(), nfe.float()), calls


@torch.no_grad()
def _right(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Whether each answer is correct, [B] bool."""
    return model(x.to(next(model.parameters()).device)).argmax(1).cpu() == labels


def _indices(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


@torch.no_grad()
def _batch_nfe(model: nn.Module, batches: Batches, integrator: Integrator) -> float:
    """Mean NFE of a batch solved as one system, counted as in the paper."""
    if isinstance(integrator, FixedStep):
        return float(integrator.tableau.stages * integrator.grid.steps)
    block = find_block(model)
    with block.using(integrator, batched=False), block.recording() as records:
        for x, labels in batches:
            _right(model, x, labels)
    return sum(int(record.solution.nfe) for record in records) / len(records)
