"""The choice of a family: the one with the cheapest setting that seems safe."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.nn import NeuralODE
from dise.select.guarantee.calibrate import run_policy
from dise.select.guarantee.risk import ProbabilityShift, Risk, RiskCost, disagreement, losses, lost_accuracy
from dise.select.judging.costs import Costs
from dise.select.make_dynamic.families import Family, families
from dise.select.make_dynamic.samples import Batch
from dise.select.model.block import device_of
from dise.select.model.outcomes import Outcomes, run_candidates

MOST_JUDGED = 2000  # samples to choose the family on


class Choice(NamedTuple):
    """A family, and by its name each family's mean NFE, as expected of its cheapest safe setting."""

    family: Family
    estimates: dict[str, float]


def choose_family(
    model: nn.Module,
    block: NeuralODE,
    head: nn.Module | None,
    batches: list[Batch],
    candidates: tuple[Integrator, ...],
    *,
    risk: Risk,
    epsilon: float,
    seed: int,
    log: Callable[[str], None],
) -> Choice:
    """Fit all families, and choose the one that is expected to need the fewest evaluations of f.

    At most the last MOST_JUDGED samples judge the families. A family that is fitted to samples is judged on at most the
    last half of the batches, to which it is not fitted.

    Args:
        model: contains the block.
        block: the model's.
        head: what the model does with h(t1), if it is known.
        batches: to fit and judge on.
        candidates: integrators, the reference last.
        risk, epsilon, seed, log: see `make_dynamic`.
    """
    most = math.ceil(MOST_JUDGED / len(batches[0][0]))
    unseen = min(len(batches) // 2, most)
    learn, judged = batches[: len(batches) - unseen], batches[-most:]
    log(f"running {len(candidates)} candidates on {sum(len(x) for x, _ in learn)} samples")
    outcomes = _by_price(run_candidates(model, learn, candidates))
    tried = families(
        Costs.of(outcomes, RiskCost(risk=risk)),
        outcomes,
        head,
        classifies=risk in (disagreement, lost_accuracy) or isinstance(risk, ProbabilityShift),
        epsilon=epsilon,
        span=float(torch.as_tensor(block.t1).mean() - torch.as_tensor(block.t0).mean()),
        device=device_of(model),
        seed=seed,
    )
    expected = run_policy(model, candidates[-1], judged)[0]
    estimates = {}
    for family in tried:
        some = slice(len(judged) - unseen if family.learnt and unseen else 0, None)
        estimates[family.name] = _estimate(model, family, judged[some], expected[some], risk, epsilon)
        log(f"{family.name}: {estimates[family.name]:.2f} evaluations")
    return Choice(min(tried, key=lambda family: estimates[family.name]), estimates)


def _by_price(outcomes: Outcomes) -> Outcomes:
    """The candidates in order of their mean NFE, the reference last; without those that need more than it does."""
    price = outcomes.nfe.double().mean(0).tolist()
    last = len(price) - 1
    order = sorted((i for i in range(last) if price[i] < price[last]), key=lambda i: price[i])
    return outcomes.take_candidates([*order, last])


def _estimate(
    model: nn.Module, family: Family, batches: list[Batch], expected: list[Tensor], risk: Risk, epsilon: float
) -> float:
    """Mean NFE of the family's cheapest setting before the first whose mean loss is above ε; infinite if none is."""
    cheapest = math.inf
    for setting in family.settings:
        outputs, nfe = run_policy(model, setting, batches)
        lost = [losses(risk, o, e, y).double() for o, e, (_, y) in zip(outputs, expected, batches, strict=True)]
        if float(torch.cat(lost).mean()) > epsilon:
            break
        cheapest = min(cheapest, nfe)
    return cheapest
