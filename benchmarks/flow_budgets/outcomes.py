"""What candidates do on draws of a trained flow: evaluations of f, and distance from a tight solve."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from flow_bars.fields import RESULTS, Draws, rms
from torch import Tensor

import dise
from dise import Multistep, TimeGrid, grids
from dise.flow.certified.varied_tables import STEPS
from dise_experiments.flows.simulators.tasks import SIMULATORS
from dise_experiments.flows.stored import load_field

PREFIXES = ((0.15,), (0.12, 0.3))  # ends of the first steps that all tables of a set have in common
OWN_STEPS = (0.5, 0.2, 0.1, 0.05, 0.025, 0.012, 0.006, 0.003)  # tolerances
REFERENCE = dise.Dopri5(rtol=1e-5, atol=1e-6)
ROWS = 8192  # per solve
SHAPES: tuple[Callable[[int], TimeGrid], ...] = (grids.uniform, lambda n: grids.sway(n, 0.5))


@dataclass(frozen=True)
class Outcomes:
    """NFE and root mean square distances from the reference [N, K] of K candidates on N draws."""

    candidates: tuple[dise.Integrator, ...]
    nfe: Tensor
    error: Tensor

    def rows(self, rows: slice) -> "Outcomes":
        """Those of some of the draws."""
        return Outcomes(self.candidates, self.nfe[rows], self.error[rows])

    def take(self, columns: Sequence[int]) -> "Outcomes":
        """Those of some of the candidates."""
        chosen = list(columns)
        return Outcomes(tuple(self.candidates[i] for i in chosen), self.nfe[:, chosen], self.error[:, chosen])


def draws_of(task: str, number: int, seed: int = 3) -> Draws:
    """Noise of a task's field, and for a posterior observations drawn from its simulator, one for each draw."""
    f = load_field(RESULTS / f"{task}-seed0")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(number, f.dim, generator=generator)
    conditions = (SIMULATORS[task].joint(number, generator)[1],) if task in SIMULATORS else ()
    return Draws(f, noise, conditions)


def reference(draws: Draws) -> tuple[Tensor, Tensor]:
    """Ends [N, D] and NFE [N] of the tight solve."""
    parts = [part.solve(REFERENCE) for part in _parts(draws)]
    return torch.cat([part.y for part in parts]), torch.cat([part.nfe for part in parts])


def outcomes(draws: Draws, ends: Tensor, candidates: Sequence[dise.Integrator]) -> Outcomes:
    """Outcomes of candidates, given the reference's ends; a failed draw is infinitely far."""
    nfe, error = [], []
    for candidate in candidates:
        parts = [part.solve(candidate, throw=False) for part in _parts(draws)]
        nfe.append(torch.cat([part.nfe for part in parts]))
        error.append(rms(torch.cat([part.y for part in parts]), ends).nan_to_num(nan=torch.inf).float())
    return Outcomes(tuple(candidates), torch.stack(nfe, 1), torch.stack(error, 1))


def tables(prefix: Sequence[float] = ()) -> list[Multistep]:
    """Adams–Bashforth of order 3 on equal steps, and on steps that grow shorter, after common first steps."""
    first = len(prefix)
    return [
        Multistep.adams(_after(prefix, shape(n - first)), 3)
        for shape in SHAPES
        for n in STEPS
        if n >= max(3, first + 1)
    ]


def single_candidates() -> list[dise.Integrator]:
    """Runge–Kutta methods of equal steps, and methods of own steps."""
    own = [make(rtol=tol, atol=tol) for make in (dise.Bosh3, dise.Adams) for tol in OWN_STEPS]
    own += [dise.Adams(3, rtol=tol, atol=tol) for tol in OWN_STEPS]
    return [*map(dise.Midpoint, (2, 3, 4, 6, 8, 12)), *map(dise.RK4, (1, 2, 3, 4, 6)), *own]


@torch.no_grad()
def velocities(draws: Draws, table: Multistep, number: int) -> tuple[Tensor, ...]:
    """The first values of f [N, D] that a table's solve sees."""
    found: list[Tensor] = []
    for j, (time, scale) in enumerate(zip(table.table.times[:number], table.table.scales, strict=False)):
        x = scale * draws.noise
        for weight, value in zip(table.table.weights[j], found, strict=True):
            x = x + weight * value
        found.append(draws.f(torch.full((len(x), 1), time), x, *draws.conditions))
    return tuple(found)


def _after(prefix: Sequence[float], grid: TimeGrid) -> TimeGrid:
    start = prefix[-1] if prefix else 0.0
    return TimeGrid((0.0, *prefix, *(start + (1 - start) * x for x in grid.fractions[1:-1]), 1.0))


def _parts(draws: Draws) -> list[Draws]:
    return [draws.rows(slice(i, i + ROWS)) for i in range(0, len(draws.noise), ROWS)]
