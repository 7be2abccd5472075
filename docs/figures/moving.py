"""A batch of 64 Van der Pol equations: the steps of one system, as torchdiffeq takes them, and each sample's own."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from style import GREY, panels, save
from torch import Tensor

import dise


def van_der_pol(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    """y [n, 2], mu [n, 1]."""
    x, v = y.split(1, dim=1)
    return torch.cat([v, mu * (1 - x**2) * v - x], dim=1)


def draw() -> Figure:
    """Evaluations of f per sample, sorted; the batch's as a line."""
    mu = torch.logspace(-1, 1.3, 64, dtype=torch.float64)[:, None]
    y0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(64, 2)
    integrator = dise.Dopri5(rtol=1e-5, atol=1e-5)
    own = dise.solve(van_der_pol, y0, 0.0, 10.0, integrator, sample_args=(mu,)).nfe
    joint = dise.solve(van_der_pol, y0, 0.0, 10.0, integrator, args=(mu,), batched=False).nfe
    figure, (axes,) = panels(1, height=2.6)
    axes.bar(range(64), own.sort().values, label=f"each sample's own steps: {own.sum():,} in all")
    axes.axhline(joint, color=GREY, ls="--", label=f"one step size for the batch: {64 * joint:,} in all")
    axes.set(xlabel="sample, from easy to stiff", ylabel="evaluations of f", ylim=(0, 1.08 * joint))
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.9))
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
