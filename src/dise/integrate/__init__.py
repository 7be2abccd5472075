"""Solving initial value problems."""

from typing import TYPE_CHECKING

from dise.integrate.backsolve import Backsolve
from dise.integrate.exact import Exact
from dise.integrate.integrator import Integrator
from dise.integrate.integrators import (
    RK4,
    RK38,
    RKC1,
    Adaptive,
    Bosh3,
    Dopri5,
    Dopri8,
    Euler,
    Fehlberg2,
    FixedStep,
    Heun,
    HeunEuler,
    Midpoint,
    Ralston,
    RungeKutta,
    StepDoubling,
    Tsit5,
)
from dise.integrate.multistep import grids
from dise.integrate.multistep.grids import TimeGrid
from dise.integrate.options import SolveOptions
from dise.integrate.output.event_log import Events
from dise.integrate.output.events import Event, SteadyState
from dise.integrate.output.observers import Progress, Steps
from dise.integrate.problem.state import State
from dise.integrate.resume import resume
from dise.integrate.runge_kutta.step import Step
from dise.integrate.runge_kutta.tableau import ButcherTableau
from dise.integrate.solution import Solution, SolveError
from dise.integrate.solve import solve
from dise.integrate.status import Status
from dise.integrate.stepping.controllers import IController, PIController
from dise.integrate.stepping.statistics import Statistic
from dise.integrate.stepping.tolerance import max_norm, rms_norm
from dise.lazy import lazy_names

if TYPE_CHECKING:
    from dise.integrate.adams_method import Adams
    from dise.integrate.multistep.paths import Path
    from dise.integrate.multistep.table import MultistepTable
    from dise.integrate.multistep_method import Multistep
    from dise.integrate.one_step import StepResult, step

__all__ = [
    "RK4",
    "RK38",
    "RKC1",
    "Adams",
    "Adaptive",
    "Backsolve",
    "Bosh3",
    "ButcherTableau",
    "Dopri5",
    "Dopri8",
    "Euler",
    "Event",
    "Events",
    "Exact",
    "Fehlberg2",
    "FixedStep",
    "Heun",
    "HeunEuler",
    "IController",
    "Integrator",
    "Midpoint",
    "Multistep",
    "MultistepTable",
    "PIController",
    "Path",
    "Progress",
    "Ralston",
    "RungeKutta",
    "Solution",
    "SolveError",
    "SolveOptions",
    "State",
    "Statistic",
    "Status",
    "SteadyState",
    "Step",
    "StepDoubling",
    "StepResult",
    "Steps",
    "TimeGrid",
    "Tsit5",
    "grids",
    "max_norm",
    "resume",
    "rms_norm",
    "solve",
    "step",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "adams_method": ["Adams"],
        "multistep.paths": ["Path"],
        "multistep.table": ["MultistepTable"],
        "multistep_method": ["Multistep"],
        "one_step": ["StepResult", "step"],
    },
)
