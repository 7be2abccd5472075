"""Regularizers R for training: loss = task loss + λ·R (Eq. 3).

All are called in the same way, and none needs an evaluation of f of its own. What a regularizer needs from the solver
is its `accumulate`, an argument of `dise.solve`:

    regularizer = KineticEnergy()
    solution = block.solve(h0, accumulate=regularizer.accumulate)
    loss = task_loss + weight * regularizer(solution, block.f)
"""

from dise.regularize.error_estimate import ErrorEstimate, UnscaledErrorEstimate
from dise.regularize.kinetic_energy import KineticEnergy
from dise.regularize.parameter_norms import L1, L2
from dise.regularize.regularizer import NoRegularizer, Regularizer

__all__ = ["L1", "L2", "ErrorEstimate", "KineticEnergy", "NoRegularizer", "Regularizer", "UnscaledErrorEstimate"]
