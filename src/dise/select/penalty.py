"""Choosing the penalty M of Eq. 4 and 5 on held-out data, where the paper tunes it by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dise.select.cost import Costs
from dise.select.dynamic import cheapest
from dise.select.evaluate import PolicyScore, chosen, single
from dise.select.selector import CostSelector

PENALTIES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)


@dataclass(frozen=True)
class Trial:
    """What a selector fitted with penalty M did on samples that it was not fitted to.

    Attributes:
        M: the penalty.
        adequate: share of adequate results.
        nfe: mean NFE.
        lost: share of adequate results that is lost against the reference, at most: the upper bound of a one-sided
            95 % confidence interval.
    """

    M: float
    adequate: float
    nfe: float
    lost: float


@dataclass(frozen=True)
class PenaltyChoice:
    """The chosen M, all trials, and what the reference, the last candidate, did on the same samples.

    `passed` tells whether the chosen M passed the test, or is only the best there is.
    """

    M: float
    passed: bool
    trials: tuple[Trial, ...]
    reference: Trial


def choose_penalty(
    costs: Costs,
    network: Callable[[], nn.Module],
    *,
    penalties: Sequence[float] = PENALTIES,
    tolerance: float = 1e-3,
    budget: float = 0.5,
    folds: int = 4,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> PenaltyChoice:
    """Choose M by cross-validation: each part of the samples is routed by selectors fitted to the other parts.

    Among the penalties whose NFE is within the budget, the smallest is chosen that loses at most `tolerance` against
    the reference, with a confidence of 95 % (a paired test of non-inferiority; of each penalty by itself, so that
    choosing among them is not corrected for: `calibrate` gives a guarantee). If there is none, the one of the smallest
    such loss. If none is within the budget, the cheapest. Without a single difference between selector and reference
    the test needs 1.645 / tolerance samples, 1,645 by default.

    Args:
        costs: of held-out samples; the last candidate is the reference.
        network: makes an untrained network as `CostSelector.fit` takes it.
        penalties: values of M to try.
        tolerance: share of adequate results that may be lost against the reference; default: 0.1 points.
        budget: largest NFE, as a part of the reference's.
        folds: parts of the cross-validation.
        seed: of the parts and the fits. It leaves torch's global generator alone.
        log: gets a line a trial.

    Raises:
        ValueError: no penalties, fewer than two folds, or fewer samples than folds.
    """
    if not penalties:
        raise ValueError("penalties: expected at least one, got none")
    if not 2 <= folds <= len(costs):
        raise ValueError(f"folds: expected 2 to {len(costs)} (the number of samples), got {folds}")
    alone = single(costs, len(costs.candidates) - 1)
    reference = _trial(costs.rule.M, alone, alone)
    trials = []
    for M in sorted(penalties):
        trial = _trial(M, _cross_validated(costs.with_penalty(M), network, folds, seed), alone)
        log(
            f"M = {M:g}: {trial.adequate:.4f} adequate (reference {reference.adequate:.4f}, at most {trial.lost:.4f} "
            f"lost), NFE {trial.nfe:.2f}"
        )
        trials.append(trial)
    best = _choose(trials, reference, tolerance, budget)
    passed = best.lost <= tolerance and best.nfe <= budget * reference.nfe
    if not passed:
        log(f"no M is certain to lose at most {tolerance:g} within the budget: M = {best.M:g} is the best there is")
    return PenaltyChoice(best.M, passed, tuple(trials), reference)


def _choose(trials: Sequence[Trial], reference: Trial, tolerance: float, budget: float) -> Trial:
    affordable = [trial for trial in trials if trial.nfe <= budget * reference.nfe]
    if not affordable:
        return min(trials, key=lambda trial: trial.nfe)
    good = [trial for trial in affordable if trial.lost <= tolerance]
    return good[0] if good else min(affordable, key=lambda trial: trial.lost)


def _cross_validated(costs: Costs, network: Callable[[], nn.Module], folds: int, seed: int) -> PolicyScore:
    """The policy's score on all samples, each routed by a selector that has not seen it."""
    order = torch.randperm(len(costs), generator=torch.Generator().manual_seed(seed))
    choice = torch.empty(len(costs), dtype=torch.int64)
    for part in order.tensor_split(folds):
        others = order[~torch.isin(order, part)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            selector = CostSelector.fit(network(), costs.take(others), seed=seed)
        choice[part] = route(selector, costs.take(part))
    return chosen("cross-validated", costs, choice)


@torch.no_grad()
def route(selector: CostSelector, costs: Costs) -> Tensor:
    """[N] index of the candidate that the selector gives each sample."""
    scores = [selector(h0, k1) for h0, k1 in zip(costs.h0.split(500), costs.k1.split(500), strict=True)]
    return cheapest(torch.cat(scores))


def _trial(M: float, score: PolicyScore, reference: PolicyScore) -> Trial:
    return Trial(M, score.accuracy, score.mean_nfe, _lost(reference.adequate.bool(), score.adequate.bool()))


def _lost(reference: Tensor, policy: Tensor) -> float:
    """Upper 95 % bound of the share of adequate results that a policy [N] loses against the reference [N].

    Source: Agresti, Min, Simple improved confidence intervals for comparing matched proportions, 2005: Wald's
    interval after half a sample is added to each of the four cells.
    """
    number = len(reference) + 2
    lost = int((reference & ~policy).sum()) + 0.5
    won = int((policy & ~reference).sum()) + 0.5
    difference = (lost - won) / number
    deviation = ((lost + won) / number - difference**2) ** 0.5 / number**0.5
    return difference + 1.645 * deviation
