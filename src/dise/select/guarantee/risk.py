"""What is lost by an answer that is not the reference's: what a guarantee bounds.

A risk is the mean of a loss in [0, 1] a sample, called as (output, reference's output, target) → [n].
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dise.select.judging.rules import CostRule
from dise.select.model.logits import predicted, two_classes

Risk = Callable[[Tensor, Tensor, Tensor], Tensor]


def disagreement(output: Tensor, reference: Tensor, target: Tensor) -> Tensor:
    """[n] 1 where logits predict another class than the reference's, else 0; needs no labels."""
    return (predicted(output) != predicted(reference)).double()


def lost_accuracy(output: Tensor, reference: Tensor, target: Tensor) -> Tensor:
    """[n] 1 where logits do not predict the label [n] and the reference's do, else 0."""
    return ((predicted(output) != target) & (predicted(reference) == target)).double()


@dataclass(frozen=True)
class ProbabilityShift:
    """1 where a probability is off the reference's by more than τ, else 0; needs no labels.

    Of a measure over all samples, such as the area under the ROC curve, there is no loss a sample; this bounds what can
    change it.

    Args:
        tau: τ, in (0, 1).

    Raises:
        ValueError: τ out of range.
    """

    tau: float

    def __post_init__(self) -> None:
        if not 0 < self.tau < 1:
            raise ValueError(f"tau: expected a number between 0 and 1, got {self.tau!r}")

    def __call__(self, output: Tensor, reference: Tensor, target: Tensor) -> Tensor:
        """[n] of logits [n, C], or of one logit a sample, [n] or [n, 1]: the largest change of a probability."""
        p, q = (two_classes(logits).double().softmax(1) for logits in (output, reference))
        return ((p - q).abs().amax(1) > self.tau).double()


@dataclass(frozen=True)
class OutputDeviation:
    """1 where an output is off the reference's by more than a tolerance, else 0; for outputs of any kind.

    Args:
        tolerance: of the root mean square over a sample's numbers, in the outputs' unit; positive.

    Raises:
        ValueError: a tolerance that is no positive number.
    """

    tolerance: float

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < float("inf"):
            raise ValueError(f"tolerance: expected a positive number, got {self.tolerance!r}")

    def __call__(self, output: Tensor, reference: Tensor, target: Tensor) -> Tensor:
        """[n] of outputs [n, ...]; NaN deviates."""
        distance = (output - reference).double().reshape(len(output), -1).square().mean(1).sqrt()
        return (~(distance <= self.tolerance)).double()


@dataclass(frozen=True)
class RiskCost(CostRule):
    """Eq. 4 with a risk instead of labels: a candidate is adequate where it loses nothing against the last one.

    Args:
        risk: (output, reference's output, target) → [n] losses in [0, 1].
    """

    risk: Risk = field(default=disagreement, kw_only=True)

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """[N, K] loss of each candidate's outputs [N, K, ...] against the last one's."""
        columns = output.unbind(1)
        return torch.stack([self.risk(column, columns[-1], target) for column in columns], 1).float()

    def adequate(self, error: Tensor) -> Tensor:
        """[N, K] whether nothing is lost."""
        return error == 0

    def price(self, delta: Tensor, error: Tensor) -> Tensor:
        """Δ."""
        return delta
