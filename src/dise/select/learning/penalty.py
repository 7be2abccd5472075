"""Choosing the penalty M, and α, of Eq. 4 and 5 on held-out data, where the paper tunes them by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from dise.select.judging.baselines import PolicyScore, chosen, single
from dise.select.judging.costs import Costs
from dise.select.judging.non_inferiority import loss_bound
from dise.select.judging.rules import CostRule
from dise.select.learning.committee import Committee, cross_fit

PENALTIES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
LEVEL = 0.05  # of the test


@dataclass(frozen=True)
class Trial:
    """What selectors fitted with penalty M and exponent α did on samples that they were not fitted to.

    Attributes:
        M: the penalty.
        alpha: the exponent.
        adequate: share of adequate results.
        nfe: mean NFE.
        lost: share of adequate results that is lost against the reference, at most: the upper bound of a one-sided
            95 % confidence interval, or of a higher one if several α are tried.
    """

    M: float
    alpha: float
    adequate: float
    nfe: float
    lost: float


@dataclass(frozen=True)
class PenaltyChoice:
    """The chosen M and α, the selector fitted with them, the trials, and what the reference did on the same samples.

    Attributes:
        M: the penalty.
        alpha: the exponent.
        passed: whether they passed the test, or are only the best there is.
        trials: of the penalties that were tried, for each α the largest first.
        reference: the last candidate alone.
        selector: the committee whose members made the trial of M.
    """

    M: float
    alpha: float
    passed: bool
    trials: tuple[Trial, ...]
    reference: Trial
    selector: Committee = field(compare=False)


def choose_penalty(
    costs: Costs,
    network: Callable[[], nn.Module],
    *,
    penalties: Sequence[float] = PENALTIES,
    alphas: Sequence[float] | None = None,
    tolerance: float = 1e-3,
    budget: float = 0.5,
    folds: int = 4,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> PenaltyChoice:
    """Choose M by a test on samples that the selectors were not fitted to, and fit the selector.

    The larger M, the dearer a wrong answer, the safer and slower the selector. So penalties are tested from the
    largest down, until the first that is not certain, at the level of 5 %, to lose at most `tolerance` against the
    reference (a paired test of non-inferiority, `loss_bound`). The smallest before it is chosen, if its NFE is within
    the budget. As their order does not depend on the samples, the level holds for the choice, too: fixed-sequence
    testing, as in `calibrate`. Of several α each is tested so, at its share of the 5 %, and the cheapest of what
    passes is chosen. The selector is the committee of `cross_fit`, so what is used is what was tested,
    up to the number of its members; `calibrate` gives a guarantee without that reservation.

    If nothing passes within the budget, all penalties are tried, and the one of the smallest `lost` among those
    within the budget is taken; if none is, the cheapest. Without a single difference between selector and reference
    the test needs 2.71 / tolerance samples, 2,703 by default.

    Args:
        costs: of held-out samples; the last candidate is the reference.
        network: makes an untrained network as `CostSelector.fit` takes it.
        penalties: values of M to try.
        alphas: values of α to try; default: the one of the costs.
        tolerance: share of adequate results that may be lost against the reference; default: 0.1 points.
        budget: largest NFE, as a part of the reference's.
        folds: parts of the samples, see `cross_fit`.
        seed: of the parts and the fits. It leaves torch's global generator alone.
        log: gets a line a trial.

    Raises:
        ValueError: no penalties or exponents, an M not above the largest price, fewer than three folds, or fewer
            samples than folds.
    """
    exponents = (costs.rule.alpha,) if alphas is None else tuple(alphas)
    for name, values in (("penalties", penalties), ("alphas", exponents)):
        if not values:
            raise ValueError(f"{name}: expected at least one, got none")
    _ = costs.with_penalty(min(penalties)).cost  # tells now if it is too small, not when its turn comes
    alone = single(costs, len(costs.candidates) - 1)
    test = partial(_trial, reference=alone, confidence=1 - LEVEL / len(exponents))
    reference = test(costs.rule, alone)
    tried: list[tuple[Trial, Committee]] = []
    passing: list[tuple[Trial, Committee]] = []
    for alpha in exponents:
        best, certain = None, True
        for M in sorted(penalties, reverse=True):
            some = costs.with_penalty(M, alpha)
            committee, choice = cross_fit(some, network, folds=folds, seed=seed)
            trial = test(some.rule, chosen("not seen", costs, choice))
            log(_line(trial, reference, several=len(exponents) > 1))
            tried.append((trial, committee))
            certain = certain and trial.lost <= tolerance
            if certain and trial.nfe <= budget * reference.nfe:
                best = tried[-1]
            if best and not certain:
                break
        passing += [best] if best else []
    if passing:
        trial, committee = min(passing, key=lambda pair: pair[0].nfe)
    else:
        trial, committee = _best_there_is(tried, budget * reference.nfe)
        log(f"no M is certain to lose at most {tolerance:g} within the budget: M = {trial.M:g} is the best there is")
    return PenaltyChoice(trial.M, trial.alpha, bool(passing), tuple(trial for trial, _ in tried), reference, committee)


def _line(trial: Trial, reference: Trial, *, several: bool) -> str:
    return (
        f"M = {trial.M:g}{f', α = {trial.alpha:g}' if several else ''}: {trial.adequate:.4f} adequate (reference "
        f"{reference.adequate:.4f}, at most {trial.lost:.4f} lost), NFE {trial.nfe:.2f}"
    )


def _best_there_is(tried: Sequence[tuple[Trial, Committee]], budget: float) -> tuple[Trial, Committee]:
    affordable = [pair for pair in tried if pair[0].nfe <= budget]
    if not affordable:
        return min(tried, key=lambda pair: pair[0].nfe)
    # of equals the smallest M, which is tried last
    return min(reversed(affordable), key=lambda pair: pair[0].lost)


def _trial(rule: CostRule, score: PolicyScore, *, reference: PolicyScore, confidence: float) -> Trial:
    lost = loss_bound(reference.adequate.bool(), score.adequate.bool(), confidence=confidence)
    return Trial(rule.M, rule.alpha, score.accuracy, score.mean_nfe, lost)
