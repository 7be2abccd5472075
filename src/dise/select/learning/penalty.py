"""Choice of the penalty M, and of α, of Eq. 4 and 5 on held-out data; the paper tunes them by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from dise.integrate.argument_types import checked_arguments
from dise.integrate.value import check_above
from dise.select.judging.baselines import PolicyScore, assignment_score, single_candidate
from dise.select.judging.costs import Costs
from dise.select.judging.non_inferiority import loss_bound
from dise.select.judging.rules import CostRule
from dise.select.learning.committee import Committee, cross_fit

PENALTIES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
LEVEL = 0.05  # level of the test


@dataclass(frozen=True)
class PenaltyTrial:
    """Results of selectors with penalty M and exponent α on samples that they were not fitted to.

    Attributes:
        M: penalty.
        alpha: exponent.
        adequate: share of adequate results.
        nfe: mean NFE.
        loss_bound: upper bound on the share of adequate results that is lost to the reference, with a one-sided
            confidence of 95 %, or more if several α are tried.
    """

    M: float
    alpha: float
    adequate: float
    nfe: float
    loss_bound: float


@dataclass(frozen=True)
class PenaltyChoice:
    """Chosen M and α, with the selector fitted to them and the trials.

    Attributes:
        M: penalty.
        alpha: exponent.
        passed: whether they passed the test within the budget; otherwise they are only the best of the trials.
        trials: trials in their order: for each α the largest M first.
        reference: results of the last candidate alone, on the same samples.
        selector: the committee of the trial of M and α.
    """

    M: float
    alpha: float
    passed: bool
    trials: tuple[PenaltyTrial, ...]
    reference: PenaltyTrial
    selector: Committee = field(compare=False)


_Fitted = tuple[PenaltyTrial, Committee]


@checked_arguments
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

    The larger M, the more expensive a wrong answer, so the safer and slower the selector. Penalties are tested from the
    largest to the smallest, until one cannot be shown, at the level of 5 %, to lose at most `tolerance` to the
    reference (a paired test of non-inferiority, `loss_bound`). The smallest one that passed is chosen, if its NFE is
    within the budget. Their order does not depend on the samples, so the level also holds for the choice: fixed-
    sequence testing, as in `calibrate`. Several α share the 5 % equally, and the cheapest pair that passes is chosen.
    The selector is the committee of `cross_fit`, so the tested selectors differ from it only by their number of
    members; `calibrate` gives a guarantee without that reservation.

    If no penalty passes within the budget, all are tried; the choice is the one with the smallest `loss_bound` within
    the budget, or the cheapest if none is within it. If selector and reference never differ, the test needs
    2.71 / tolerance samples, by default 2,703.

    Args:
        costs: costs on held-out samples; the last candidate is the reference.
        network: returns an untrained network for `CostSelector.fit`.
        penalties: values of M to try.
        alphas: values of α to try; default: that of the costs.
        tolerance: share of adequate results that may be lost to the reference; default: 0.1 percentage points.
        budget: largest NFE, relative to the reference's.
        folds: number of folds of the samples, see `cross_fit`.
        seed: of the folds and the fits; torch's global generator is not used.
        log: called with a line per trial.

    Raises:
        ValueError: no penalties or exponents, an M not above the largest price, a tolerance not in (0, 1), fewer than
            three folds, or fewer samples than folds.
    """
    exponents = (costs.rule.alpha,) if alphas is None else tuple(alphas)
    for name, values in (("penalties", penalties), ("alphas", exponents)):
        if not values:
            raise ValueError(f"{name}: expected at least one, got none")
    check_above("tolerance", tolerance, 0, 1)
    check_above("budget", budget, 0)
    _ = costs.with_penalty(min(penalties)).cost  # raises an error at once if the smallest penalty is too small
    alone = single_candidate(costs, len(costs.candidates) - 1)
    test = partial(_trial, reference=alone, confidence=1 - LEVEL / len(exponents))
    reference = test(costs.rule, alone)
    most = budget * reference.nfe

    def fit(M: float, alpha: float) -> _Fitted:
        some = costs.with_penalty(M, alpha)
        committee, choice = cross_fit(some, network, folds=folds, seed=seed)
        trial = test(some.rule, assignment_score("cross-fit", costs, choice))
        log(_line(trial, reference, several=len(exponents) > 1))
        return trial, committee

    sequences = [_test_in_order(partial(fit, alpha=alpha), penalties, tolerance, most) for alpha in exponents]
    tried = [pair for pairs, _ in sequences for pair in pairs]
    passing = [best for _, best in sequences if best]
    trial, committee = min(passing, key=lambda pair: pair[0].nfe) if passing else _best_trial(tried, most)
    if not passing:
        log(f"no M passed at a loss of {tolerance:g} within the budget: M = {trial.M:g} is the best of the trials")
    return PenaltyChoice(trial.M, trial.alpha, bool(passing), tuple(trial for trial, _ in tried), reference, committee)


def _test_in_order(
    fit: Callable[[float], _Fitted], penalties: Sequence[float], tolerance: float, budget: float
) -> tuple[list[_Fitted], _Fitted | None]:
    """The trials, the largest penalty first, and the last one that passed within the budget."""
    tried: list[_Fitted] = []
    best, certain = None, True
    for M in sorted(penalties, reverse=True):
        trial, committee = fit(M)
        tried.append((trial, committee))
        certain = certain and trial.loss_bound <= tolerance
        if certain and trial.nfe <= budget:
            best = tried[-1]
        if best and not certain:
            break
    return tried, best


def _line(trial: PenaltyTrial, reference: PenaltyTrial, *, several: bool) -> str:
    return (
        f"M = {trial.M:g}{f', α = {trial.alpha:g}' if several else ''}: {trial.adequate:.4f} adequate (reference "
        f"{reference.adequate:.4f}, at most {trial.loss_bound:.4f} lost), NFE {trial.nfe:.2f}"
    )


def _best_trial(tried: Sequence[_Fitted], budget: float) -> _Fitted:
    affordable = [pair for pair in tried if pair[0].nfe <= budget]
    if not affordable:
        return min(tried, key=lambda pair: pair[0].nfe)
    # prefer the smallest of equally good penalties, which is tried last
    return min(reversed(affordable), key=lambda pair: pair[0].loss_bound)


def _trial(rule: CostRule, score: PolicyScore, *, reference: PolicyScore, confidence: float) -> PenaltyTrial:
    bound = loss_bound(reference.adequate.bool(), score.adequate.bool(), confidence=confidence)
    return PenaltyTrial(rule.M, rule.alpha, score.accuracy, score.mean_nfe, bound)
