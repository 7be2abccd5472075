"""dise: neural ODEs that are fast at inference."""

from dise.integrate import (
    RK4,
    Adaptive,
    ButcherTableau,
    Dopri5,
    Euler,
    FixedStep,
    Integrator,
    RungeKutta,
    Solution,
    SolveError,
    Status,
    Step,
    solve,
)
from dise.nn import NeuralODE
from dise.regularize import L1, L2, ErrorEstimate, KineticEnergy, NoRegularizer, RawErrorEstimate, Regularizer

__all__ = [
    "L1",
    "L2",
    "RK4",
    "Adaptive",
    "ButcherTableau",
    "Dopri5",
    "ErrorEstimate",
    "Euler",
    "FixedStep",
    "Integrator",
    "KineticEnergy",
    "NeuralODE",
    "NoRegularizer",
    "RawErrorEstimate",
    "Regularizer",
    "RungeKutta",
    "Solution",
    "SolveError",
    "Status",
    "Step",
    "solve",
]
__version__ = "0.1.0"
