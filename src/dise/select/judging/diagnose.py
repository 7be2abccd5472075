"""Diagnosis of a selector that chooses one candidate for nearly all samples."""

import torch
from torch import Tensor

from dise.integrate.annotations import Int
from dise.integrate.argument_types import checked_arguments
from dise.select.judging.baselines import check_choice
from dise.select.judging.costs import Costs

COLLAPSE = 0.99  # share of the samples from which a choice counts as collapsed


@checked_arguments
def diagnose(choice: Int[Tensor, " n"], costs: Costs) -> str | None:
    """Explanation why one candidate gets at least 99 % of the samples; None if no candidate does.

    A perfect regression of Eq. 4's costs prefers candidate e to d where p_e/p_d > (M^α − Δ_d^α)/(M^α − Δ_e^α),
    with the probability p of a right prediction. Comparing that bound with the share of right predictions in the data
    tells whether M and α or the data are the reason. Candidates without an advantage are left out: those that are never
    right, and those that are more expensive than the chosen one and right no more often.

    Args:
        choice: [n] index of the candidate that each sample got.
        costs: the costs that the selector was fitted to.

    Raises:
        ValueError: indices outside of 0, …, K − 1.
    """
    check_choice(choice, costs)
    shares = torch.bincount(choice, minlength=len(costs.candidates)) / max(len(choice), 1)
    winner = int(shares.argmax())
    if len(costs.candidates) < 2 or len(choice) == 0 or shares[winner] < COLLAPSE:
        return None
    name = costs.candidates[winner]
    best = costs.cost.argmin(1)
    head = f"{name} gets {float(shares[winner]):.1%} of the samples. "
    if float((best == winner).float().mean()) >= COLLAPSE:
        return head + (
            f"Data: it is also the cheapest adequate candidate on {float((best == winner).float().mean()):.1%} of the "
            f"{len(costs)} samples that the costs were collected on, so there is little to learn. If those are "
            "training data, collect on held-out data."
        )
    rivals = [other for other in range(len(costs.candidates)) if _is_rival(costs, winner, other)]
    if not rivals:
        return head + "Data: no other candidate is right more often, or cheaper and ever right."
    return head + "; ".join(_compare(costs, winner, other) for other in rivals)


def _is_rival(costs: Costs, winner: int, other: int) -> bool:
    """Whether `other` has an advantage: it is cheaper and sometimes right, or it is right more often."""
    right, price = (table.double().mean(0) for table in (costs.adequate, costs.delta))
    return bool((price[other] < price[winner]) & (right[other] > 0) | (right[other] > right[winner]))


def _compare(costs: Costs, winner: int, other: int) -> str:
    """Text that says whether M and α or the data keep `other` from being chosen."""
    alpha, penalty = costs.rule.alpha, costs.rule.M
    costly, cheaper = (winner, other) if costs.delta[:, winner].sum() > costs.delta[:, other].sum() else (other, winner)
    # an inadequate result's price may be anything, so average over adequate results where there are any
    price = costs.rule.price(costs.delta, costs.error).float() ** alpha
    rows = {i: costs.adequate[:, i] if costs.adequate[:, i].any() else slice(None) for i in (winner, other)}
    value = {i: float(price[rows[i], i].nanmean()) for i in (winner, other)}
    bound = (penalty**alpha - value[costly]) / (penalty**alpha - value[cheaper])
    right = {i: float(costs.adequate[:, i].float().mean()) for i in (winner, other)}
    ratio = right[cheaper] / max(right[costly], 1e-9)
    text = (
        f"{costs.candidates[cheaper]} beats {costs.candidates[costly]} where it is right at least {bound:.3f} times "
        f"as often; on the data it is right {ratio:.3f} times as often"
    )
    if cheaper == winner and ratio > bound:
        return text + f" (M={penalty:g} or alpha={alpha:g} too small to pay for the rest: raise M, or alpha)"
    if cheaper == other and ratio < bound:
        return (
            text
            + f" (M={penalty:g} or alpha={alpha:g} so large that one error outweighs the saving: lower M, or alpha)"
        )
    return text + " (data: the selector cannot tell the samples apart; more held-out data or another network)"
