"""Higher derivatives of the path (Kelly et al., 2020)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dise.integrate.annotations import Float
from dise.integrate.problem.field import BoundField, call
from dise.regularize.path_integral import PathIntegral, squared_norm
from dise.regularize.regularizer import Reduce


class TaylorSpeed(PathIntegral):
    """R_K = ∫ ‖d^K h/dt^K‖² dt along the path: a method of order K − 1 with few steps is exact where it is 0.

    Args:
        order: K, 2 or 3; K = 1 is `KineticEnergy`.
        reduce: "mean" or "sum" over the batch.

    Raises:
        ValueError: another order.

    Source: Kelly, Bettencourt, Johnson, Duvenaud, Learning Differential Equations that are Easy to Solve, 2020
    (TayNODE), there divided by the number of features.
    """

    def __init__(self, order: int = 2, *, reduce: Reduce = "mean") -> None:
        super().__init__(reduce=reduce)
        if order not in (2, 3) or isinstance(order, bool):
            raise ValueError(f"order: expected 2 or 3, got {order!r}; order 1 is KineticEnergy")
        self.order = order

    def integrand(self, field: BoundField, t: Float[Tensor, " n"], y: Tensor) -> Float[Tensor, " n"]:
        """[n] ‖d^K h/dt^K‖²."""
        derivative: Callable[[Tensor, Tensor], Tensor] = partial(call, field)
        for _ in range(self.order - 1):
            derivative = _along_path(derivative, field)
        return squared_norm(derivative(t, y))

    def __repr__(self) -> str:
        return f"TaylorSpeed(order={self.order}, reduce={self.reduce!r})"


def _along_path(g: Callable[[Tensor, Tensor], Tensor], f: BoundField) -> Callable[[Tensor, Tensor], Tensor]:
    """dg(t, h(t))/dt = ∂g/∂t + (∂g/∂h) f, as a function of (t, h)."""
    return lambda t, y: torch.func.jvp(g, (t, y), (torch.ones_like(t), f(t, y)))[1]
