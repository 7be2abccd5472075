"""Regularizers R for training: L = L_task + λ·R (Eq. 3).

All have one call signature. What a regularizer needs from the solver it says by `accumulate`, which is given to
`solve`; no regularizer costs an evaluation of f:

    regularizer = ErrorEstimate()
    solution = block.solve(h0, accumulate=regularizer.accumulate)
    loss = task_loss + weight * regularizer(solution, block.f)
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from dise.integrate import Solution, Step


class Regularizer:
    """R of a solution and its vector field."""

    accumulate: Callable[[Step], Tensor] | None = None

    def __call__(self, solution: Solution | None, f: nn.Module) -> Tensor:
        """R, a scalar.

        Args:
            solution: the solve, made with `accumulate=self.accumulate`. Those of parameters alone take None.
            f: the vector field, whose parameters are θ.
        """
        raise NotImplementedError

    def _accumulated(self, solution: Solution | None) -> Tensor:
        if solution is None or solution.accumulated is None:
            name = type(self).__name__
            raise ValueError(f"solution: {name} needs a solve made with accumulate={name}().accumulate, got none")
        return solution.accumulated.mean()


def _sum(terms: Iterable[Tensor]) -> Tensor:
    """Their sum; 0 if there are none."""
    values = list(terms)
    return torch.stack(values).sum() if values else torch.zeros(())


class NoRegularizer(Regularizer):
    """R = 0."""

    def __call__(self, solution: Solution | None, f: nn.Module) -> Tensor:
        """0."""
        return _sum(p.new_zeros(()) for p in f.parameters())


class L1(Regularizer):
    """R = ‖θ‖₁ of the vector field's parameters."""

    def __call__(self, solution: Solution | None, f: nn.Module) -> Tensor:
        """Σ |θ|."""
        return _sum(p.abs().sum() for p in f.parameters())


class L2(Regularizer):
    """R = ‖θ‖₂² of the vector field's parameters."""

    def __call__(self, solution: Solution | None, f: nn.Module) -> Tensor:
        """Σ θ²."""
        return _sum(p.square().sum() for p in f.parameters())


class KineticEnergy(Regularizer):
    """R = ∫ ‖f(h(t), t; θ)‖² dt, mean over the batch (Eq. 1; Finlay et al. 2020).

    The integral is computed by the solver's own quadrature, dt Σ b_i ‖k_i‖², on stages it has anyway.
    """

    @staticmethod
    def accumulate(step: Step) -> Tensor:
        """[n] the step's share of the integral."""
        weighted = [
            weight * (stage * stage.conj()).real.sum(1)
            for weight, stage in zip(step.tableau.b, step.stages, strict=True)
            if weight != 0
        ]
        return step.dt.abs() * torch.stack(weighted).sum(0)

    def __call__(self, solution: Solution | None, f: nn.Module) -> Tensor:
        """Mean over the batch."""
        return self._accumulated(solution)


class ErrorEstimate(Regularizer):
    """R = Σ over accepted steps of DOPRI's error estimate, mean over the batch (Eq. 2).

    The summand is the scaled ratio that the step-size controller tests against 1: the RMS over features of
    err / (atol + rtol·max(|h|, |h_next|)). With raw norms λ of the paper's size is not felt (`UnscaledErrorEstimate`).
    """

    def __call__(self, solution: Solution | None, f: nn.Module) -> Tensor:
        """Mean over the batch of `solution.error`."""
        if solution is None:
            raise ValueError("solution: ErrorEstimate needs the solve's Solution, got None")
        if solution.error.isnan().any():
            raise ValueError("solution: its integrator embeds no error estimate; train with one that does, e.g. Dopri5")
        return solution.error.mean()


class UnscaledErrorEstimate(Regularizer):
    """Eq. 2 read literally: Σ over accepted steps of ‖err‖₂, not scaled by the tolerance; mean over the batch."""

    @staticmethod
    def accumulate(step: Step) -> Tensor:
        """[n] the step's ‖err‖₂."""
        return torch.linalg.vector_norm(step.error(), dim=1)

    def __call__(self, solution: Solution | None, f: nn.Module) -> Tensor:
        """Mean over the batch."""
        return self._accumulated(solution)
