"""All policies on the test records: ranking of deaths, distance from the reference, NFE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_calibration_error

from dise.integrate import FixedStep, Integrator, solve
from dise.select import Dynamic, Outcomes, run_candidates
from dise_experiments.common.statistics import bootstrap_auroc, interval
from dise_experiments.physionet.batches import draw
from dise_experiments.physionet.model import LatentODE
from dise_experiments.physionet.presets import BETA
from dise_experiments.physionet.starts import FromStarts, Starts

SAMPLES = 3  # samples of z(0) in the published test
BINS = 10  # bins of the calibration error
MIXES = 20  # permutations for random routing

Batches = Sequence[tuple[Starts, Tensor]]  # see `dise_experiments.physionet.starts.encoded`


@dataclass(frozen=True)
class Answers:
    """A policy's answers for N records.

    Attributes:
        name: name of the policy.
        p: [N] probability of death.
        nfe: [N] evaluations of f.
        more: further entries of the policy's row.
    """

    name: str
    p: Tensor
    nfe: Tensor
    more: dict[str, Any]


def quality(p: Tensor, labels: Tensor) -> dict[str, float]:
    """Areas under the ROC and the precision–recall curve, and the expected calibration error with 10 bins."""
    p, target = p.contiguous(), labels.long()
    return {
        "auroc": float(binary_auroc(p, target)),
        "auprc": float(binary_average_precision(p, target)),
        "ece": float(binary_calibration_error(p, target, n_bins=BINS)),
    }


def without_ode(model: LatentODE, batches: Batches) -> list[dict[str, Any]]:
    """The one row of a model whose answers need no solve."""
    p = _answers(model, batches)
    return _rows([Answers("no ODE", p, torch.zeros_like(p), {})], p, _labels(batches))


def with_ode(
    model: LatentODE,
    candidates: Sequence[Integrator],
    baselines: Sequence[Integrator],
    dynamics: Mapping[str, Dynamic],
    selector_macs: Mapping[str, float],
    batches: Batches,
) -> list[dict[str, Any]]:
    """Each candidate and baseline alone, the oracle, every selector as executed, and random routing with its shares.

    The last candidate is the reference for areas and, record by record, for probabilities.
    """
    integrators, labels = (*candidates, *baselines), _labels(batches)
    outcomes = run_candidates(FromStarts(model), batches, integrators)
    p, reference = outcomes.output.sigmoid(), outcomes.output[:, len(candidates) - 1].sigmoid()
    answers = [
        Answers(str(c), p[:, i], outcomes.nfe[:, i].float(), {"nfe_batch": _batch_nfe(model, batches, c)})
        for i, c in enumerate(integrators)
    ]
    answers.append(_oracle(p[:, : len(candidates)], outcomes.nfe[:, : len(candidates)], reference))
    executed = {name: _executed(name, model, dynamic, batches) for name, dynamic in dynamics.items()}
    for name, (answer, _) in executed.items():
        answers.append(answer)
        answer.more["selector_macs"] = selector_macs[name]
    rows = _rows(answers, reference, labels)
    for name, (_, choice) in executed.items():
        columns = [integrators.index(candidate) for candidate in dynamics[name].candidates]
        rows.append(_random(name, outcomes, columns, choice, labels))
    return rows


def published_test(model: LatentODE, batches: Batches) -> dict[str, Any]:
    """`quality` of three sampled starts per record, pooled, as published, with a 95 % bootstrap interval."""
    generator, labels = torch.Generator().manual_seed(0), _labels(batches)
    p = torch.cat([_sampled(model, x, generator) for x, _ in batches], dim=1)
    draws = bootstrap_auroc(p[None], labels)
    return quality(p.flatten(), labels.repeat(SAMPLES)) | {"interval": interval(draws[:, 0])}


@torch.no_grad()
def _sampled(model: LatentODE, x: Starts, generator: torch.Generator) -> Tensor:
    """[3, B] probability of death."""
    z0 = x.mean + x.deviation * draw(SAMPLES, len(x), generator).to(x.device)
    logits = model.classify(z0.flatten(0, 1), x.end.repeat(SAMPLES))
    return logits.sigmoid().unflatten(0, (SAMPLES, len(x))).cpu()


def _rows(answers: Sequence[Answers], reference: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """The policies' rows; intervals are of 95 %, by the bootstrap over records."""
    draws = bootstrap_auroc(torch.stack([reference, *(a.p for a in answers)]), labels)
    own = quality(reference, labels)["auroc"]
    rows = []
    for i, a in enumerate(answers, start=1):
        measures = quality(a.p, labels)
        gap = (a.p - reference).abs()
        rows.append(
            {"policy": a.name, "nfe": float(a.nfe.double().mean())}
            | measures
            | {"interval": interval(draws[:, i]), "difference": measures["auroc"] - own}
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


def _executed(name: str, model: LatentODE, dynamic: Dynamic, batches: Batches) -> tuple[Answers, Tensor]:
    """The policy as executed, and the candidate [N] of each record; −1 where the time span is empty."""
    with model.block.using(dynamic), model.block.recording() as records:
        p = _answers(model, batches)
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
    """The same choices assigned to the records at random: means over 20 permutations."""
    generator = torch.Generator().manual_seed(0)
    p, nfe = outcomes.output[:, list(columns)].sigmoid(), outcomes.nfe[:, list(columns)]
    dealt = [choice.clamp(min=0)[torch.randperm(len(choice), generator=generator)][:, None] for _ in range(MIXES)]
    measures = [quality(p.gather(1, deal).squeeze(1), labels) for deal in dealt]
    spent = sum(float(nfe.gather(1, deal).double().mean()) for deal in dealt) / MIXES
    means = {key: sum(m[key] for m in measures) / MIXES for key in measures[0]}
    return {"policy": f"random, mix of {name}", "nfe": spent} | means


@torch.no_grad()
def _answers(model: LatentODE, batches: Batches) -> Tensor:
    """[N] probability of death."""
    return torch.cat([model.classify(x.mean, x.end).sigmoid().cpu() for x, _ in batches])


def _labels(batches: Batches) -> Tensor:
    return torch.cat([labels for _, labels in batches])


@torch.no_grad()
def _batch_nfe(model: LatentODE, batches: Batches, integrator: Integrator) -> float:
    """Mean NFE of a batch solved as one system up to its latest end, counted as in the paper."""
    if isinstance(integrator, FixedStep):
        return float(integrator.tableau.stages * integrator.grid.steps)
    solutions = [solve(model.block.f, x.mean, 0.0, x.end.max(), integrator, batched=False) for x, _ in batches]
    return sum(int(solution.nfe) for solution in solutions) / len(solutions)
