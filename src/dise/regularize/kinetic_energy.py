"""Kinetic energy of a solution (Finlay et al., How to Train Your Neural ODE, 2020)."""

import torch
from torch import Tensor

from dise.integrate import Step
from dise.integrate.annotations import Float
from dise.regularize.regularizer import SampleRegularizer


class KineticEnergy(SampleRegularizer):
    """R = ∫ ‖f(h(t), t; θ)‖² dt (Eq. 1; Finlay et al., How to Train Your Neural ODE, 2020).

    The solver's own quadrature computes the integral, dt Σ b_i ‖k_i‖², from the stages of its steps.
    """

    @staticmethod
    def accumulate(step: Step) -> Float[Tensor, " n"]:
        """[n] contribution of the step to the integral."""
        weighted = [
            weight * (stage * stage.conj()).real.sum(1)
            for weight, stage in zip(step.tableau.b, step.stages, strict=True)
            if weight != 0
        ]
        return step.dt.abs() * torch.stack(weighted).sum(0)
