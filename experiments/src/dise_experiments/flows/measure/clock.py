"""Milliseconds per batch of all solvers, in turns."""

from collections.abc import Sequence
from typing import Any

import torch

from dise.flow import FlowSampler
from dise.flow.fitting.draws import Draws
from dise.integrate import Integrator
from dise.select import time_side_by_side
from dise_experiments.flows.cases import Case
from dise_experiments.flows.measure.errors import free_draws
from dise_experiments.flows.measure.solvers import Solver

BATCHES = 5
LARGE, LARGE_BATCHES = 1000, 2


def milliseconds(case: Case, solvers: Sequence[Solver], sizes: Sequence[int]) -> dict[str, Any]:
    """Median times of `FlowSampler`'s call, by the solver's name and the batch size; one run for each batch size."""
    sampler = FlowSampler(case.flow).eval()
    found: dict[str, Any] = {solver.name: {} for solver in solvers}
    for size in sizes:
        number = LARGE_BATCHES if size >= LARGE else BATCHES
        inputs = list(free_draws(case, size * number, seed=4).batches(size))
        calls = {solver.name: _call(sampler, solver.integrator) for solver in solvers}
        for name, time in time_side_by_side(calls, inputs).items():
            found[name][str(size)] = time
    return {"milliseconds": found, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _call(sampler: FlowSampler, integrator: Integrator) -> Any:
    @torch.no_grad()
    def run(draws: Draws) -> None:
        with sampler.block.using(integrator):
            sampler(draws.starts, *draws.conditions)

    return run
