"""The error and the evaluations of solvers, draw by draw, against a tight solve from the same noise."""

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor

from dise.flow import Flow
from dise.flow.fitting.draws import Draws, draw_starts
from dise.flow.fitting.errors import SolverErrors
from dise.integrate import Integrator, Solution, Status, solve
from dise_experiments.flows.cases import Case
from dise_experiments.flows.measure.solvers import Solver


@dataclass(frozen=True)
class Outcome:
    """A solver on N draws.

    Attributes:
        ends: [N, ...] data.
        error: [N] root mean square distance from the tight solve; infinite where the solver failed.
        nfe: [N] evaluations of the field, a policy's decisions not counted.
    """

    ends: Tensor
    error: Tensor
    nfe: Tensor


def tight_draws(case: Case, number: int, *, batch: int, seed: int) -> Draws:
    """Noise and conditions in single precision, with the ends of a tight solve, as a rule in double precision.

    Raises:
        SolveError: the tight solve failed.
    """
    drawn, exact = free_draws(case, number, seed=seed), case.exact
    starts = like(exact, drawn.starts, *drawn.conditions)
    solved = Draws(starts[0], starts[1:], starts[0])
    ends = [cast(Tensor, _solve(exact, case.tight, part, throw=True).y) for part in solved.batches(batch)]
    return Draws(drawn.starts, drawn.conditions, torch.cat(ends).double())


def like(flow: Flow, *values: Tensor) -> tuple[Tensor, ...]:
    """Values in the precision of a flow's parameters; whole numbers stay."""
    dtype = next(flow.f.parameters()).dtype
    return tuple(value.to(dtype) if value.is_floating_point() else value for value in values)


def free_draws(case: Case, number: int, *, seed: int) -> Draws:
    """Noise and conditions; nothing is solved, so the noise stands for the ends."""
    noise, conditions = draw_starts(case.flow, number, case.condition, seed=seed)
    return Draws(noise, conditions, noise)


def outcome(case: Case, integrator: Integrator, draws: Draws, *, batch: int) -> Outcome:
    """A solver on draws."""
    solutions = [_solve(case.flow, integrator, part) for part in draws.batches(batch)]
    ends = torch.cat([cast(Tensor, solution.y) for solution in solutions])
    error = (ends.double() - draws.ends).flatten(1).square().mean(1).sqrt()
    succeeded = torch.cat([solution.status for solution in solutions]) == Status.SUCCESS
    return Outcome(
        ends,
        torch.where(succeeded & error.isfinite(), error, math.inf),
        torch.cat([solution.nfe for solution in solutions]),
    )


def summary(case: Case, solver: Solver, found: Outcome, tolerance: float) -> dict[str, Any]:
    """A solver's row: quantiles of the error, evaluations and calls of the network, the share of draws within τ."""
    calls = case.calls_per_evaluation
    mean, most = float(found.nfe.double().mean()) + solver.decisions, int(found.nfe.max())
    return {
        "solver": solver.name,
        "family": solver.family,
        "error": asdict(SolverErrors.of(found.error)),
        "within": float((found.error <= tolerance).double().mean()),
        "nfe": {"mean": mean, "max": most},
        "model_calls": {"mean": mean * calls, "max": most * calls},
    }


@torch.no_grad()
def _solve(flow: Flow, integrator: Integrator, draws: Draws, *, throw: bool = False) -> Solution:
    return solve(flow.f, draws.starts, 0.0, 1.0, integrator, sample_args=draws.conditions, throw=throw)
