"""The solver's error estimate as a regularizer, scaled by the tolerances or not."""

import torch
from torch import Tensor, nn

from dise.integrate import Solution, Step
from dise.integrate.annotations import Float
from dise.regularize.regularizer import Regularizer


class ErrorEstimate(Regularizer):
    """R = Σ over accepted steps of the embedded error estimate, mean over the batch (Eq. 2).

    The summand is the scaled ratio that the step-size controller compares with 1: the RMS over features of
    err / (atol + rtol·max(|h|, |h_next|)). Unscaled norms are so small that λ of the paper's size has no effect
    (`UnscaledErrorEstimate`).
    """

    def __call__(self, solution: Solution | None, f: nn.Module) -> Float[Tensor, ""]:
        """Mean over the batch of `solution.error`, a scalar [].

        Raises:
            ValueError: no solution, or one of an integrator without an embedded error estimate.
        """
        if solution is None:
            raise ValueError("solution: ErrorEstimate needs the solve's Solution, got None")
        if solution.error.isnan().any():
            raise ValueError("solution: its integrator embeds no error estimate; train with one that does, e.g. Dopri5")
        return solution.error.mean()


class UnscaledErrorEstimate(Regularizer):
    """R = Σ over accepted steps of ‖err‖₂, not scaled by the tolerances, mean over the batch: Eq. 2 read literally."""

    @staticmethod
    def accumulate(step: Step) -> Float[Tensor, " n"]:
        """[n] the step's ‖err‖₂.

        Raises:
            ValueError: the method embeds no error estimate.
        """
        norm: Tensor = torch.linalg.vector_norm(step.error(), dim=1)
        return norm

    def __call__(self, solution: Solution | None, f: nn.Module) -> Float[Tensor, ""]:
        """Mean over the batch, a scalar []."""
        return self._mean_accumulated(solution)
