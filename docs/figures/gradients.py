"""Error of the gradient in y0 against the tolerance: through the steps, and by the adjoint equation."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from style import panels, save
from torch import Tensor

import dise


def field(t: Tensor, y: Tensor) -> Tensor:
    """A pendulum, y [n, 2]."""
    angle, speed = y.unbind(1)
    return torch.stack([speed, -torch.sin(angle) - 0.1 * speed], 1)


def gradient(tolerance: float, way: str) -> tuple[Tensor, Tensor]:
    """End state and its sum's gradient in y0."""
    y0 = torch.tensor([[2.5, 0.0]], dtype=torch.float64, requires_grad=True)
    solution = dise.solve(field, y0, 0.0, 10.0, dise.Dopri5(rtol=tolerance, atol=tolerance), gradient=way)
    (found,) = torch.autograd.grad(solution.y.sum(), y0)
    return solution.y.detach(), found


def draw() -> Figure:
    """Distance from the gradient at 1e-12, relative to its size."""
    tolerances = [10.0**-n for n in range(2, 10)]
    end, exact = gradient(1e-12, "direct")
    figure, (axes,) = panels(1, height=2.8)
    for way, name in (("direct", "“direct” and “checkpoint”"), ("backsolve", "“backsolve”")):
        errors = [((gradient(tol, way)[1] - exact).norm() / exact.norm()).item() for tol in tolerances]
        axes.plot(tolerances, errors, "o-", ms=4, lw=1, label=f"gradient, {name}")
    states = [((gradient(tol, "direct")[0] - end).norm() / end.norm()).item() for tol in tolerances]
    axes.plot(tolerances, states, ".:", lw=1, label="the state itself")
    axes.set(xscale="log", yscale="log", xlabel="rtol = atol", ylabel="relative error")
    axes.legend()
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
