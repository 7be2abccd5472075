"""Step-size controllers: the factor from this step's length to the next one's, from the errors of the last steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dise.integrate.tracing import known_all
from dise.integrate.value import Value, check_above, check_from_zero, keep_plain

_SMALLEST = 1e-10  # lower bound of the error ratio: 0^(−1/order) is infinite, and so is its gradient
_SMALLEST_BEFORE = 1e-4  # lower bound of the remembered ratio; FACOLD in Hairer and Wanner's DOPRI5


@dataclass(frozen=True, kw_only=True)
class IController(Value):
    """The elementary (I) controller: dt_next = dt · safety · ratio^(−1/order).

    The ratio is the scaled error estimate; a step is accepted if it is at most 1. A step after an accepted one is never
    shorter.

    Args:
        safety: factor on the step whose ratio would be 1, in (0, 1).
        shrink: smallest factor from a rejected step to the next one, in (0, 1).
        grow: largest factor from a step to the next one, greater than 1.

    Raises:
        ValueError: an argument out of its range.

    Source: Hairer, Nørsett, Wanner, II.4, Eq. 4.12 and 4.13; the defaults and the exponent are torchdiffeq's.
    """

    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0

    def __post_init__(self) -> None:
        keep_plain(self)
        for name in ("safety", "shrink"):
            check_above(name, getattr(self, name), 0, 1)
        check_above("grow", self.grow, 1)

    def factor(
        self, ratio: Tensor, before: Tensor | None, accept: Tensor, order: int | Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The factor from this step's length to the next one's, and the memory for the next call.

        Args:
            ratio: [n] scaled error of this step; NaN or infinite where f was not finite.
            before: [n] memory of the last call, 1 at the start; None for this class itself, which has none.
            accept: [n] bool.
            order: power of dt with which the ratio decreases; [n] if samples differ.

        Returns:
            [n] factor, and [n] memory or None.
        """
        factor = self._limited(ratio.clamp(min=_SMALLEST).pow(-1 / order))
        return torch.maximum(factor, accept), before  # a bool is 1 or 0: at least 1 after an accepted step

    def _limited(self, factor: Tensor) -> Tensor:
        """The factor times `safety`, within the limits; `shrink` where f was NaN."""
        return (factor * self.safety).nan_to_num(nan=self.shrink).clamp(self.shrink, self.grow)


ELEMENTARY = IController()


@dataclass(frozen=True, kw_only=True)
class PIController(IController):
    """The proportional-integral (PI) controller, which also uses the change of the error.

    After an accepted step dt_next = dt · safety · ratio^(−(integral + proportional)/q) · before^(proportional/q), where
    q is the order and `before` the ratio of the previous accepted step. After a rejected step it acts like the
    elementary controller and keeps its memory. Steps change more smoothly than with `IController`, and fewer are
    rejected: this saves evaluations of f where stiffness limits the step; elsewhere it may need more of them, with
    smaller errors.

    Args:
        proportional, integral: coefficients, at least 0 and greater than 0.
        safety, shrink, grow: see `IController`; `shrink` also limits the step after an accepted one.

    Source: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.2, Eq. 2.43c, after Gustafsson 1991, whose
    exponents 0.7/order and 0.4/order are the defaults; rejected steps are treated as in Hairer's DOPRI5.
    """

    proportional: float = 0.4
    integral: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_from_zero("proportional", self.proportional)
        check_above("integral", self.integral, 0)

    def factor(
        self, ratio: Tensor, before: Tensor | None, accept: Tensor, order: int | Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """See `IController`."""
        before = torch.ones_like(ratio) if before is None else before
        size = ratio.clamp(min=_SMALLEST)
        both = size ** (-(self.integral + self.proportional) / order) * before ** (self.proportional / order)
        factor = both if known_all(accept) else torch.where(accept, both, size ** (-1 / order))
        memory = torch.where(accept, ratio.clamp(min=_SMALLEST_BEFORE), before)
        return self._limited(factor), memory
