"""Confidence of a classifier, and the rule that accepts confident answers."""

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from dise.integrate.annotations import Bool, Float
from dise.integrate.argument_types import checked_arguments
from dise.integrate.problem.state import State
from dise.select.model.logits import class_logits, log_probabilities


@checked_arguments
@dataclass(frozen=True, eq=False)
class Confidence:
    """Acceptance rule for a `Cascade` of a classifier: accept if the confidence of the answer reaches a threshold.

    The rule uses the model's head without owning it: no parameter is registered a second time.

    Args:
        head: h(t1) [n, ...] → logits [n, C]; or one logit per sample, [n] or [n, 1], of a yes-or-no question. It is
            evaluated once more for each answer that is judged.
        threshold: smallest confidence to accept, at least 0.
        measure: "top", the largest probability; "margin", the difference of the two largest probabilities; "entropy",
            1 − entropy / log C; these three are at most 1. Or "gap", the difference of the two largest logits: an error
            that changes each logit by less than half the gap cannot change the prediction.

    Raises:
        ValueError: a threshold out of range, or an unknown measure.
    """

    head: nn.Module
    threshold: float
    measure: Literal["top", "margin", "entropy", "gap"] = field(default="top", kw_only=True)

    def __post_init__(self) -> None:
        if self.measure not in ("top", "margin", "entropy", "gap"):
            raise ValueError(f"measure: expected 'top', 'margin', 'entropy' or 'gap', got {self.measure!r}")
        if not (self.threshold >= 0 and (self.threshold <= 1 or self.measure == "gap")):
            largest = "" if self.measure == "gap" else ", at most 1"
            raise ValueError(f"threshold: expected a number of at least 0{largest}, got {self.threshold!r}")

    def score(self, h: State) -> Float[Tensor, " n"]:
        """[n] confidence in the states' answers."""
        return confidence(self.head(h), self.measure)

    def __call__(self, h: State) -> Bool[Tensor, " n"]:
        """[n] bool, whether to accept states [n, ...] at t1."""
        return self.score(h) >= self.threshold


def confidence(logits: Tensor, measure: str = "top") -> Float[Tensor, " n"]:
    """[n] confidence of logits [n, C], or of one logit per sample, [n] or [n, 1]; see `Confidence` for the measures."""
    logits = class_logits(logits)
    if measure == "gap":
        largest, second = logits.topk(2, dim=1).values.unbind(1)
        return largest - second
    log_p = log_probabilities(logits)
    if measure == "entropy":
        entropy = -(log_p.exp() * log_p).sum(1)
        return 1 - entropy / math.log(log_p.shape[1])
    largest, second = log_p.exp().topk(2, dim=1).values.unbind(1)
    return largest if measure == "top" else largest - second
