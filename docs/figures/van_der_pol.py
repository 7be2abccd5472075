"""Steps of three samples of one batch on Van der Pol's equation: each sample takes its own."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from style import panels, plain, save
from torch import Tensor

import dise


def van_der_pol(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    """y [n, 2], mu [n, 1]."""
    x, v = y.split(1, dim=1)
    return torch.cat([v, mu * (1 - x**2) * v - x], dim=1)


def draw() -> Figure:
    """States above, step sizes below."""
    mu = torch.tensor([[0.5], [5.0], [20.0]], dtype=torch.float64)
    y0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(3, 2)
    integrator = dise.Dopri5(rtol=1e-4, atol=1e-4)
    solution = dise.solve(
        van_der_pol, y0, 0.0, 30.0, integrator, sample_args=(mu,), save_at=torch.linspace(0, 30, 400), record=True
    )
    figure, (states, sizes) = panels(1, rows=2, height=4.6)
    for sample in range(3):
        label = f"μ = {mu[sample].item():g}: {solution.nfe[sample]} evaluations"
        states.plot(torch.linspace(0, 30, 400), solution.saved[sample, :, 0], lw=1.2, label=label)
        ends = solution.steps.t[sample]
        ends = ends[ends.isfinite()]
        lengths = torch.diff(ends, prepend=torch.zeros(1, dtype=ends.dtype))
        sizes.step(ends, lengths, lw=1)
    states.set(ylabel="y")
    states.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    sizes.set(xlabel="t", ylabel="step size", yscale="log")
    plain(sizes, "y")
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
