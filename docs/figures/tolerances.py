"""Error against evaluations of f for several methods, and error along t at several tolerances."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from style import panels, plain, save
from torch import Tensor

import dise

TOLERANCES = [10.0**-n for n in range(2, 11)]


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    """The pendulum in the wind of the page on tolerances, y [n, 2]."""
    angle, speed = y.unbind(1)
    return torch.stack([speed, -torch.sin(angle) - 0.1 * speed + 0.3 * torch.cos(t[:, 0])], 1)


def draw() -> Figure:
    """Left: work and precision at t = 10. Right: how the error grows on the way."""
    y0 = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    times = torch.linspace(0.1, 10, 150, dtype=torch.float64)
    truth = dise.solve(pendulum, y0, 0.0, 10.0, dise.Dopri8(rtol=1e-13, atol=1e-13), save_at=times)
    figure, (left, right) = panels(2)
    for method in (dise.Bosh3, dise.Dopri5, dise.Tsit5, dise.Dopri8):
        solved = [dise.solve(pendulum, y0, 0.0, 10.0, method(rtol=tol, atol=tol)) for tol in TOLERANCES]
        errors = [(solution.y - truth.y).abs().max().item() for solution in solved]
        left.plot([solution.nfe.item() for solution in solved], errors, ".-", lw=1, label=method.__name__)
    left.set(xscale="log", yscale="log", xlabel="evaluations of f", ylabel="error at t = 10")
    plain(left, "x")
    left.legend()
    for tol in (1e-3, 1e-5, 1e-7):
        solution = dise.solve(pendulum, y0, 0.0, 10.0, dise.Dopri5(rtol=tol, atol=tol), save_at=times)
        right.plot(times, (solution.saved - truth.saved).norm(dim=2)[0], lw=1.2, label=f"Dopri5, {tol:g}")
    right.set(yscale="log", xlabel="t", ylabel="error along t", ylim=(1e-11, 1))
    right.legend(ncols=3, loc="upper center", fontsize="small", columnspacing=1, handlelength=1)
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
