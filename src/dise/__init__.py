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
from dise.select import (
    ClassificationCost,
    Costs,
    CostSelector,
    Dynamic,
    PooledNetwork,
    collect_costs,
    diagnose,
    run_candidates,
)

__all__ = [
    "L1",
    "L2",
    "RK4",
    "Adaptive",
    "ButcherTableau",
    "ClassificationCost",
    "CostSelector",
    "Costs",
    "Dopri5",
    "Dynamic",
    "ErrorEstimate",
    "Euler",
    "FixedStep",
    "Integrator",
    "KineticEnergy",
    "NeuralODE",
    "NoRegularizer",
    "PooledNetwork",
    "RawErrorEstimate",
    "Regularizer",
    "RungeKutta",
    "Solution",
    "SolveError",
    "Status",
    "Step",
    "collect_costs",
    "diagnose",
    "run_candidates",
    "solve",
]
__version__ = "0.1.0"
