"""A solution, the ends of its accepted steps, and the error ratio that each was accepted at."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from style import GREY, ORANGE, panels, save

import dise


def draw() -> Figure:
    """A state that is kicked at t = 5; the steps shorten there."""

    def kicked(t, y):
        return -y + 8 * torch.exp(-20 * (t - 5) ** 2)

    y0 = torch.tensor([[2.0]], dtype=torch.float64)
    solution = dise.solve(kicked, y0, 0.0, 10.0, dise.Dopri5(rtol=1e-4, atol=1e-4), dense=True, record=True)
    times, ends = torch.linspace(0, 10, 300, dtype=torch.float64), solution.steps.t[0]
    figure, (states, ratios) = panels(1, rows=2, height=3.8)
    states.plot(times, solution.evaluate(times)[0, :, 0], lw=1.2)
    states.plot(ends, solution.evaluate(ends)[0, :, 0], "o", ms=4, color=ORANGE)
    rejected = (solution.n_steps - solution.n_accepted).item()
    states.set(ylabel="y", title=f"{len(ends)} accepted steps, {rejected} rejected")
    ratios.vlines(ends, 0, solution.steps.ratio[0], color=ORANGE)
    ratios.plot(ends, solution.steps.ratio[0], "o", ms=3, color=ORANGE)
    ratios.axhline(1, color=GREY, ls=":")
    ratios.set(xlabel="t", ylabel="error ratio", ylim=(0, 1.1))
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
