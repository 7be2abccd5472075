"""Tables fitted to a flow's own draws, to choose from."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dise.flow.fitting.classical import classical
from dise.flow.fitting.draws import Draws, solve_draws
from dise.flow.fitting.fit_solver import FEWEST_DRAWS, fit_to_draws
from dise.flow.flow import Flow
from dise.integrate import Integrator, Multistep
from dise.select.guarantee.risk import LogProbDeviation, OutputDeviation, Risk

EVALUATIONS = (2, 3, 4, 5, 6, 8)  # of the tables that are fitted by default
COORDINATES = 4096  # a table has some tens of numbers: this many coordinates of ends suffice to fit them
FEW, PART = 96, 0.1  # draws that suffice however large they are; at most this part of a sampler's draws
ITERATIONS = 60


@dataclass(frozen=True)
class FittedTables:
    """What was fitted.

    Attributes:
        solvers: the tables; a classical one where a fit gained nothing.
        draws: their number.
        seconds: of all fits, the draws' reference solves included.
        note: why there are none; None if there are some.
    """

    solvers: tuple[Multistep, ...] = ()
    draws: int = 0
    seconds: float = 0.0
    note: str | None = None


def draws_to_fit(draws: int, flow: Flow) -> int:
    """How many draws tables are fitted to, for a sampler of this many draws."""
    size = math.prod(flow.base.event_shape)
    return max(FEWEST_DRAWS, min(math.floor(PART * draws), max(FEW, math.ceil(COORDINATES / max(size, 1)))))


def fit_tables(
    flow: Flow,
    noise: Tensor,
    conditions: tuple[Tensor, ...],
    evaluations: Sequence[int],
    *,
    reference: Integrator,
    risk: Risk,
    batch: int,
    log: Callable[[str], None],
) -> FittedTables:
    """Fit a table of each number of evaluations to the reference's solves of the same draws.

    The loss is the risk's: with `OutputDeviation` a draw counts by how far it is above the tolerance, with other risks
    by the logarithm of its error. Draws that the reference cannot integrate are left out.

    Args:
        flow: in evaluation mode.
        noise, conditions: [N, ...] of the draws.
        evaluations: of the tables.
        reference, risk, batch, log: see `make_sampler`.
    """
    began, density = time.perf_counter(), isinstance(risk, LogProbDeviation)
    drawn = solve_draws(flow, noise, conditions, reference, density=density, batch=batch, throw=False)
    drawn = _finite(drawn)
    if len(drawn) < FEWEST_DRAWS:
        return FittedTables(note=f"No table was fitted: the reference integrates {len(drawn)} of {len(noise)} draws.")
    solvers: list[Multistep] = []
    for n in evaluations:
        try:
            fit = fit_to_draws(
                flow,
                drawn,
                classical(n, backwards=density),
                rows="consistent",
                loss="log",
                tolerance=risk.tolerance if isinstance(risk, OutputDeviation) else None,
                iterations=ITERATIONS,
                batch=max(1, batch // n),  # a fit keeps the graphs of all n evaluations
            )
        except RuntimeError as error:  # a field that autograd cannot differentiate, or memory
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return FittedTables(note=f"No table was fitted: {reason}")
        log(f"table of {n} evaluations: {fit.gain:.1f} dB better than {fit.start} ({fit.seconds:.0f} s)")
        solvers.append(fit.solver)
    return FittedTables(tuple(solvers), len(noise), time.perf_counter() - began)


def _finite(drawn: Draws) -> Draws:
    """The draws whose ends are finite."""
    fine = drawn.ends.flatten(1).isfinite().all(1)
    log_prob = None if drawn.log_prob is None else drawn.log_prob[fine]
    return Draws(drawn.starts[fine], tuple(part[fine] for part in drawn.conditions), drawn.ends[fine], log_prob)
