"""Pruning: which candidates, or settings of a policy, are worth considering at all."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dise.select.judging.costs import Costs


def pareto_front(price: Sequence[float] | Tensor, risk: Sequence[float] | Tensor) -> list[int]:
    """Indices of the points that no other one beats, the cheapest (and riskiest) first.

    A point is beaten by one that is not dearer and not riskier, and better in one of the two; of equal points the
    first stays. NaN never stays.

    Args:
        price, risk: [K] of each point; smaller is better.

    Raises:
        ValueError: not as many prices as risks.
    """
    prices, risks = (torch.as_tensor(x, dtype=torch.float64).tolist() for x in (price, risk))
    if len(prices) != len(risks):
        raise ValueError(f"price, risk: expected as many of one as of the other, got {len(prices)} and {len(risks)}")
    front: list[int] = []
    order = sorted((i for i in range(len(prices)) if prices[i] == prices[i]), key=lambda i: (prices[i], risks[i]))
    for i in order:
        if risks[i] < min((risks[j] for j in front), default=float("inf")):
            front.append(i)
    return front


def prune(costs: Costs) -> Costs:
    """The costs without the candidates that another one beats in the mean, both in Δ and in how often it is adequate.

    The last candidate stays, as it is the reference. What is dropped could still be the best for a few samples; it is
    not worth a selector's attention.
    """
    inadequate = (~costs.adequate).double().mean(0)
    front = pareto_front(costs.delta.double().mean(0), inadequate)
    last = len(costs.candidates) - 1
    return costs.among(sorted({*front, last}))
