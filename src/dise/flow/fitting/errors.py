"""How far a solver's answers are from those of a tight solve."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from dise.flow.fitting.draws import Draws, exact_field
from dise.flow.fitting.unroll import Loss, squared_distances
from dise.flow.flow import Flow
from dise.integrate import Multistep, Status, solve


@dataclass(frozen=True)
class SolverErrors:
    """Summary of the errors of a solver over draws.

    The error of a draw is the root mean square distance of its coordinates from a tight solve's; for densities the
    absolute difference of the log-density, in nats. Draws that cannot be integrated have an infinite error.

    Attributes:
        rms: root mean square.
        geometric_mean: of the errors e, or of √(e² + τ²) where a fit has a tolerance τ; 0 if one is 0.
        median, q90, q99: quantiles.
    """

    rms: float
    geometric_mean: float
    median: float
    q90: float
    q99: float

    def mean(self, loss: Loss) -> float:
        """The mean that a fit by this loss makes small."""
        return self.rms if loss == "mse" else self.geometric_mean

    @classmethod
    def of(cls, errors: Tensor, tolerance: float = 0.0) -> "SolverErrors":
        """The summary of errors [N]."""
        ranked = errors.double().sort().values
        median, q90, q99 = (float(ranked[math.ceil(q * len(ranked)) - 1]) for q in (0.5, 0.9, 0.99))
        geometric_mean = float(ranked.hypot(torch.tensor(tolerance).double()).log().mean().exp())
        return cls(float(ranked.square().mean().sqrt()), geometric_mean, median, q90, q99)


@torch.no_grad()
def solver_errors(flow: Flow, solver: Multistep, draws: Draws, span: tuple[float, float], batch: int) -> Tensor:
    """[N] errors of a solver, as in `SolverErrors`."""
    return torch.cat([_errors(flow, solver, part, span) for part in draws.batches(batch)])


def _errors(flow: Flow, solver: Multistep, draws: Draws, span: tuple[float, float]) -> Tensor:
    if draws.log_prob is None:
        solution = solve(flow.f, draws.starts, *span, solver, sample_args=draws.conditions, throw=False)
        error = squared_distances(cast(Tensor, solution.y), draws.ends).sqrt()
    else:
        state = draws.starts, draws.starts.new_zeros(len(draws), 1)
        solution = solve(exact_field(flow), state, *span, solver, sample_args=draws.conditions, throw=False)
        z, change = cast(tuple[Tensor, Tensor], solution.y)
        error = (flow.base.log_prob(z) - change.squeeze(-1) - draws.log_prob).abs()
    return torch.where((solution.status == Status.SUCCESS) & error.isfinite(), error.double(), math.inf)
