"""Paths of a flow from noise to eight clusters, and error against evaluations for several samplers.

Prints the fewest evaluations at which 99 % of the draws end within 0.03 of a tight solve.
"""

from collections.abc import Callable, Iterator
from math import pi
from pathlib import Path

import torch
from matplotlib.figure import Figure
from style import panels, plain, save
from torch import Tensor

import dise

DRAWS, WITHIN = 2000, 0.03
PATH = dise.StraightPath()
ANGLES = torch.arange(8, dtype=torch.float64) * pi / 4
CENTERS = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)  # of clusters with standard deviation 0.1


def field(t: Tensor, x: Tensor) -> Tensor:
    """E[data − noise | x_t = x], the velocity of the straight path to the eight clusters, in closed form: [n, 2]."""
    variance = t**2 * 0.01 + (1 - t) ** 2
    to_centers = x[:, None] - t[:, :, None] * CENTERS  # [n, 8, 2]
    weights = (-to_centers.square().sum(2) / 2 / variance).softmax(1)
    velocities = CENTERS + ((0.01 * t - (1 - t)) / variance)[:, :, None] * to_centers
    return (weights[:, :, None] * velocities).sum(1)


SAMPLERS: dict[str, tuple[Callable[[int], dise.integrate.Integrator], int]] = {  # and evaluations per step
    "Euler": (dise.Euler, 1),
    "Midpoint": (dise.Midpoint, 2),
    "RK4": (dise.RK4, 4),
    "AB2": (lambda n: dise.Multistep.adams(n, 2), 1),
    "AB3": (lambda n: dise.Multistep.adams(n, 3), 1),
    "DPM++2M": (lambda n: dise.Multistep.dpmpp2m(n, PATH), 1),
    "UniPC2": (lambda n: dise.Multistep.unipc(n, PATH), 1),
}
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)  # of the sampler with each draw's own steps
DASHED = ("DPM++2M", "UniPC2")  # there are fewer colours than samplers


def errors(noise: Tensor, exact: Tensor) -> Iterator[tuple[str, list[float], list[float]]]:
    """Each sampler's evaluations (their mean over the draws), and the error that 99 % of the draws stay below."""
    for name, (make, per_step) in SAMPLERS.items():
        steps = [n // per_step for n in (4, 6, 8, 12, 16, 24, 32, 48, 64) if n % per_step == 0]
        yield name, *_measured([make(n) for n in steps], noise, exact)
    yield "Adams", *_measured([dise.Adams(rtol=tol, atol=tol) for tol in TOLERANCES], noise, exact)


def _measured(
    samplers: list[dise.integrate.Integrator], noise: Tensor, exact: Tensor
) -> tuple[list[float], list[float]]:
    solutions = [dise.solve(field, noise, 0.0, 1.0, sampler) for sampler in samplers]
    ends = [(solution.y - exact).norm(dim=1).quantile(0.99).item() for solution in solutions]
    return [solution.nfe.double().mean().item() for solution in solutions], ends


def draw() -> Figure:
    """Left: paths. Right: error against evaluations."""
    noise = torch.randn(DRAWS, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shown = torch.linspace(0, 1, 30, dtype=torch.float64)
    tight = dise.Dopri8(rtol=1e-10, atol=1e-10)
    solution = dise.solve(field, noise, 0.0, 1.0, tight, save_at=shown)
    figure, (left, right) = panels(2)
    for path in solution.saved[:50]:
        left.plot(path[:, 0], path[:, 1], lw=0.6, color="C0", alpha=0.7)
    left.plot(noise[:50, 0], noise[:50, 1], ".", ms=3, color="C7", label="noise")
    left.plot(solution.y[:50, 0], solution.y[:50, 1], ".", ms=3, color="C1", label="data")
    left.set(aspect="equal", xticks=[], yticks=[])
    left.legend(loc="upper left", fontsize="small")
    for name, evaluations, error in errors(noise, solution.y):
        right.plot(evaluations, error, ".--" if name in DASHED else ".-", lw=1, label=name)
        enough = next((f"{n:.3g}" for n, e in zip(evaluations, error, strict=True) if e < WITHIN), "more than 64")
        print(f"  {name}: {enough} evaluations for 99 % of {DRAWS} draws within {WITHIN}")
    right.set(xscale="log", yscale="log", xlabel="evaluations of f", ylabel="error that 99 % stay below")
    right.set_xticks([4, 8, 16, 32, 64])
    right.set_xticks([], minor=True)
    plain(right, "x")
    right.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
