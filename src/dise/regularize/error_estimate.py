"""The solver's error estimate as a regularizer: scaled by the tolerances or not, or times the length of the step."""

import torch
from torch import Tensor, nn

from dise.integrate import Solution, Step
from dise.integrate.annotations import Float
from dise.integrate.clock import real_dtype
from dise.regularize.regularizer import SampleRegularizer


class ErrorEstimate(SampleRegularizer):
    """R = Σ over accepted steps of the embedded error estimate (Eq. 2), mean over the batch or its sum.

    The summand is the scaled ratio that the step-size controller compares with 1: the RMS over features of
    err / (atol + rtol·max(|h|, |h_next|)). Unscaled norms are so small that λ of the paper's size has no effect
    (`UnscaledErrorEstimate`).

    Args:
        reduce: "mean", or "sum" as Eq. 2 has it: a sum over the samples of a batch.
    """

    def __call__(self, solution: Solution | None, f: nn.Module) -> Float[Tensor, ""]:
        """`solution.error`, its mean or sum over the batch, a scalar [].

        Raises:
            ValueError: no solution, or one of an integrator without an embedded error estimate.
        """
        if solution is None:
            raise ValueError("solution: ErrorEstimate needs the solve's Solution, got None")
        if solution.error.isnan().any():
            raise ValueError("solution: its integrator embeds no error estimate; train with one that does, e.g. Dopri5")
        return self._reduced(solution.error)


class UnscaledErrorEstimate(SampleRegularizer):
    """R = Σ over accepted steps of ‖err‖₂, not scaled by the tolerances: the summand of Eq. 2 read literally."""

    @staticmethod
    def accumulate(step: Step) -> Float[Tensor, " n"]:
        """[n] the step's ‖err‖₂.

        Raises:
            ValueError: the method embeds no error estimate.
        """
        norm: Tensor = torch.linalg.vector_norm(step.error(), dim=1)
        return norm


class WeightedErrorEstimate(SampleRegularizer):
    """R_E = Σ over accepted steps of ‖err‖₂·|dt|: long steps with large errors cost the most.

    Source: Pal, Ma, Shah, Rackauckas, Opening the Blackbox: Accelerating Neural Differential Equations by Regularizing
    Internal Solver Heuristics, 2021 (ERNODE).
    """

    @staticmethod
    def accumulate(step: Step) -> Float[Tensor, " n"]:
        """[n] the step's ‖err‖₂·|dt|.

        Raises:
            ValueError: the method embeds no error estimate.
        """
        return UnscaledErrorEstimate.accumulate(step) * step.dt.abs().to(real_dtype(step.y))
