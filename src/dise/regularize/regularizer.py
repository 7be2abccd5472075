"""The interface of all regularizers, and the one that adds nothing."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from dise.integrate import Solution
from dise.integrate.annotations import Float

Reduce = Literal["mean", "sum"]


class Regularizer:
    """R of a solution and its vector field.

    `accumulate` is what the regularizer needs from the solver: a function of an attempted `Step` of n samples → [n],
    which `dise.solve` sums over accepted steps. None: nothing.
    """

    accumulate: Callable[..., Tensor] | None = None

    def __call__(self, solution: Solution | None, f: nn.Module) -> Float[Tensor, ""]:
        """R, a scalar [].

        Args:
            solution: of a solve with `accumulate=self.accumulate`. Regularizers of parameters alone accept None.
            f: the vector field, whose parameters are θ.

        Raises:
            ValueError: the solution lacks what the regularizer needs.
        """
        raise NotImplementedError


class SampleRegularizer(Regularizer):
    """R of a number per sample that the solver accumulated.

    Args:
        reduce: "mean" over the batch, or the "sum" that the paper's Eq. 2 has. λ of a sum is λ of the mean divided by
            the number of samples in a batch.

    Raises:
        ValueError: another way to reduce.
    """

    def __init__(self, *, reduce: Reduce = "mean") -> None:
        if reduce not in ("mean", "sum"):
            raise ValueError(f"reduce: expected 'mean' or 'sum', got {reduce!r}")
        self.reduce = reduce

    def __call__(self, solution: Solution | None, f: nn.Module) -> Float[Tensor, ""]:
        """The mean or the sum over the batch, a scalar [].

        Raises:
            ValueError: the solve was made without this regularizer's `accumulate`.
        """
        if solution is None or solution.accumulated is None:
            name = type(self).__name__
            raise ValueError(f"solution: {name} needs a solve made with accumulate={name}().accumulate, got none")
        return self._reduced(solution.accumulated)

    def _reduced(self, values: Tensor) -> Tensor:
        return values.mean() if self.reduce == "mean" else values.sum()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(reduce={self.reduce!r})"


class NoRegularizer(Regularizer):
    """R = 0."""

    def __call__(self, solution: Solution | None, f: nn.Module) -> Float[Tensor, ""]:
        """0, on the device of f's parameters."""
        return next(f.parameters(), torch.zeros(())).new_zeros(())
