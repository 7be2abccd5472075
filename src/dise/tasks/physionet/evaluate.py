"""Every policy on the test records: how well it ranks deaths, how far it is from the reference, and what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_calibration_error,
)

from dise.integrate import FixedStep, Integrator, solve
from dise.select import Dynamic, Outcomes, find_block, run_candidates
from dise.tasks.physionet.batches import TestBatches, draw
from dise.tasks.physionet.model import LatentODE
from dise.tasks.physionet.presets import BETA, TEST_BATCH
from dise.tasks.physionet.records import Records
from dise.tasks.statistics import bootstrap_auroc, interval

SAMPLES = 3  # of z(0), in the published test
BINS = 10  # of the calibration error
MIXES = 20  # random routings


@dataclass(frozen=True)
class Answers:
    """What a policy said of N records.

    Attributes:
        name: of the policy.
        p: [N] probability of death.
        nfe: [N] evaluations of f.
        more: what else is known of it.
    """

    name: str
    p: Tensor
    nfe: Tensor
    more: dict[str, Any]


def quality(p: Tensor, labels: Tensor) -> dict[str, float]:
    """Areas under the ROC and the precision–recall curve, and the expected calibration error of 10 bins."""
    target = labels.long()
    return {
        "auroc": float(binary_auroc(p, target)),
        "auprc": float(binary_average_precision(p, target)),
        "ece": float(binary_calibration_error(p, target, n_bins=BINS)),
    }


def without_ode(model: nn.Module, records: Records) -> list[dict[str, Any]]:
    """The one row of a model whose answers need no integration."""
    p = torch.cat([_answer(model, x) for x, _ in TestBatches(records, TEST_BATCH)])
    return _rows([Answers("no ODE", p, torch.zeros_like(p), {})], p, records.labels)


def with_ode(
    model: nn.Module,
    candidates: Sequence[Integrator],
    baselines: Sequence[Integrator],
    dynamics: Mapping[str, Dynamic],
    selector_macs: Mapping[str, float],
    records: Records,
) -> list[dict[str, Any]]:
    """Each candidate and baseline alone, the oracle, every selector as executed, and random routing at its mix.

    The last candidate is the reference, which areas and probabilities are compared with, record by record.
    """
    batches = TestBatches(records, TEST_BATCH)
    everyone = (*candidates, *baselines)
    outcomes = run_candidates(model, batches, everyone)
    p, reference = outcomes.output.sigmoid(), outcomes.output[:, len(candidates) - 1].sigmoid()
    answers = [
        Answers(str(c), p[:, i], outcomes.nfe[:, i].float(), {"nfe_batch": _batch_nfe(model, batches, c)})
        for i, c in enumerate(everyone)
    ]
    answers.append(_oracle(p[:, : len(candidates)], outcomes.nfe[:, : len(candidates)], reference))
    rows = _rows(answers, reference, records.labels)
    for name, dynamic in dynamics.items():
        executed, choice = _executed(name, model, dynamic, batches)
        executed.more["selector_macs"] = selector_macs[name]
        rows += _rows([executed], reference, records.labels)
        rows.append(_random(name, outcomes, [everyone.index(c) for c in dynamic.candidates], choice, records.labels))
    return rows


def published(model: LatentODE, records: Records) -> dict[str, float]:
    """`quality` of three sampled starts of every record, pooled, as the published Latent ODE is tested."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.cat([_sampled(model, x, generator) for x, _ in TestBatches(records, TEST_BATCH)], dim=1)
    return quality(logits.sigmoid().flatten(), records.labels.repeat(SAMPLES))


@torch.no_grad()
def _sampled(model: LatentODE, x: Any, generator: torch.Generator) -> Tensor:
    """[3, B] logits."""
    device = next(model.parameters()).device
    mean, deviation = model.encoder(x.to(device))
    z0 = mean + deviation * draw(SAMPLES, len(x), generator).to(device)
    return model.classify(z0.flatten(0, 1), x.end.to(device).repeat(SAMPLES)).unflatten(0, (SAMPLES, len(x))).cpu()


def _rows(answers: Sequence[Answers], reference: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """The policies' rows; intervals are of 95 %, by the bootstrap over records."""
    draws = bootstrap_auroc(torch.stack([reference, *(a.p for a in answers)]), labels)
    rows = []
    for i, a in enumerate(answers, start=1):
        measures = quality(a.p, labels)
        difference = measures["auroc"] - float(binary_auroc(reference, labels.long()))
        gap = (a.p - reference).abs()
        rows.append(
            {"policy": a.name, "nfe": float(a.nfe.double().mean())}
            | measures
            | {"interval": interval(draws[:, i]), "difference": difference}
            | {"difference_interval": interval(draws[:, i] - draws[:, 0])}
            | {"gap": float(gap.double().mean()), "adequate": float((gap <= BETA).double().mean())}
            | a.more
        )
    return rows


def _oracle(p: Tensor, nfe: Tensor, reference: Tensor) -> Answers:
    """The cheapest candidate whose probability is within β of the reference's."""
    near = (p - reference[:, None]).abs() <= BETA
    best = torch.where(near, nfe.double(), torch.inf).argmin(1, keepdim=True)
    return Answers("oracle", p.gather(1, best).squeeze(1), nfe.gather(1, best).squeeze(1).float(), {})


def _executed(name: str, model: nn.Module, dynamic: Dynamic, batches: TestBatches) -> tuple[Answers, Tensor]:
    """The policy as executed, and the candidate [N] of each record (−1: it has nothing to integrate)."""
    block = find_block(model)
    with block.using(dynamic), block.recording() as records:
        p = torch.cat([_answer(model, x) for x, _ in batches])
    solutions = [record.solution for record in records]
    choice = torch.cat([solution.choice for solution in solutions if solution.choice is not None]).cpu()
    nfe = torch.cat([solution.nfe for solution in solutions]).cpu()
    shares = torch.bincount(choice[choice >= 0], minlength=len(dynamic.candidates)).double()
    more = {
        "nfe_batch": sum(solution.calls for solution in solutions) / len(solutions),
        "shares": dict(zip(map(str, dynamic.candidates), (shares / shares.sum()).tolist(), strict=True)),
    }
    return Answers(f"DISE ({name})", p, nfe.float(), more), choice


def _random(name: str, outcomes: Outcomes, columns: Sequence[int], choice: Tensor, labels: Tensor) -> dict[str, Any]:
    """The same choices dealt to the records at random: the mean over 20 deals."""
    generator = torch.Generator().manual_seed(0)
    p, nfe = outcomes.output[:, list(columns)].sigmoid(), outcomes.nfe[:, list(columns)]
    deals = [choice.clamp(min=0)[torch.randperm(len(choice), generator=generator)][:, None] for _ in range(MIXES)]
    measures = [quality(p.gather(1, deal).squeeze(1), labels) for deal in deals]
    spent = sum(float(nfe.gather(1, deal).double().mean()) for deal in deals) / MIXES
    means = {key: sum(m[key] for m in measures) / MIXES for key in measures[0]}
    return {"policy": f"random, mix of {name}", "nfe": spent} | means


@torch.no_grad()
def _answer(model: nn.Module, x: Any) -> Tensor:
    """[B] probability of death."""
    return model(x.to(next(model.parameters()).device)).sigmoid().cpu()


@torch.no_grad()
def _batch_nfe(model: nn.Module, batches: TestBatches, integrator: Integrator) -> float:
    """Mean NFE of a batch solved as one system up to its latest end, the paper's way of counting."""
    if isinstance(integrator, FixedStep):
        return float(integrator.tableau.stages * integrator.steps)
    block, counts = find_block(model), []
    with block.recording() as records:
        for x, _ in batches:
            _answer(model, x)
    for record in records:
        end = float(record.solution.t.max())
        counts.append(int(solve(block.f, record.y0, 0.0, end, integrator, batched=False).nfe))
    return sum(counts) / len(counts)
