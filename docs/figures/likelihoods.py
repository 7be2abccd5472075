"""Error of log p: against evaluations of f for several methods, and against directions of Hutchinson's estimate."""

from collections.abc import Callable, Iterator
from math import log, pi
from pathlib import Path

import torch
from matplotlib.figure import Figure
from style import panels, plain, save
from torch import Tensor, nn

import dise

POINTS = 500
ANGLES = torch.arange(8, dtype=torch.float64) * pi / 4
CENTERS = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)  # of clusters with standard deviation 0.1
BASE = dise.DiagonalNormal(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
METHODS: dict[str, tuple[Callable[[int], dise.integrate.Integrator], int]] = {  # and evaluations per step
    "Euler": (dise.Euler, 1),
    "AB2": (lambda n: dise.Multistep.adams(n, 2), 1),
    "Midpoint": (dise.Midpoint, 2),
    "RK4": (dise.RK4, 4),
}


class Clusters(nn.Module):
    """The velocity of the straight path to the eight clusters, in closed form."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """E[data − noise | x_t = x] [n, 2]."""
        variance = t**2 * 0.01 + (1 - t) ** 2
        to_centers = x[:, None] - t[:, :, None] * CENTERS  # [n, 8, 2]
        weights = (-to_centers.square().sum(2) / 2 / variance).softmax(1)
        velocities = CENTERS + ((0.01 * t - (1 - t)) / variance)[:, :, None] * to_centers
        return (weights[:, :, None] * velocities).sum(1)


def density(x: Tensor) -> Tensor:
    """log p of the data [n]."""
    squares = (x[:, None] - CENTERS).square().sum(2)
    return (-50 * squares).logsumexp(1) - log(8) - log(2 * pi * 0.01)


def flow(integrator: dise.integrate.Integrator, divergence: dise.flow.Divergence | None = None) -> dise.Flow:
    """The flow of the clusters."""
    return dise.Flow(Clusters(), BASE, integrator, divergence=divergence)


def errors(x: Tensor) -> Iterator[tuple[str, list[float], list[float]]]:
    """Each method's evaluations per point, and the error that 99 % of the points stay below."""
    for name, (make, per_step) in METHODS.items():
        evaluations = [float(n) for n in (8, 16, 32, 64, 128) if n % per_step == 0]
        found = (flow(make(int(n) // per_step)).log_prob(x) for n in evaluations)
        yield name, evaluations, [_high(log_prob - density(x)) for log_prob in found]
    solves = [flow(dise.Dopri5(rtol=10**-k, atol=10**-k)).solve(x) for k in (1, 2, 3, 4, 5, 6)]
    means = [solution.nfe.double().mean().item() for _, solution in solves]
    yield "Dopri5", means, [_high(log_prob - density(x)) for log_prob, _ in solves]


def _high(error: Tensor) -> float:
    return error.abs().quantile(0.99).item()


@torch.no_grad()
def draw() -> Figure:
    """Left: methods. Right: directions."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(POINTS, 2, generator=generator, dtype=torch.float64)
    x = CENTERS[torch.arange(POINTS) % 8] + 0.1 * noise
    figure, (left, right) = panels(2)
    for name, evaluations, error in errors(x):
        left.plot(evaluations, error, ".-", lw=1, label=name)
        print(f"  {name}: " + ", ".join(f"{e:.1g} at {n:.0f}" for n, e in zip(evaluations, error, strict=True)))
    left.set(xscale="log", yscale="log", xlabel="evaluations of f per point", ylabel="error of log p, nats")
    left.set_xticks([8, 16, 32, 64, 128])
    left.set_xticks([], minor=True)
    plain(left, "x")
    left.legend(fontsize="small")
    numbers, tight = [1, 4, 16, 64], dise.Dopri5(rtol=1e-5, atol=1e-5)
    exact = flow(tight).log_prob(x)
    for distribution in ("rademacher", "gaussian"):
        estimates = (dise.HutchinsonDivergence(k, distribution, generator) for k in numbers)
        deviation = [(flow(tight, how).log_prob(x) - exact).square().mean().sqrt().item() for how in estimates]
        right.plot(numbers, deviation, ".-", lw=1, label=distribution)
        print(f"  {distribution}: " + ", ".join(f"{d:.2g}" for d in deviation))
    right.set(xscale="log", yscale="log", xlabel="directions of Hutchinson's estimate", ylabel="RMS error, nats")
    right.set_xticks(numbers)
    right.set_xticks([], minor=True)
    plain(right, "x", "y")
    right.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
