"""Logits [n, C] of two or more classes, or one logit per sample, [n] or [n, 1], of a yes-or-no question."""

import torch
from torch import Tensor


def class_logits(logits: Tensor) -> Tensor:
    """Logits of two or more classes: [n, C ≥ 2] unchanged; one logit per sample becomes [n, 2], with 0 for "no".

    Raises:
        ValueError: another shape, or whole numbers.
    """
    if logits.ndim == 2 and logits.shape[1] > 1 and logits.is_floating_point():
        return logits
    if not are_logits(logits):
        raise ValueError(
            f"output: expected logits [n, C], or [n] or [n, 1] of a yes-or-no question, got {logits.dtype} of shape "
            f"{tuple(logits.shape)}"
        )
    yes = logits.reshape(len(logits), 1)
    return torch.cat([torch.zeros_like(yes), yes], dim=1)


def are_logits(output: Tensor) -> bool:
    """Whether outputs have the shape and a dtype of logits."""
    shaped = output.ndim == 1 or (output.ndim == 2 and output.shape[1] > 0)
    return shaped and output.is_floating_point()


def are_labels(target: object, number: int, classes: int) -> bool:
    """Whether a target is a tensor [number] of whole numbers from 0 to `classes` − 1."""
    if not isinstance(target, Tensor) or target.shape != (number,) or target.is_complex():
        return False
    return bool(((target >= 0) & (target < classes) & (target == target.long())).all())


def log_probabilities(logits: Tensor) -> Tensor:
    """[n, C] log-probabilities of logits; at least −100, so that they are finite for classes excluded by −∞."""
    return class_logits(logits).log_softmax(1).clamp(min=-100)  # float32's smallest number is about exp(−103)


def predicted_class(logits: Tensor) -> Tensor:
    """[n] index of the class that logits predict; for one logit per sample, 1 where it is above 0."""
    return class_logits(logits).argmax(-1)
