"""How much longer or shorter the next step is: a rule from this step's error, and the last's."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dise.integrate.value import Value, check_above, check_from_zero

_SMALLEST = 1e-10  # keeps 0^(−1/order), and its gradient, out of the graph
_SMALLEST_BEFORE = 1e-4  # FACOLD's in Hairer and Wanner's DOPRI5: an error of almost nothing says nothing of the next


@dataclass(frozen=True, kw_only=True)
class IController(Value):
    """The elementary (I) controller: dt_next = dt · safety · ratio^(−1/order).

    The ratio is the scaled error estimate, 1 where a step is just good enough. A step after an accepted one is never
    shorter.

    Args:
        safety: factor on the step that would just pass, in (0, 1).
        shrink: a step after a rejected one is at least this times as long, in (0, 1).
        grow: a step is at most this times as long as the last, more than 1.

    Raises:
        ValueError: an argument out of its range.

    Source: Hairer, Nørsett, Wanner, II.4, Eq. 4.12 and 4.13, which recommend numbers of this size; the defaults and the
    exponent are those of torchdiffeq.
    """

    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0

    def __post_init__(self) -> None:
        for name in ("safety", "shrink"):
            check_above(name, getattr(self, name), 0, 1)
        check_above("grow", self.grow, 1)

    def factor(self, ratio: Tensor, before: Tensor, accept: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """How much longer the next step is, and what to remember.

        Args:
            ratio: [n] scaled error of this step; NaN or infinite where f was not finite.
            before: [n] what was remembered; 1 at the start.
            accept: [n] bool.
            order: power of dt with which the ratio falls.

        Returns:
            [n] factor and [n] memory.
        """
        factor = self._limited(ratio.clamp(min=_SMALLEST) ** (-1 / order))
        return torch.where(accept, factor.clamp(min=1), factor), before

    def _limited(self, factor: Tensor) -> Tensor:
        """With the safety factor, within the limits; the shortest step where f was NaN."""
        return (factor * self.safety).nan_to_num(nan=self.shrink).clamp(self.shrink, self.grow)


ELEMENTARY = IController()


@dataclass(frozen=True, kw_only=True)
class PIController(IController):
    """The proportional-integral (PI) controller, which also looks at how the error changed.

    After an accepted step dt_next = dt · safety · ratio^(−(integral + proportional)/q) · before^(proportional/q), with
    the order q and the ratio `before` of the accepted step before. After a rejected step it is the elementary
    controller, and what it remembers stays. Steps change more smoothly than with `IController` and fewer are rejected:
    it saves evaluations where stiffness limits the step, and may cost some elsewhere, for smaller errors.

    Args:
        proportional, integral: coefficients, at least 0 and greater than 0.
        safety, shrink, grow: as of `IController`; `shrink` also limits a step after an accepted one.

    Source: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.2, Eq. 2.43c, after Gustafsson 1991, whose
    numbers, 0.7/order and 0.4/order, are the defaults; the treatment of rejected steps is that of Hairer's DOPRI5.
    """

    proportional: float = 0.4
    integral: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_from_zero("proportional", self.proportional)
        check_above("integral", self.integral, 0)

    def factor(self, ratio: Tensor, before: Tensor, accept: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """As of `IController`."""
        size = ratio.clamp(min=_SMALLEST)
        both = size ** (-(self.integral + self.proportional) / order) * before ** (self.proportional / order)
        factor = torch.where(accept, both, size ** (-1 / order))
        memory = torch.where(accept, ratio.clamp(min=_SMALLEST_BEFORE), before)
        return self._limited(factor), memory
