"""Evaluations of f that the candidates of a cascade share: the second one, where it is at the same point."""

import math
from collections.abc import Generator
from typing import NamedTuple, cast

import torch
from torch import Tensor

from dise.integrate.integrator import Integrator
from dise.integrate.integrators import Adaptive, FixedStep
from dise.integrate.multistep.grids import TimeGrid
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration, Request, Result


class SharedStage(NamedTuple):
    """Values of f at one point per sample, for the samples where they are known."""

    values: Tensor  # [n, F]
    known: Tensor | None  # [n] bool; None: all

    @classmethod
    def of(cls, request: Request, values: Tensor, samples: int) -> "SharedStage":
        """The stage of a request and its values [m, F], of n samples."""
        if request.rows is None:
            return cls(values, None)
        known = torch.zeros(samples, dtype=torch.bool, device=values.device)
        return cls(values.new_zeros(samples, values.shape[1]), known).with_rows(request.rows, values)

    def with_rows(self, rows: Tensor, values: Tensor) -> "SharedStage":
        """The stage with the values [m, F] of some samples added."""
        known = None if self.known is None else self.known.index_fill(0, rows, True)
        return SharedStage(self.values.index_put((rows,), values), known)

    def take(self, rows: Tensor) -> "SharedStage":
        """The stage of some of the samples."""
        known = None if self.known is None else self.known.index_select(0, rows)
        return SharedStage(self.values.index_select(0, rows), known)


def second_node(candidate: Integrator, problem: Problem) -> float | None:
    """c, if the candidate's first evaluation after k1 is f at t0 + c·span and h0 + c·span·k1; None if it is not.

    The second stage of every explicit Runge–Kutta method is of that form, and so is the second step of Euler. The first
    step of an adaptive candidate is the span only if `first_step` says so and the problem has no first step of its own.
    Steps end at break points, too.
    """
    if problem.breaks is not None:
        return None
    if isinstance(candidate, FixedStep):
        first = candidate.steps.fractions[1] if isinstance(candidate.steps, TimeGrid) else 1 / candidate.steps
        if candidate.tableau.stages > 1:
            return candidate.tableau.c[1] * first
        return first if first < 1 else None
    if not isinstance(candidate, Adaptive) or candidate.first_step != "span" or candidate.dt_max != math.inf:
        return None
    return candidate.tableau.c[1] if problem.dt is None else None


def share_stage(
    integration: Integration, node: float | None, stages: dict[float, SharedStage], samples: int
) -> Integration:
    """The integration with its first evaluation taken from `stages`, as far as it is known, and added to it.

    Its result counts known evaluations other than k1 in no sample's NFE.

    Args:
        integration: of n samples, with known k1.
        node: c of its first evaluation (see `second_node`); None: nothing is shared.
        stages: known evaluations by node.
        samples: n.
    """
    if node is None:
        return (yield from integration)
    stage = stages.get(node)
    try:
        request = next(integration)
        stages[node], values = yield from _evaluate(request, stage, samples)
        request = integration.send(values)
        while True:
            request = integration.send((yield request))
    except StopIteration as stop:
        result = cast(Result, stop.value)
    if stage is None or result.nfe is None:
        return result
    # a sample that fails at k1 has one evaluation, whatever is known
    reused = 1 if stage.known is None else stage.known.long()
    return result._replace(nfe=(result.nfe - reused).clamp(min=1))


def _evaluate(
    request: Request, stage: SharedStage | None, samples: int
) -> Generator[Request, Tensor, tuple[SharedStage, Tensor]]:
    """The stage with the values of a request; and these values [m, F], of which only unknown ones are evaluated."""
    if stage is None:
        values = yield request
        return SharedStage.of(request, values, samples), values
    if stage.known is None:
        return stage, stage.values if request.rows is None else stage.values.index_select(0, request.rows)
    # only some samples are known if others failed at t0, so this read from the device is rare
    rows = torch.arange(samples, device=stage.values.device) if request.rows is None else request.rows
    missing = (~stage.known.index_select(0, rows)).nonzero().flatten()
    if len(missing):
        rows_left, t, y = (part.index_select(0, missing) for part in (rows, request.t, request.y))
        stage = stage.with_rows(rows_left, (yield Request(rows_left, t, y)))
    return stage, stage.values.index_select(0, rows)
