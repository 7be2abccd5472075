"""The order of every method, seen by halving its steps."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

import dise
from dise import Multistep, PathField, StraightPath, TimeGrid, grids
from flow_bars.seen import Seen

BAR = 0.15
START, END = 0.1, 0.9  # of the path: its log signal-to-noise ratio is smooth there
Make = Callable[[TimeGrid], dise.Integrator]

PATH = StraightPath(1)
EVERYWHERE: dict[str, tuple[int, Make]] = {
    "AB1": (1, lambda grid: Multistep.adams(grid, 1)),
    "AB2": (2, lambda grid: Multistep.adams(grid, 2)),
    "AB3": (3, lambda grid: Multistep.adams(grid, 3)),
    "AB4": (4, lambda grid: Multistep.adams(grid, 4)),
    "ABM2": (2, lambda grid: Multistep.adams(grid, 2, corrector=True)),
    "ABM3": (3, lambda grid: Multistep.adams(grid, 3, corrector=True)),
    "DPM++2M": (2, lambda grid: Multistep.dpmpp2m(grid, PATH)),
    "UniPC1": (2, lambda grid: Multistep.unipc(grid, PATH, 1)),
    "UniPC2": (2, lambda grid: Multistep.unipc(grid, PATH, 2)),
    "UniPC2, full final order": (3, lambda grid: Multistep.unipc(grid, PATH, 2, lower_final_order=False)),
    "UniPC3": (2, lambda grid: Multistep.unipc(grid, PATH, 3)),
    "Euler": (1, dise.Euler),
    "Midpoint": (2, dise.Midpoint),
    "Heun": (2, dise.Heun),
    "Ralston": (2, dise.Ralston),
    "RK4": (4, dise.RK4),
    "RK38": (4, dise.RK38),
}
"""Methods with their order on any grid; UniPC's predictor and corrector together have one more than its name, but the
authors' lower orders in the last steps limit it to 2."""

EQUAL_ONLY: dict[str, tuple[int, Make]] = {
    f"iPNDM{order}": (min(order, 2), lambda grid, order=order: Multistep.ipndm(grid, order)) for order in (1, 2, 3, 4)
}
"""iPNDM has the weights of equal steps, and a first step of order 1, which limits it to 2."""


def measure() -> Seen:
    """The order seen in the last of several halvings."""
    seen = {
        **{f"{name}, equal": _observed(make, grids.uniform(16), k) for name, (k, make) in EVERYWHERE.items()},
        **{f"{name}, equal": _observed(make, grids.uniform(16), k) for name, (k, make) in EQUAL_ONLY.items()},
        **{f"{name}, random": _observed(make, random_grid(16, seed=k), k) for name, (k, make) in EVERYWHERE.items()},
    }
    distance = {name: abs(order - k) for name, (order, k) in seen.items()}
    worst = max(distance, key=lambda name: distance[name])
    numbers = {name: {"order": k, "seen": order} for name, (order, k) in seen.items()}
    return Seen(f"{len(seen)} cases within {distance[worst]:.3f}", distance[worst] <= BAR, {"worst": worst, **numbers})


def random_grid(steps: int, seed: int) -> TimeGrid:
    """A grid whose steps differ by a factor of up to three."""
    lengths = 1 + 2 * torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return TimeGrid((0.0, *(lengths.cumsum(0) / lengths.sum()).tolist()[:-1], 1.0))


def halved(grid: TimeGrid) -> TimeGrid:
    """The grid with each step halved."""
    middles = [(a + b) / 2 for a, b in zip(grid.fractions, grid.fractions[1:], strict=False)]
    return TimeGrid(tuple(sorted((*grid.fractions, *middles))))


def _velocity() -> PathField:
    """The exact velocity of data ±1 with standard deviation ½ along the path."""

    def data(t: Tensor, x: Tensor) -> Tensor:
        alpha, sigma = PATH.alpha(t), PATH.sigma(t)
        variance = alpha**2 / 4 + sigma**2
        mean = torch.tanh(alpha * x / variance)  # of the two components' means, by Bayes
        return mean + alpha / 4 / variance * (x - alpha * mean)

    return PathField(data, PATH, predicts="data")


def _observed(make: Make, grid: TimeGrid, order: int) -> tuple[float, int]:
    """log2 of the ratio of the errors before and after the last halving, and the method's order."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    field, errors = _velocity(), []
    exact = dise.solve(field, x, START, END, dise.Dopri8(rtol=1e-12, atol=1e-12)).y
    for _ in range(5 if order < 4 else 3):
        grid = halved(grid)
        times = grids.of([START + (END - START) * x for x in grid.fractions])
        errors.append(float((dise.solve(field, x, START, END, make(times)).y - exact).abs().max()))
    return math.log2(errors[-2] / errors[-1]), order
