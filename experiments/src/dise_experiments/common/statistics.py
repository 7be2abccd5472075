"""Paired comparisons of accuracies and of areas under the ROC curve."""

from collections.abc import Sequence

import torch
from scipy.stats import binomtest
from torch import Tensor


def mcnemar(first: Tensor, second: Tensor) -> dict[str, float]:
    """Exact McNemar test of two classifiers on the same samples.

    Args:
        first, second: [N] bool, whether each classifier is right.

    Returns:
        `only_first`, `only_second`: number of samples that this classifier alone gets right; `difference`: accuracy of
        the second minus that of the first; `p`: two-sided p-value of no difference.

    Source: McNemar 1947, with the exact binomial null distribution.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p = binomtest(only_first, discordant).pvalue if discordant else 1.0
    difference = (only_second - only_first) / len(first)
    return {"only_first": only_first, "only_second": only_second, "difference": difference, "p": float(p)}


def mcnemar_of_errors(first: Sequence[int], second: Sequence[int], samples: int) -> dict[str, float]:
    """`mcnemar` from the indices of the samples that each of two classifiers gets wrong."""
    right = torch.ones(2, samples, dtype=torch.bool)
    right[0, list(first)] = False
    right[1, list(second)] = False
    return mcnemar(right[0], right[1])


def bootstrap_auroc(scores: Tensor, labels: Tensor, *, resamples: int = 2000, seed: int = 0) -> Tensor:
    """Areas under the ROC curve of P classifiers on the same bootstrap resamples, for paired comparisons.

    Each area is that of torchmetrics' `binary_auroc` on the drawn samples. Here a sample drawn k times has weight k, so
    all resamples share one sort; torchmetrics takes no weights, and 2,000 calls of it take several times as long.

    Args:
        scores: [P, N], larger for more likely; or [P, S, N] with S pooled scores per sample: a sample is drawn with all
            of its scores.
        labels: [N], 0 or 1, both of which occur.
        resamples: R, drawn with replacement.
        seed: seed of the draws.

    Returns:
        [R, P] in double precision; NaN where a resample has one class only.

    Source: Efron, Bootstrap methods, 1979.
    """
    generator = torch.Generator().manual_seed(seed)
    number = scores.shape[-1]
    columns = []
    for part in torch.randint(number, (resamples, number), generator=generator).split(_CHUNK):
        drawn = torch.zeros(len(part), number, dtype=torch.float64)
        drawn.scatter_add_(1, part, torch.ones_like(drawn))
        columns.append(torch.stack([_weighted_auroc(row, labels, drawn) for row in scores], dim=1))
    return torch.cat(columns)


_CHUNK = 250  # resamples held in memory at once


def _weighted_auroc(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """[R] areas of scores [N] or [S, N] with the weights [R, N] of samples."""
    pooled = scores.numel() // len(labels)
    labels, weights = labels.repeat(pooled), weights.repeat(1, pooled)
    values, place = scores.flatten().unique(return_inverse=True)
    empty = weights.new_zeros(len(weights), len(values))
    positive = empty.index_add(1, place, weights * (labels > 0))
    negative = empty.index_add(1, place, weights * (labels <= 0))
    below = negative.cumsum(1) - negative / 2
    return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))


def interval(draws: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The central interval that holds a share `level` of bootstrap draws [R]; NaN draws are left out."""
    tail = (1 - level) / 2
    low, high = draws[draws.isfinite()].quantile(torch.tensor([tail, 1 - tail], dtype=draws.dtype)).tolist()
    return low, high
