"""A random end of the integration in training (Ghosh et al., 2020)."""

import torch
from torch import Tensor

from dise.integrate.argument_types import checked_arguments
from dise.regularize.regularizer import NoRegularizer


@checked_arguments
class RandomEndTime(NoRegularizer):
    """R = 0: in training the span ends at a random time instead, t1 ~ U(t1 − width, t1 + width) (STEER).

        steer = RandomEndTime(0.25)
        solution = block.solve(h0, t1=steer.end(block.t0, block.t1))

    Args:
        width: largest distance from t1, positive and less than the span.
        generator: of the random numbers; default: torch's global one.

    Raises:
        ValueError: width is not positive and finite.

    Source: Ghosh, Behl, Dupont, Torr, Namboodiri, STEER: Simple Temporal Regularization for Neural ODEs, 2020.
    """

    def __init__(self, width: float, *, generator: torch.Generator | None = None) -> None:
        if not 0 < width < float("inf"):
            raise ValueError(f"width: expected a positive number, got {width!r}")
        self.width, self.generator = width, generator

    def end(self, t0: float | Tensor, t1: float | Tensor, number: int | None = None) -> float | Tensor:
        """A random end for all samples of a batch, a number; or a tensor [number] with one for each.

        Raises:
            ValueError: the span is not longer than the width.
        """
        span = torch.as_tensor(t1, dtype=torch.float64) - torch.as_tensor(t0, dtype=torch.float64)
        if not bool((span.abs() > self.width).all()):
            raise ValueError(f"width: expected less than the span, {float(span.abs().min()):g}, got {self.width:g}")
        device = None if self.generator is None else self.generator.device
        drawn = torch.rand(number or 1, generator=self.generator, dtype=torch.float64, device=device)
        moved = (2 * drawn - 1) * self.width
        return t1 + (float(moved) if number is None else moved.to(span.device))

    def __repr__(self) -> str:
        return f"RandomEndTime({self.width:g})"
