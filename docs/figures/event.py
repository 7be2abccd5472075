"""Four balls fall from their own heights; each sample stops where its own height crosses zero."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from style import GREY, panels, save
from torch import Tensor

import dise


def fall(t: Tensor, y: Tensor) -> Tensor:
    """Height and speed [n, 2] with air drag."""
    speed = y[:, 1]
    return torch.stack([speed, -9.81 - 0.1 * speed * speed.abs()], 1)


def draw() -> Figure:
    """Heights over time, and the event of each sample."""
    y0 = torch.tensor([[5.0, 0.0], [10.0, 5.0], [20.0, 0.0], [20.0, 15.0]], dtype=torch.float64)
    solution = dise.solve(fall, y0, 0.0, 10.0, dise.Dopri5(), event=lambda t, y: y[:, 0], dense=True)
    figure, (axes,) = panels(1, height=2.8)
    for sample in range(len(y0)):
        times = solution.t[:, None] * torch.linspace(0, 1, 100, dtype=torch.float64)
        (line,) = axes.plot(times[sample], solution.evaluate(times)[sample, :, 0])
        when = solution.t[sample].item()
        axes.plot(when, 0, "o", color=line.get_color(), label=f"stops at t = {when:.3f}")
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set(xlabel="t", ylabel="height")
    axes.legend()
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
