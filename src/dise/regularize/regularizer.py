"""The interface of all regularizers, and the one that adds nothing."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dise.integrate import Solution, Step
from dise.integrate.annotations import Float


class Regularizer:
    """R of a solution and its vector field.

    `accumulate` is what the regularizer needs from the solver: a function of an attempted `Step` of n samples → [n],
    which `dise.solve` sums over accepted steps. None: nothing.
    """

    accumulate: Callable[[Step], Tensor] | None = None

    def __call__(self, solution: Solution | None, f: nn.Module) -> Float[Tensor, ""]:
        """R, a scalar [].

        Args:
            solution: of a solve with `accumulate=self.accumulate`. Regularizers of parameters alone accept None.
            f: the vector field, whose parameters are θ.

        Raises:
            ValueError: the solution lacks what the regularizer needs.
        """
        raise NotImplementedError

    def _mean_accumulated(self, solution: Solution | None) -> Tensor:
        """[] mean over the batch of `solution.accumulated`."""
        if solution is None or solution.accumulated is None:
            name = type(self).__name__
            raise ValueError(f"solution: {name} needs a solve made with accumulate={name}().accumulate, got none")
        return solution.accumulated.mean()


class NoRegularizer(Regularizer):
    """R = 0."""

    def __call__(self, solution: Solution | None, f: nn.Module) -> Float[Tensor, ""]:
        """0, on the device of f's parameters."""
        return next(f.parameters(), torch.zeros(())).new_zeros(())
