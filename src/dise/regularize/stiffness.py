"""The solver's estimate of stiffness as a regularizer (Pal et al., 2021)."""

from functools import cache

import torch
from torch import Tensor

from dise.integrate import Step
from dise.integrate.annotations import Float
from dise.integrate.clock import real_dtype
from dise.integrate.runge_kutta.tableau import ButcherTableau, StageWeights
from dise.regularize.regularizer import SampleRegularizer


class StiffnessEstimate(SampleRegularizer):
    """R_S = Σ over accepted steps of ‖f(t', x) − f(t', y)‖ / ‖x − y‖, an estimate of the largest eigenvalue of ∂f/∂h.

    x and y are the states of the method's last two stages at one time t'. In Dopri5, Tsit5 and Dopri8 both are at the
    step's end, so the estimate costs no evaluation of f. A step whose two states are equal contributes 0.

    Sources: Pal, Ma, Shah, Rackauckas, Opening the Blackbox, 2021 (SRNODE); Hairer, Wanner, Solving Ordinary
    Differential Equations II, IV.2 (the estimate, in DOPRI5).
    """

    @staticmethod
    def accumulate(step: Step) -> Float[Tensor, " n"]:
        """[n] the step's estimate.

        Raises:
            ValueError: no two stages of the method are at the same time.
        """
        first, second, weights = _twin_stages(step.tableau)  # type: ignore[arg-type]
        terms = [weight * k for weight, k in zip(weights, step.stages, strict=True) if weight != 0]
        difference = torch.stack(terms).sum(0)
        apart = step.dt.abs().to(real_dtype(step.y)) * torch.linalg.vector_norm(difference, dim=1)
        change: Tensor = torch.linalg.vector_norm(step.stages[second] - step.stages[first], dim=1)
        equal = apart == 0  # 0/0 would give a gradient of NaN, even where another value is taken
        return torch.where(equal, 0, change / torch.where(equal, 1, apart))


@cache
def _twin_stages(tableau: StageWeights) -> tuple[int, int, tuple[float, ...]]:
    """The last two stages that are at one time in different states, and the difference of their rows of a."""
    if isinstance(tableau, ButcherTableau):
        rows = [row + (0.0,) * (tableau.stages - len(row)) for row in tableau.a]
        for second in reversed(range(1, tableau.stages)):
            for first in reversed(range(second)):
                weights = tuple(y - x for x, y in zip(rows[first], rows[second], strict=True))
                if tableau.c[first] == tableau.c[second] and any(weights):
                    return first, second, weights
    raise ValueError(
        "integrator: StiffnessEstimate needs a method with two stages at one time; use Dopri5, Tsit5 or Dopri8"
    )
