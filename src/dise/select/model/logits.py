"""Logits of two or more classes, or one logit per sample."""

import torch
from torch import Tensor


def two_classes(logits: Tensor) -> Tensor:
    """Logits [n, C ≥ 2]: as they are, or of one logit a sample, [n] or [n, 1], that of "no", 0, beside it."""
    if logits.ndim == 2 and logits.shape[1] > 1:
        return logits
    yes = logits.reshape(len(logits), 1)
    return torch.cat([torch.zeros_like(yes), yes], dim=1)


def predicted(logits: Tensor) -> Tensor:
    """[n] class of logits [n, C]; of one logit a sample, [n] or [n, 1], whether it is above 0."""
    return two_classes(logits).argmax(-1)
