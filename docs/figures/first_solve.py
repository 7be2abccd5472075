"""The first solve of the documentation: five samples, each with its own end."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from style import panels, save

import dise


def draw() -> Figure:
    """y of each sample over its own span, with the ends of the accepted steps."""
    y0 = torch.linspace(-2, 2, 5)[:, None]
    t1 = torch.tensor([2.0, 4.0, 6.0, 8.0, 10.0])
    times = t1[:, None] * torch.linspace(0, 1, 200)
    solution = dise.solve(
        lambda t, y: torch.sin(t) - y, y0, 0.0, t1, dise.Dopri5(), save_at=times, record=True, dense=True
    )
    figure, (axes,) = panels(1, height=2.8)
    for sample in range(5):
        (line,) = axes.plot(times[sample], solution.saved[sample, :, 0], label=f"{solution.nfe[sample]} evaluations")
        ends = solution.steps.t.nan_to_num(nan=0)
        states = solution.evaluate(ends)[sample, :, 0]
        taken = solution.steps.t[sample].isfinite()
        axes.plot(ends[sample][taken], states[taken], "o", ms=4, color=line.get_color())
    axes.set(xlabel="t", ylabel="y")
    axes.legend()
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
