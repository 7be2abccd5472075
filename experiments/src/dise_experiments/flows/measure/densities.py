"""How far the log-densities of solvers are from those of a tight solve, in nats."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from dise.flow.fitting.draws import Draws
from dise.flow.fitting.errors import SolverErrors
from dise_experiments.flows.cases import Case
from dise_experiments.flows.measure.errors import like
from dise_experiments.flows.measure.solvers import Solver


@torch.no_grad()
def density_errors(case: Case, solvers: Sequence[Solver], draws: Draws) -> dict[str, dict[str, Any]]:
    """By the solver's name: quantiles of |Δ log p| at the draws' ends, and the evaluations from data to noise.

    Divergences are exact. Solvers without `density` are left out.
    """
    points = draws.ends.float()
    exact = _exact(case, points, draws.conditions)
    rows = {}
    for solver in solvers:
        if not solver.density:
            continue
        with case.flow.block.using(solver.integrator):
            log_prob, solution = case.flow.solve(points, draws.conditions or None)
        error = (log_prob.double() - exact).abs()
        rows[solver.name] = {
            "error": asdict(SolverErrors.of(torch.where(error.isfinite(), error, math.inf))),
            "nfe": {"mean": float(solution.nfe.double().mean()), "max": int(solution.nfe.max())},
        }
    return rows


def _exact(case: Case, points: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
    """[N] log-densities by the tight solve."""
    exact = case.exact
    x, *known = like(exact, points, *conditions)
    with exact.block.using(case.tight):
        return exact.log_prob(x, tuple(known) or None).double()
