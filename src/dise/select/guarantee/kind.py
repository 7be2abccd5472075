"""What a model's outputs are (classes, a yes-or-no question, numbers), and the risk that suits them."""

from enum import Enum

import torch
from torch import Tensor

from dise.nn import BlockSolve
from dise.select.guarantee.risk import (
    ProbabilityShift,
    Risk,
    check_risk,
    disagreement,
    losses,
    lost_accuracy,
    risk_name,
)
from dise.select.model.finite import has_nan
from dise.select.model.logits import are_labels, are_logits, class_logits, predicted_class


class Kind(Enum):
    """What outputs are."""

    CLASSES = "logits of classes"
    YES_OR_NO = "one logit per sample, of a yes-or-no question"
    NUMBERS = "numbers"


def kind_of(output: Tensor, target: object, *, is_state: bool = False) -> Kind | None:
    """What outputs are, by their shape and the targets; None if it cannot be told.

    Outputs [n, C ≥ 2] with labels 0, …, C − 1, with distributions [n, C], or without targets are logits of classes,
    unless they are the state at t1 itself. Outputs [n] or [n, 1] with targets that are 0 or 1 are those of a yes-or-no
    question; without targets they may be anything.

    Args:
        output: [n, ...].
        target: of the same samples, or None.
        is_state: whether the outputs are the states at t1 themselves.
    """
    if not are_logits(output):
        return Kind.NUMBERS
    several = output.ndim == 2 and output.shape[1] > 1
    if not isinstance(target, Tensor):
        return Kind.CLASSES if several and not is_state else None
    if labels_of(output, target) is None:
        return Kind.NUMBERS
    return Kind.CLASSES if several else Kind.YES_OR_NO


def is_state(output: Tensor, solve: BlockSolve) -> bool:
    """Whether a model's outputs are the states at t1 of its block, except for samples that failed."""
    y = solve.solution.y
    if not isinstance(y, Tensor) or y.shape != output.shape:
        return False
    return bool(((y.to(output.device) == output) | output.isnan()).all())


def labels_of(output: Tensor, target: object) -> Tensor | None:
    """[n] labels from targets [n] or [n, 1], or the most probable class of distributions [n, C]; None: no labels."""
    if not isinstance(target, Tensor) or not are_logits(output):
        return None
    classes = class_logits(output[:1]).shape[1]
    flat = target.reshape(len(output)) if target.shape == (len(output), 1) else target
    if are_labels(flat, len(output), classes):
        return flat.long()
    if target.shape == output.shape and output.ndim == 2 and output.shape[1] > 1 and not target.is_complex():
        total = target.double().sum(1)
        if (target >= 0).all() and torch.allclose(total, torch.ones_like(total), atol=1e-3):
            return target.argmax(1)
    return None


def suitable_risk(risk: Risk | None, output: Tensor, target: object, *, is_state: bool = False) -> Risk:
    """The risk for outputs of the reference: the given one after a check, or `disagreement` for classes.

    Args:
        risk: as given; None: choose.
        output, target, is_state: see `kind_of`.

    Raises:
        ValueError: no risk is given and the kind of the outputs cannot be told or has no risk without further choices;
            or the given one needs labels or another kind.
    """
    kind = kind_of(output, target, is_state=is_state)
    if risk is None:
        if kind in (Kind.CLASSES, Kind.YES_OR_NO):
            return disagreement
        told = "cannot be told from a regression" if kind is None else "are no logits of classes"
        raise ValueError(
            f"risk: give one, since the outputs {tuple(output.shape)} {told} by their shape and "
            f"{_targets_in_words(output, target)}: "
            "OutputDeviation(tolerance) for numbers, disagreement or ProbabilityShift(tau) for logits (one per sample: "
            "yes or no)"
        )
    check_risk(risk)
    of_classes = risk in (disagreement, lost_accuracy) or isinstance(risk, ProbabilityShift)
    one_output = are_logits(output) and (output.ndim == 1 or output.shape[1] == 1)
    if of_classes and (not are_logits(output) or (one_output and kind is Kind.NUMBERS)):
        raise ValueError(
            f"risk: {risk_name(risk)} is for logits, but outputs {tuple(output.shape)} with these targets are those of "
            "a regression; expected OutputDeviation(tolerance), targets that are 0 or 1 (yes or no), or none"
        )
    losses(risk, output, output, target)  # so that a risk that needs targets raises its error before any setting is run
    return risk


def _targets_in_words(output: Tensor, target: object) -> str:
    """What the targets are, with the range of whole numbers that are not 0, …, C − 1, such as labels from 1 to C."""
    if not isinstance(target, Tensor):
        return "the absence of targets"
    whole = target.ndim == 1 and len(target) > 0 and not (target.is_floating_point() or target.is_complex())
    if not whole or not are_logits(output) or output.shape[1:] in ((), (1,)):
        return "the targets"
    return f"the targets, {int(target.min())} to {int(target.max())}, while labels are 0 to {output.shape[1] - 1}"


def score_of(output: Tensor, target: object) -> tuple[str, float] | None:
    """Name and value of what targets say of outputs: accuracy, or root mean square error; None without targets."""
    if not isinstance(target, Tensor) or len(output) == 0:
        return None
    labels = labels_of(output, target)
    if labels is not None:
        return "accuracy", float(((predicted_class(output) == labels) & ~has_nan(output)).double().mean())
    target = target.reshape(output.shape) if target.numel() == output.numel() else target
    if target.shape != output.shape or output.is_complex() or target.is_complex():
        return None
    return "root mean square error", float((output.double() - target.double()).square().mean().sqrt())
