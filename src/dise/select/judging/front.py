"""Pareto front of price and risk, and pruning of the candidates that are not on it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dise.integrate.argument_types import checked_arguments
from dise.select.judging.costs import Costs


@checked_arguments
def pareto_front(price: Sequence[float] | Tensor, risk: Sequence[float] | Tensor) -> list[int]:
    """Indices of the points on the Pareto front, in order of rising price (and falling risk).

    A point is dominated by another that has no higher price and no higher risk, and is lower in one of the two. Only
    the first of equal points is on the front; points with NaN never are.

    Args:
        price, risk: [K] price and risk of each point; smaller is better.

    Raises:
        ValueError: different numbers of prices and risks.
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


@checked_arguments
def prune(costs: Costs) -> Costs:
    """Costs of the candidates on the Pareto front of mean Δ and share of inadequate results, and of the reference.

    The last candidate is the reference and always stays. A dropped candidate may still be the best one for a few
    samples, but too few for a selector to gain from it.
    """
    inadequate = (~costs.adequate).double().mean(0)
    front = pareto_front(costs.delta.double().mean(0), inadequate)
    last = len(costs.candidates) - 1
    return costs.take_candidates(sorted({*front, last}))
