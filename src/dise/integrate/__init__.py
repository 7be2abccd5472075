"""How an initial value problem is solved."""

from dise.integrate.backsolve import Backsolve
from dise.integrate.events import Event
from dise.integrate.integrators import (
    RK4,
    RK38,
    Adaptive,
    Bosh3,
    Dopri5,
    Dopri8,
    Euler,
    Fehlberg2,
    FixedStep,
    Heun,
    HeunEuler,
    Integrator,
    Midpoint,
    Ralston,
    RungeKutta,
    Tsit5,
)
from dise.integrate.solution import Solution, SolveError, State, Status
from dise.integrate.solve import solve
from dise.integrate.step import Step
from dise.integrate.tableau import ButcherTableau

__all__ = [
    "RK4",
    "RK38",
    "Adaptive",
    "Backsolve",
    "Bosh3",
    "ButcherTableau",
    "Dopri5",
    "Dopri8",
    "Euler",
    "Event",
    "Fehlberg2",
    "FixedStep",
    "Heun",
    "HeunEuler",
    "Integrator",
    "Midpoint",
    "Ralston",
    "RungeKutta",
    "Solution",
    "SolveError",
    "State",
    "Status",
    "Step",
    "Tsit5",
    "solve",
]
