"""How an initial value problem is solved."""

from dise.integrate.events import Event
from dise.integrate.integrators import RK4, Adaptive, Bosh3, Dopri5, Euler, FixedStep, Integrator, Midpoint, RungeKutta
from dise.integrate.solution import Solution, SolveError, State, Status
from dise.integrate.solve import solve
from dise.integrate.step import Step
from dise.integrate.tableau import ButcherTableau

__all__ = [
    "RK4",
    "Adaptive",
    "Bosh3",
    "ButcherTableau",
    "Dopri5",
    "Euler",
    "Event",
    "FixedStep",
    "Integrator",
    "Midpoint",
    "RungeKutta",
    "Solution",
    "SolveError",
    "State",
    "Status",
    "Step",
    "solve",
]
