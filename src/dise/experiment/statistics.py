"""Paired comparisons of accuracies."""

from scipy.stats import binomtest
from torch import Tensor


def mcnemar(first: Tensor, second: Tensor) -> dict[str, float]:
    """Exact McNemar test of two classifiers on the same samples.

    Args:
        first, second: [N] bool, whether each classifier is right.

    Returns:
        `only_first`, `only_second`: samples that one alone gets right; `difference`: accuracy of the second minus
        the first; `p`: two-sided p-value of no difference.

    Source: McNemar 1947, with the exact binomial null distribution.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p = binomtest(only_first, discordant).pvalue if discordant else 1.0
    difference = (only_second - only_first) / len(first)
    return {"only_first": only_first, "only_second": only_second, "difference": difference, "p": float(p)}
