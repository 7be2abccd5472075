"""How much closer to exact samples are those on a grid that `dise.sharp_grid` has fitted?

    python benchmarks/sharp_grid.py [--out FILE.json]

Four tasks in the plane whose fields are known. Shown is the root mean square distance of 1,000 samples to exact ones
from the same noise, as a share of that with equal steps; the fit has seen 128 other draws.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import dise
from dise.select.deploy import strict_json

DOUBLE = torch.float64
BASE = dise.DiagonalNormal(torch.zeros(2, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE))
Row = dict[str, Any]


class Mixture(nn.Module):
    """The field of the straight path to data from normal distributions around centers, all with one deviation."""

    def __init__(self, centers: Tensor, deviation: float) -> None:
        super().__init__()
        self.centers, self.deviation = centers, deviation

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """E[data − noise | x_t = x], [n, D]; t is [n, 1] or a scalar."""
        t = t.reshape(-1, 1)
        square = self.deviation**2
        variance = t**2 * square + (1 - t) ** 2
        to_centers = x[:, None] - t[..., None] * self.centers
        weights = (-to_centers.square().sum(2) / 2 / variance).softmax(1)
        velocities = self.centers + ((square * t - (1 - t)) / variance)[..., None] * to_centers
        return (weights[..., None] * velocities).sum(1)


def toys() -> dict[str, Mixture]:
    """Four tasks in the plane, as mixtures of many normal distributions, whose fields are known."""
    line = torch.linspace(0, math.pi, 20, dtype=DOUBLE)
    eighths = torch.arange(8, dtype=DOUBLE) * math.pi / 4
    turn = torch.arange(24, dtype=DOUBLE) * math.pi / 12
    cells = torch.cartesian_prod(*2 * (torch.arange(-2, 2, 0.5, dtype=DOUBLE) + 0.25,))
    moons = torch.cat([_arc(line), torch.tensor([1.0, 0.5], dtype=DOUBLE) - _arc(line)])
    return {
        "eight clusters": Mixture(2 * _arc(eighths), 0.1),
        "moons": Mixture(1.5 * moons - torch.tensor([0.75, 0.4], dtype=DOUBLE), 0.12),
        "checkerboard": Mixture(cells[cells.floor().sum(1) % 2 == 0], 0.2),
        "rings": Mixture(torch.cat([radius * _arc(turn) for radius in (1.0, 2.0)]), 0.1),
    }


def _arc(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], 1)


METHODS: dict[str, Callable[[dise.TimeGrid], dise.integrate.Integrator]] = {
    "Euler": dise.Euler,
    "AB2": dise.Multistep.adams,
    "Midpoint": dise.Midpoint,
    "RK4": dise.RK4,
}


@torch.no_grad()
def rows(steps: tuple[int, ...] = (4, 8, 16), draws: int = 1000) -> list[Row]:
    """A row per task and method: the share of the distance with equal steps that a fitted grid leaves."""
    found = []
    for task, f in toys().items():
        flow = dise.Flow(f, BASE, dise.Dopri5())
        fit, test = (torch.randn(n, 2, generator=torch.Generator().manual_seed(n), dtype=DOUBLE) for n in (128, draws))
        exact = dise.solve(f, test, 0.0, 1.0, dise.Dopri5(rtol=1e-7, atol=1e-7)).y
        for name, method in METHODS.items():
            start = time.process_time()
            fitted = [dise.sharp_grid(flow, n, method, noise=fit) for n in steps]
            seconds = (time.process_time() - start) / len(steps)
            row: Row = {"task": task, "method": name, "CPU s per fit": seconds}
            for n, grid in zip(steps, fitted, strict=True):
                ends = (dise.solve(f, test, 0.0, 1.0, method(g)).y for g in (grid, dise.grids.uniform(n)))
                ours, equal = ((end - exact).square().mean().sqrt().item() for end in ends)
                row[f"{n} steps"] = ours / equal
            found.append(row)
    return found


def main() -> None:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    found = rows()
    table = Table(*found[0])
    for row in found:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else value for value in row.values()))
    Console().print(table)
    if out:
        out.write_text(strict_json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
