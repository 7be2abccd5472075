"""Losses of a policy's outputs against the reference's. A guarantee bounds their mean, the risk.

A loss is a function (output, reference's output, target) → [n] with values in [0, 1], one per sample; the target is
None where the data have none. An output that is not finite where the reference's is has a loss of 1, whatever the
function.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from dise.integrate.annotations import Float, Shaped
from dise.integrate.argument_types import checked_arguments
from dise.select.judging.rules import CostRule
from dise.select.model.finite import difference, has_nan, non_finite_loss
from dise.select.model.logits import are_labels, class_logits, predicted_class

Risk = Callable[[Tensor, Tensor, Any], Tensor]
Outputs = Shaped[Tensor, "n *C"]  # of one shape with the reference's


def check_risk(risk: object) -> None:
    """Raise a TypeError unless it can be called with outputs: a function or an instance, no class."""
    if not callable(risk) or isinstance(risk, type):
        raise TypeError(f"risk: expected a function such as disagreement or OutputDeviation(0.03), got {risk!r}")


@checked_arguments
def losses(risk: Risk, output: Outputs, reference: Outputs, target: Any) -> Shaped[Tensor, " n"]:
    """[n] losses by `risk`, with 1 where an output is not finite and the reference's is.

    Where the reference's output has a NaN, a loss that is NaN counts as 1.

    Raises:
        ValueError: outputs of different shapes; losses of another shape, or outside of [0, 1]; a risk that fails on
            data without targets.
    """
    lost = non_finite_loss(output, reference)
    try:
        values: Tensor = risk(output, reference, target)
    except (TypeError, AttributeError) as error:
        if target is not None:
            raise
        raise ValueError(
            f"risk: {risk_name(risk)} fails without targets ({error}); expected data (x, target), got x alone"
        ) from error
    if not isinstance(values, Tensor):
        raise TypeError(f"risk: expected a tensor with a loss in [0, 1] per sample, got {values!r}")
    if values.shape != lost.shape:
        raise ValueError(
            f"risk: expected a loss in [0, 1] per sample, got {tuple(values.shape)} values for {len(lost)}"
        )
    values = values.masked_fill(lost | (values.isnan() & has_nan(reference)), 1)
    if not ((values >= 0) & (values <= 1)).all():
        extremes = f"{float(values.min())} to {float(values.max())}"
        raise ValueError(f"risk: expected a loss in [0, 1] per sample, got {extremes}")
    return values


def risk_name(risk: Risk) -> str:
    """What a risk is called in reports, with what it measures."""
    if risk is disagreement:
        return "disagreement (the predicted class is another)"
    if risk is lost_accuracy:
        return "lost_accuracy (the label is no longer predicted)"
    if isinstance(risk, ProbabilityShift | OutputDeviation):
        return f"{type(risk).__name__} ({risk.event})"
    return f"{getattr(risk, '__name__', type(risk).__name__)} (the mean of a loss of your own)"


@checked_arguments
def disagreement(output: Outputs, reference: Outputs, target: Any) -> Shaped[Tensor, " n"]:
    """[n] 1 where the predicted class differs from the reference's, else 0; needs no labels.

    NaN predicts no class: if only one of the two has a NaN, they differ; if both have, they do not.
    """
    nan, reference_nan = has_nan(output), has_nan(reference)
    differs = (predicted_class(output) != predicted_class(reference)) & ~(nan & reference_nan)
    return (differs | non_finite_loss(output, reference) | (nan != reference_nan)).double()


@checked_arguments
def lost_accuracy(output: Outputs, reference: Outputs, target: Any) -> Shaped[Tensor, " n"]:
    """[n] 1 where the predicted class is not the label [n] and the reference's is, else 0; NaN predicts no class.

    Raises:
        ValueError: no labels, or others than one per sample of 0, …, C − 1.
    """
    classes = class_logits(reference).shape[1]
    if not are_labels(target, len(reference), classes):
        got = f"those of shape {tuple(target.shape)}" if isinstance(target, Tensor) else repr(target)
        raise ValueError(
            f"risk: lost_accuracy needs labels; expected data (x, label) with one of 0 to {classes - 1} per sample, "
            f"got {got} as labels"
        )
    labels: Tensor = target
    wrong = (predicted_class(output) != labels) | non_finite_loss(output, reference)
    right = (predicted_class(reference) == labels) & ~has_nan(reference)
    return (wrong & right).double()


@checked_arguments
@dataclass(frozen=True)
class ProbabilityShift:
    """Loss of 1 where a probability differs from the reference's by more than τ, else 0; needs no labels.

    A measure over all samples, such as the area under the ROC curve, has no loss per sample; this loss bounds the
    changes of probabilities that such a measure depends on.

    Args:
        tau: τ, in (0, 1).

    Raises:
        ValueError: τ out of range.
    """

    tau: float

    def __post_init__(self) -> None:
        if not 0 < self.tau < 1:
            raise ValueError(f"tau: expected a number between 0 and 1, got {self.tau!r}")

    @property
    def event(self) -> str:
        """What a loss of 1 means."""
        return f"a probability changes by more than {self.tau:g}"

    @checked_arguments
    def __call__(self, output: Outputs, reference: Outputs, target: Any) -> Shaped[Tensor, " n"]:
        """[n] loss by the largest change of a probability, for logits [n, C], or one per sample, [n] or [n, 1]."""
        p, q = (class_logits(logits).double().softmax(1) for logits in (output, reference))
        small = difference(p, q).abs().amax(1) <= self.tau  # False for NaN
        return (~small | non_finite_loss(output, reference)).double()


@checked_arguments
@dataclass(frozen=True)
class OutputDeviation:
    """Loss of 1 where an output differs from the reference's by more than a tolerance, else 0; for any outputs.

    Args:
        tolerance: largest root mean square of a sample's differences, in the unit of the outputs; positive.

    Raises:
        ValueError: a tolerance that is not a positive number.
    """

    tolerance: float

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < float("inf"):
            raise ValueError(f"tolerance: expected a positive number, got {self.tolerance!r}")

    @classmethod
    @checked_arguments
    def of_decibels(cls, decibels: float, *, span: float) -> Self:
        """The loss of outputs whose peak signal-to-noise ratio to the reference's is below `decibels`.

        Args:
            decibels: 20 log10(span / root mean square difference).
            span: of the outputs' values, e.g. 2 for pixels in [−1, 1].
        """
        if not 0 < span < float("inf"):
            raise ValueError(f"span: expected a positive number, got {span!r}")
        return cls(span / 10 ** (decibels / 20))

    @property
    def event(self) -> str:
        """What a loss of 1 means."""
        return f"the outputs' root mean square change is more than {self.tolerance:g}"

    @checked_arguments
    def __call__(self, output: Outputs, reference: Outputs, target: Any) -> Shaped[Tensor, " n"]:
        """[n] loss for outputs [n, ...]."""
        distance = difference(output, reference).abs().double().reshape(len(output), -1).square().mean(1).sqrt()
        return (~(distance <= self.tolerance)).double()  # 1 for NaN


@checked_arguments
class LogProbDeviation(OutputDeviation):
    """Loss of 1 where a log-density differs from the reference's by more than a tolerance, in nats, else 0.

    Args:
        tolerance: largest difference.
    """

    @property
    def event(self) -> str:
        """What a loss of 1 means."""
        return f"log p changes by more than {self.tolerance:g} nats"


@checked_arguments
@dataclass(frozen=True)
class RiskCost(CostRule):
    """Eq. 4 with a loss instead of labels: a candidate is adequate where its loss against the last candidate is 0.

    Args:
        risk: (output, reference's output, target) → [n] losses in [0, 1].
    """

    risk: Risk = field(default=disagreement, kw_only=True)

    def error(self, output: Shaped[Tensor, "N K ..."], target: Any) -> Float[Tensor, "N K"]:
        """[N, K] losses of outputs [N, K, ...] against those of the last candidate."""
        columns = output.unbind(1)
        return torch.stack([losses(self.risk, column, columns[-1], target) for column in columns], 1).float()

    def adequate(self, error: Tensor) -> Tensor:
        """[N, K] bool, whether the loss is 0."""
        return error == 0

    def price(self, delta: Tensor, error: Tensor) -> Tensor:
        """[N, K] Δ."""
        return delta
