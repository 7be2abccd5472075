"""Cost rules of the paper: Eq. 4 and 5."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dise.integrate.annotations import Bool, Float, Num, Shaped
from dise.integrate.argument_types import checked_arguments
from dise.integrate.value import check_tensor
from dise.select.model.logits import are_labels


@dataclass(frozen=True)
class CostRule(ABC):
    """Rule for the cost of a candidate on a sample: price^α where it is adequate, M^α where it is not.

    Args:
        alpha: exponent, positive.
        M: penalty, larger than any price.
    """

    alpha: float = 0.3
    M: float = 1000.0

    def __post_init__(self) -> None:
        for name in ("alpha", "M"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}: expected a positive number, got {value!r}")

    @abstractmethod
    def error(self, output: Shaped[Tensor, "N K ..."], target: Shaped[Tensor, "N ..."] | None) -> Float[Tensor, "N K"]:
        """[N, K] task error Γ of outputs [N, K, ...] for targets [N, ...], None without any; smaller is better."""

    @abstractmethod
    def adequate(self, error: Num[Tensor, "N K"]) -> Bool[Tensor, "N K"]:
        """[N, K] bool, whether errors [N, K] are small enough."""

    @abstractmethod
    def price(self, delta: Num[Tensor, "N K"], error: Num[Tensor, "N K"]) -> Num[Tensor, "N K"]:
        """[N, K] cost of an adequate candidate, before the exponent."""

    @checked_arguments
    def __call__(self, delta: Num[Tensor, "N K"], error: Num[Tensor, "N K"]) -> Num[Tensor, "N K"]:
        """Costs [N, K].

        Args:
            delta: [N, K] Δ, the candidates' NFE or measured time.
            error: [N, K] Γ.

        Raises:
            ValueError: M is at most the largest price, so an inadequate result would be cheaper than an adequate one.
        """
        adequate, price = self.adequate(error), self.price(delta, error).float()
        largest = float(price[adequate].max()) if adequate.any() else 0.0
        if largest >= self.M:
            raise ValueError(
                f"M: expected more than the largest price of an adequate result, {largest:g}, got {self.M:g}"
            )
        return torch.where(adequate, price, self.M) ** self.alpha


@checked_arguments
@dataclass(frozen=True)
class ClassificationCost(CostRule):
    """Eq. 4: Δ^α where the prediction is right, M^α where it is wrong."""

    @checked_arguments
    def error(self, output: Float[Tensor, "N K C"], target: Shaped[Tensor, "N ..."] | None) -> Float[Tensor, "N K"]:
        """[N, K] 1 where logits [N, K, C] do not predict the labels [N], else 0; NaN predicts nothing."""
        if output.shape[-1] < 2:
            raise ValueError("output: expected logits of two or more classes; BinaryCost is for one logit per sample")
        labels = _labels(target, self, output.shape[-1])
        return ((output.argmax(-1) != labels[:, None]) | output.isnan().any(-1)).float()

    def adequate(self, error: Num[Tensor, "N K"]) -> Bool[Tensor, "N K"]:
        """[N, K] whether the prediction is right."""
        return error == 0

    def price(self, delta: Num[Tensor, "N K"], error: Num[Tensor, "N K"]) -> Num[Tensor, "N K"]:
        """[N, K] Δ."""
        return delta


@checked_arguments
@dataclass(frozen=True)
class BinaryCost(ClassificationCost):
    """Eq. 4 for one logit per sample: the answer is yes if its probability is above the threshold.

    Args:
        threshold: in (0, 1). At 1/2 a rare class is hardly ever predicted; use its prevalence instead.
    """

    threshold: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold: expected a number between 0 and 1, got {self.threshold!r}")

    @checked_arguments
    def error(self, output: Float[Tensor, "N K *C"], target: Shaped[Tensor, "N ..."] | None) -> Float[Tensor, "N K"]:
        """[N, K] 1 where logits [N, K] or [N, K, 1] do not predict the answers [N], 0 or 1; NaN predicts nothing."""
        if output.shape[2:] not in ((), (1,)):
            raise ValueError(f"output: expected one logit per sample, [N, K] or [N, K, 1], got {tuple(output.shape)}")
        logits, answers = output.flatten(1), _labels(target, self, 2)
        return (((logits.sigmoid() > self.threshold) != (answers[:, None] > 0)) | logits.isnan()).float()


@checked_arguments
@dataclass(frozen=True)
class TaskErrorCost(CostRule):
    """Eq. 5: (Δ·Γ)^α where Γ ≤ β, M^α elsewhere. Mirrored, where larger is better: (Δ/Γ)^α where Γ ≥ β.

    Args:
        task_error: (output [N, K, ...], target [N, ...]) → Γ [N, K]. If smaller is better, Γ must be at least 0. For
            quantities that can be negative, such as a likelihood, which a coarse integrator can also overestimate, use
            the distance to the reference integrator's value. If larger is better, Γ may be any number.
        beta: β > 0, the largest (mirrored: smallest) Γ that is adequate.
        resolution: better values of Γ are replaced by this one; otherwise the price of the most expensive candidate
            goes to 0 as Γ → 0. If it equals β, NFE alone decides among adequate candidates.
        larger_is_better: True mirrors the equation.
    """

    task_error: Callable[[Tensor, Tensor], Tensor] = field(kw_only=True)
    beta: float = field(kw_only=True)
    resolution: float = field(kw_only=True)
    larger_is_better: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        worst, best = (self.beta, self.resolution) if self.larger_is_better else (self.resolution, self.beta)
        if not 0 < worst <= best < float("inf"):
            order = "beta <= resolution" if self.larger_is_better else "resolution <= beta"
            raise ValueError(
                f"beta, resolution: expected 0 < {order}, got beta={self.beta!r}, resolution={self.resolution!r}"
            )

    @checked_arguments
    def error(self, output: Shaped[Tensor, "N K ..."], target: Shaped[Tensor, "N ..."] | None) -> Float[Tensor, "N K"]:
        """[N, K] Γ, from `task_error`."""
        error = self.task_error(output, _given(target, self))
        check_tensor("task_error", error, "errors")
        if error.shape != output.shape[:2]:
            expected, got = (tuple(tensor.shape[:size]) for tensor, size in ((output, 2), (error, None)))
            raise ValueError(f"task_error: expected errors [N, K] = {expected}, got shape {got}")
        if not self.larger_is_better and (error < 0).any():
            raise ValueError(f"task_error: expected errors of at least 0, got {float(error[error < 0].min())}")
        return error

    def adequate(self, error: Num[Tensor, "N K"]) -> Bool[Tensor, "N K"]:
        """[N, K] Γ ≤ β, or Γ ≥ β if larger is better."""
        return error >= self.beta if self.larger_is_better else error <= self.beta

    def price(self, delta: Num[Tensor, "N K"], error: Num[Tensor, "N K"]) -> Num[Tensor, "N K"]:
        """[N, K] Δ·Γ, or Δ/Γ if larger is better; meaningless for inadequate candidates."""
        if self.larger_is_better:
            return delta / error.clamp(min=self.beta, max=self.resolution)
        return delta * error.clamp(min=self.resolution)


def _labels(target: Tensor | None, rule: CostRule, classes: int) -> Tensor:
    labels = _given(target, rule)
    if not are_labels(labels, len(labels), classes):
        got = f"shape {tuple(labels.shape)}" if labels.ndim != 1 else f"{labels.unique().tolist()[:20]}"
        raise ValueError(f"data: expected labels [N], whole numbers from 0 to {classes - 1}, got {got}")
    return labels


def _given(target: Tensor | None, rule: CostRule) -> Tensor:
    if target is None:
        raise ValueError(f"data: {type(rule).__name__} needs targets, expected batches (x, target), got x alone")
    return target
