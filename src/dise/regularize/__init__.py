"""Regularizers R for training: loss = task loss + λ·R (Eq. 3).

All are called in the same way. What a regularizer needs from the solver is its `accumulate`, an argument of
`dise.solve`. `JacobianNorm` and `TaylorSpeed` evaluate f in each step, the others do not:

    regularizer = KineticEnergy()
    solution = block.solve(h0, accumulate=regularizer.accumulate)
    loss = task_loss + weight * regularizer(solution, block.f)
"""

from dise.regularize.error_estimate import ErrorEstimate, UnscaledErrorEstimate, WeightedErrorEstimate
from dise.regularize.jacobian_norm import JacobianNorm
from dise.regularize.kinetic_energy import KineticEnergy
from dise.regularize.parameter_norms import L1, L2
from dise.regularize.random_end_time import RandomEndTime
from dise.regularize.regularizer import NoRegularizer, Regularizer
from dise.regularize.stiffness import StiffnessEstimate
from dise.regularize.taylor_speed import TaylorSpeed

__all__ = [
    "L1",
    "L2",
    "ErrorEstimate",
    "JacobianNorm",
    "KineticEnergy",
    "NoRegularizer",
    "RandomEndTime",
    "Regularizer",
    "StiffnessEstimate",
    "TaylorSpeed",
    "UnscaledErrorEstimate",
    "WeightedErrorEstimate",
]
