"""Choosing the penalty M of Eq. 4 and 5 on held-out data, where the paper tunes it by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from dise.select.committee import Committee, cross_fit
from dise.select.cost import Costs
from dise.select.evaluate import PolicyScore, chosen, single
from dise.select.paired import loss_bound

PENALTIES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)


@dataclass(frozen=True)
class Trial:
    """What selectors fitted with penalty M did on samples that they were not fitted to.

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
    """The chosen M, the selector fitted with it, the trials, and what the reference did on the same samples.

    Attributes:
        M: the penalty.
        passed: whether M passed the test, or is only the best there is.
        trials: of the penalties that were tried, the largest first.
        reference: the last candidate alone.
        selector: the committee whose members made the trial of M.
    """

    M: float
    passed: bool
    trials: tuple[Trial, ...]
    reference: Trial
    selector: Committee = field(compare=False)


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
    """Choose M by a test on samples that the selectors were not fitted to, and fit the selector.

    The larger M, the dearer a wrong answer, the safer and slower the selector. So penalties are tested from the
    largest down, until the first that is not certain, at the level of 5 %, to lose at most `tolerance` against the
    reference (a paired test of non-inferiority, `loss_bound`). The smallest before it is chosen, if its NFE is within
    the budget. As their order does not depend on the samples, the level holds for the choice, too: fixed-sequence
    testing, as in `calibrate`. The selector is the committee of `cross_fit`, so what is used is what was tested,
    up to the number of its members; `calibrate` gives a guarantee without that reservation.

    If nothing passes within the budget, all penalties are tried, and the one of the smallest `lost` among those
    within the budget is taken; if none is, the cheapest. Without a single difference between selector and reference
    the test needs 2.71 / tolerance samples, 2,703 by default.

    Args:
        costs: of held-out samples; the last candidate is the reference.
        network: makes an untrained network as `CostSelector.fit` takes it.
        penalties: values of M to try.
        tolerance: share of adequate results that may be lost against the reference; default: 0.1 points.
        budget: largest NFE, as a part of the reference's.
        folds: parts of the samples, see `cross_fit`.
        seed: of the parts and the fits. It leaves torch's global generator alone.
        log: gets a line a trial.

    Raises:
        ValueError: no penalties, one not above the largest price, fewer than three folds, or fewer samples than folds.
    """
    if not penalties:
        raise ValueError("penalties: expected at least one, got none")
    _ = costs.with_penalty(min(penalties)).cost  # tells now if it is too small, not when its turn comes
    alone = single(costs, len(costs.candidates) - 1)
    reference = _trial(costs.rule.M, alone, alone)
    tried: list[tuple[Trial, Committee]] = []
    best, certain = None, True
    for M in sorted(penalties, reverse=True):
        committee, choice = cross_fit(costs.with_penalty(M), network, folds=folds, seed=seed)
        trial = _trial(M, chosen("not seen", costs, choice), alone)
        log(
            f"M = {M:g}: {trial.adequate:.4f} adequate (reference {reference.adequate:.4f}, at most {trial.lost:.4f} "
            f"lost), NFE {trial.nfe:.2f}"
        )
        tried.append((trial, committee))
        certain = certain and trial.lost <= tolerance
        if certain and trial.nfe <= budget * reference.nfe:
            best = tried[-1]
        if best and not certain:
            break
    passed = best is not None
    trial, committee = best or _best_there_is(tried, budget * reference.nfe)
    if not passed:
        log(f"no M is certain to lose at most {tolerance:g} within the budget: M = {trial.M:g} is the best there is")
    return PenaltyChoice(trial.M, passed, tuple(trial for trial, _ in tried), reference, committee)


def _best_there_is(tried: Sequence[tuple[Trial, Committee]], budget: float) -> tuple[Trial, Committee]:
    affordable = [pair for pair in tried if pair[0].nfe <= budget]
    if not affordable:
        return min(tried, key=lambda pair: pair[0].nfe)
    # of equals the smallest M, which is tried last
    return min(reversed(affordable), key=lambda pair: pair[0].lost)


def _trial(M: float, score: PolicyScore, reference: PolicyScore) -> Trial:
    return Trial(M, score.accuracy, score.mean_nfe, loss_bound(reference.adequate.bool(), score.adequate.bool()))
