"""The solvers that are compared: what is used today, beside what the library adds."""

from collections.abc import Sequence
from typing import NamedTuple

from dise.flow import StraightPath
from dise.integrate import RK4, Adams, Dopri5, Euler, Heun, Integrator, Midpoint, Multistep

POLICY, SINGLE, FITTED = "certified policy", "certified single candidate", "fitted table"


class Solver(NamedTuple):
    """An integrator with its name.

    Attributes:
        name: as in tables.
        family: solvers that differ in their budget alone.
        integrator: of the points, from noise to data.
        density: whether it also solves from data to noise, for log-densities.
        decisions: the cost of a policy's own decisions, in evaluations of f per sample.
    """

    name: str
    family: str
    integrator: Integrator
    density: bool = True
    decisions: float = 0.0


def usual_solvers(*, few: bool = False) -> list[Solver]:
    """Fixed budgets, multistep tables, exponential integrators of the straight path, and own steps.

    Args:
        few: without the most expensive one of each family.
    """
    path = StraightPath()
    families: dict[str, Sequence[Integrator]] = {
        "Euler": [Euler(n) for n in (8, 16, 32, 100)],
        "Midpoint": [Midpoint(n) for n in (4, 8, 16)],
        "Heun": [Heun(n) for n in (4, 8, 16)],
        "RK4": [RK4(n) for n in (2, 4, 8)],
        "AB2": [Multistep.adams(n, 2) for n in (6, 8, 12, 16)],
        "AB3": [Multistep.adams(n, 3) for n in (6, 8, 12, 16)],
        "DPM++2M": [Multistep.dpmpp2m(n, path) for n in (6, 8, 12, 16)],
        "UniPC2": [Multistep.unipc(n, path) for n in (6, 8, 12)],
        "Dopri5": [Dopri5(rtol=t, atol=t) for t in (1e-3, 1e-4, 1e-5)],
        "Adams": [Adams(rtol=t, atol=t) for t in (0.03, 0.01, 0.003)],
    }
    forwards_alone = ("DPM++2M", "UniPC2")
    return [
        Solver(name_of(integrator), family, integrator, family not in forwards_alone)
        for family, integrators in families.items()
        for integrator in integrators[: -1 if few else None]
    ]


def name_of(integrator: Integrator) -> str:
    """The integrator as text, which leaves default tolerances away: here they are named."""
    if integrator == Dopri5():
        return f"Dopri5(rtol={Dopri5().rtol:g}, atol={Dopri5().atol:g})"
    return str(integrator)
