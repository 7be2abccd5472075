"""An integrator that calls f as it is where the solve is under autocast."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from dise.integrate.integrator import Integrator, check_integrator
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration, exactly
from dise.integrate.problem.run import Run


@dataclass(frozen=True)
class Exact(Integrator):
    """An integrator whose evaluations of f are not under autocast, in a solve that is.

    So a policy in lower precision can fall back on a method that needs exact values, as tight tolerances do. It makes
    its own first evaluation, since the policy's is rounded. Without autocast it is the integrator itself.

    Args:
        integrator: solves.

    Raises:
        TypeError: no integrator.
    """

    integrator: Integrator

    def __post_init__(self) -> None:
        check_integrator(self.integrator)
        object.__setattr__(self, "chooses", self.integrator.chooses)
        object.__setattr__(self, "one_way", self.integrator.one_way)

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Solve the problem with exact evaluations."""
        if not torch.is_autocast_enabled(problem.y0.device.type):
            return (yield from self.integrator.integrate(problem, run))
        # compiled rounds and recomputed segments call f themselves
        plain = replace(run, rounds=None, checkpoint=False)
        result = yield from exactly(self.integrator.integrate(replace(problem, k1=None), plain))
        if problem.k1 is None or result.nfe is None:
            return result
        return result._replace(nfe=result.nfe + 1)

    def reversed(self) -> "Exact":
        """The integrator the other way."""
        return Exact(self.integrator.reversed())

    def mapped(self, change: Callable[[Integrator], Integrator]) -> "Exact":
        """The changed integrator, exact as before."""
        return Exact(self.integrator.mapped(change))

    def __str__(self) -> str:
        return f"Exact({self.integrator})"


def inner(integrator: Integrator) -> Integrator:
    """The integrator, or what an `Exact` consists of."""
    return integrator.integrator if isinstance(integrator, Exact) else integrator
