"""Paired test of non-inferiority: an upper bound on the adequate results that a policy loses to the reference."""

from math import sqrt
from statistics import NormalDist

from torch import Tensor

from dise.integrate.annotations import Bool
from dise.integrate.argument_types import checked_arguments
from dise.integrate.value import check_above


@checked_arguments
def loss_bound(reference: Bool[Tensor, " N"], policy: Bool[Tensor, " N"], *, confidence: float = 0.95) -> float:
    """Upper bound of a one-sided confidence interval for the net share of adequate results that a policy loses.

    The bound is the smallest tolerance at which Tango's score test still rejects inferiority. The test keeps its level
    even if only a few samples differ, unlike Wald intervals: for a true loss of 5 in 5,000 without any gain, and a
    tolerance of as much, 4.0 % of random draws pass the test; with Agresti and Min's interval 12.5 % would.

    Source: Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, 1998.

    Args:
        reference, policy: [N] bool, whether the results of each are adequate.
        confidence: of the interval, in (0.5, 1).

    Raises:
        ValueError: no samples, different numbers of them, or a confidence out of range.
    """
    check_above("confidence", confidence, 0.5, 1)
    number = len(reference)
    if number == 0:
        raise ValueError("reference: expected at least one sample, got none")
    lost, won = int((reference & ~policy).sum()), int((policy & ~reference).sum())
    quantile = NormalDist().inv_cdf(confidence)
    low, high = (lost - won) / number, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        if _score(lost, won, number, middle) > -quantile:
            low = middle
        else:
            high = middle
    return high


def _score(lost: int, won: int, number: int, difference: float) -> float:
    """Score statistic, approximately standard normal if `difference` is the true loss."""
    # the maximum-likelihood probability p of `won` under that difference solves a·p² + b·p + c = 0
    a = 2 * number
    b = (2 * number - lost + won) * difference - lost - won
    c = -won * difference * (1 - difference)
    p = (sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = number * (2 * p + difference * (1 - difference))
    surplus = lost - won - number * difference
    return surplus / sqrt(variance) if variance > 0 else 0.0
