"""Paired comparisons of accuracies."""

from collections.abc import Sequence

import torch
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


def mcnemar_of_errors(first: Sequence[int], second: Sequence[int], samples: int) -> dict[str, float]:
    """`mcnemar` of two classifiers given by the indices of the samples that each gets wrong."""
    right = torch.ones(2, samples, dtype=torch.bool)
    right[0, list(first)] = False
    right[1, list(second)] = False
    return mcnemar(right[0], right[1])
