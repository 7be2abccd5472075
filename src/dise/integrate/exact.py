"""An integrator that calls f as it is where the solve is under autocast."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dise.integrate.integrator import Integrator, check_integrator
from dise.integrate.problem.field import BoundField
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration, exactly
from dise.integrate.problem.run import Accumulator, Run
from dise.integrate.runge_kutta.step import Step


@dataclass(frozen=True)
class Exact(Integrator):
    """An integrator whose evaluations of f are not under autocast, in a solve that is.

    So a policy in lower precision can fall back on a method that needs exact values, as tight tolerances do. It makes
    its own first evaluation, since the policy's is rounded. Without autocast it is the integrator itself. A solve with
    `Exact` itself is not under autocast at all; within a policy its steps are not compiled, and gradients keep all of
    them, with gradient="checkpoint" too.

    Args:
        integrator: solves.

    Raises:
        TypeError: no integrator.
    """

    integrator: Integrator

    def __post_init__(self) -> None:
        check_integrator(self.integrator)
        object.__setattr__(self, "integrator", inner(self.integrator))
        object.__setattr__(self, "chooses", self.integrator.chooses)
        object.__setattr__(self, "one_way", self.integrator.one_way)

    @property
    def uses_first_stage(self) -> bool:
        """Whether the integrator does."""
        return self.integrator.uses_first_stage

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Solve the problem with exact evaluations."""
        if not torch.is_autocast_enabled(problem.y0.device.type):
            return (yield from self.integrator.integrate(problem, run))
        # compiled rounds, recomputed segments and statistics call f themselves
        statistics = None if run.accumulate is None else _ExactStatistics(run.accumulate, problem.y0.device.type)
        plain = replace(run, accumulate=statistics, rounds=None, checkpoint=False)
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


@dataclass(frozen=True, eq=False)
class _ExactStatistics:
    """Running statistics that are not under autocast."""

    statistics: Accumulator
    device: str

    @property
    def parts(self) -> Sequence[Any]:
        """See `Accumulator`."""
        return self.statistics.parts

    @property
    def calls_field(self) -> bool:
        """See `Accumulator`."""
        return self.statistics.calls_field

    def start(self, step: Step, field: BoundField | None) -> Tensor:
        """See `Accumulator`."""
        with torch.autocast(self.device, enabled=False):
            return self.statistics.start(step, field)

    def after(self, columns: Tensor, step: Step, field: BoundField | None) -> Tensor:
        """See `Accumulator`."""
        with torch.autocast(self.device, enabled=False):
            return self.statistics.after(columns, step, field)


def inner(integrator: Integrator) -> Integrator:
    """The integrator, or what an `Exact` consists of."""
    return integrator.integrator if isinstance(integrator, Exact) else integrator


def precision_of(integrator: Integrator, device: str) -> AbstractContextManager[object]:
    """The context of a solve with an integrator on a type of device: without autocast for an `Exact` one."""
    if not isinstance(integrator, Exact) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
