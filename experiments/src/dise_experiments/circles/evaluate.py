"""The likelihood of all policies, as computed and by a tight solve, and their NFE.

A coarse integrator can report a density that the model does not have, even a better one. So each likelihood is compared
with the reference's on the same points, and a policy that reports a better one is flagged.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dise.integrate import Dopri5, Integrator
from dise.select import (
    CostRule,
    Costs,
    Dynamic,
    PolicyScore,
    assignment_score,
    find_block,
    oracle,
    random_mix,
    run_candidates,
    single_candidate,
)

SMALL = 16  # sets of 32: the paper's 512 test points
CHUNK = 64  # sets at once
TIGHT = 1e-7
BETTER = 1e-3  # nats; a policy whose likelihood is better by more is flagged, and rounding errors are smaller


class Reference:
    """log p by a tight solve (1e-7) in double precision."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).double()
        find_block(self.model).integrator = Dopri5(rtol=TIGHT, atol=TIGHT)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """[B, P, 2] → [B, P], in x's precision."""
        return self.model(x.double()).to(x.dtype)


def batches(model: nn.Module, sets: Tensor, unit: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Sets [N, 32, 2] with their reference log p, in batches; with unit "point" each point is a row."""
    reference, device = Reference(model), next(model.parameters()).device
    for x in sets.to(device).split(CHUNK):
        target = reference(x)
        yield (x, target) if unit == "set" else (x.flatten(0, 1), target.flatten())


def policy_rows(
    model: nn.Module,
    candidates: tuple[Integrator, ...],
    rule: CostRule,
    dynamics: Mapping[str, Dynamic],
    selector_macs: Mapping[str, float],
    sets: Tensor,
    unit: str,
) -> list[dict[str, Any]]:
    """Each candidate alone, the oracle, every selector as executed, and random routing with its shares.

    Args:
        model: a flow.
        candidates: the last is the reference of NFE.
        rule: Eq. 5.
        dynamics: selectors of this unit.
        selector_macs: their multiply–adds in units of those of f.
        sets: [N, 32, 2]; the first 16 are the small test, the others the large test.
        unit: "set" or "point".
    """
    data = list(batches(model, sets, unit))
    outcomes = run_candidates(model, [((x,), target) for x, target in data], candidates)
    target, small = torch.cat([y.cpu() for _, y in data]), SMALL * (1 if unit == "set" else sets.shape[1])
    costs, table = Costs.of(outcomes, rule), _Table(outcomes.output, target, small, unit)
    rows = [table.row(single_candidate(costs, i)) for i in range(len(candidates))]
    rows.append(table.row(oracle(costs)))
    for name, dynamic in dynamics.items():
        nll, choice, nfe = _executed(model, dynamic, data)
        score = replace(assignment_score(f"DISE ({name})", costs, choice), nfe=nfe)
        shares = score.weights.double().mean(0)
        executed = {
            "selector_macs": selector_macs[name],
            "shares": dict(zip(map(str, candidates), shares.tolist(), strict=True)),
        }
        rows.append(table.row(score, nll) | executed)
        rows.append(table.row(random_mix(costs, shares)) | {"policy": f"random, mix of {name}"})
    return rows


class _Table:
    """Rows of the evaluation: likelihoods and NFE of a policy on the small and on the large test."""

    def __init__(self, output: Tensor, target: Tensor, small: int, unit: str) -> None:
        self.nll, self.reference = -_row_means(output, 2), -_row_means(target, 1)
        self.parts: dict[str, slice] = {"small": slice(None, small), "large": slice(small, None)}
        self.unit = unit

    def row(self, score: PolicyScore, nll: Tensor | None = None) -> dict[str, Any]:
        """A policy's row; `nll` [N] is its computed NLL, by default that of its candidates alone."""
        nll = (score.weights * self.nll).sum(1) if nll is None else nll
        row: dict[str, Any] = {"policy": score.name, "unit": self.unit, "nfe": score.mean_nfe}
        for part, rows in self.parts.items():
            gap = nll[rows] - self.reference[rows]
            row[part] = {
                "nll": _mean(nll[rows]),
                "reference": _mean(self.reference[rows]),
                "nfe": _mean(score.nfe[rows]),
                "nfe_sum": float(score.nfe[rows].double().sum()),
                "largest_gap": float(gap.abs().max()),
                "flagged": _mean(gap) < -BETTER,
            }
        return row


def _row_means(x: Tensor, dims: int) -> Tensor:
    """The mean over the points of each row, if there are more than `dims` dimensions."""
    return x if x.ndim == dims else x.mean(-1)


def _mean(x: Tensor) -> float:
    return float(x.double().mean())


@torch.no_grad()
def _executed(model: nn.Module, dynamic: Dynamic, data: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """The policy as executed: NLL, choice and NFE [N] of each row."""
    block = find_block(model)
    with block.using(dynamic), block.recording() as records:
        nll = torch.cat([-_row_means(model(x), 1) for x, _ in data]).cpu()
    solutions = [record.solution for record in records]
    choice = torch.cat([solution.choice for solution in solutions if solution.choice is not None]).cpu()
    return nll, choice, torch.cat([solution.nfe for solution in solutions]).cpu().float()
