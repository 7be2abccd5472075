"""Logits [n, C] of two or more classes, or one logit per sample, [n] or [n, 1], of a yes-or-no question."""

import torch
from torch import Tensor


def class_logits(logits: Tensor) -> Tensor:
    """Logits of two or more classes: [n, C ≥ 2] unchanged; one logit per sample becomes [n, 2], with 0 for "no"."""
    if logits.ndim == 2 and logits.shape[1] > 1:
        return logits
    yes = logits.reshape(len(logits), 1)
    return torch.cat([torch.zeros_like(yes), yes], dim=1)


def predicted_class(logits: Tensor) -> Tensor:
    """[n] index of the class that logits predict; for one logit per sample, 1 where it is above 0."""
    return class_logits(logits).argmax(-1)
