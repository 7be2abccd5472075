"""How much a policy may lose against the reference, from results on the same samples."""

from math import sqrt
from statistics import NormalDist

from torch import Tensor


def loss_bound(reference: Tensor, policy: Tensor, *, confidence: float = 0.95) -> float:
    """Upper bound of a one-sided confidence interval of the share of adequate results that a policy loses.

    Source: Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, 1998. The bound is the smallest tolerance that the score test still rejects. Where a handful of samples
    differ the test keeps its level, which Wald's intervals do not: a true loss of 5 in 5,000 that is never made up for
    is passed by 4.0 % of the draws at a tolerance of as much, and would be by 12.5 % of them with Agresti and Min's.

    Args:
        reference, policy: [N] bool, whether each one's result is adequate.
        confidence: of the interval, in (0.5, 1).

    Raises:
        ValueError: no samples.
    """
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
    """The score statistic, about standard normal if `difference` is the true loss."""
    # a·p² + b·p + c = 0 for the probability p of `won` that is likeliest under that difference
    a = 2 * number
    b = (2 * number - lost + won) * difference - lost - won
    c = -won * difference * (1 - difference)
    p = (sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = number * (2 * p + difference * (1 - difference))
    surplus = lost - won - number * difference
    return surplus / sqrt(variance) if variance > 0 else 0.0
