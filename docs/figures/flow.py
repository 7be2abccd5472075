"""Points of a trained flow on their way from the base to the data, with the paths of a few."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from style import BLUE, ORANGE, ROOT, panels, save

from dise_experiments.run.rundir import load_model, open_run

RUN = ROOT / "results" / "circles-cpu" / "flow-error-seed0"
TIMES = (0.0, 2.5, 5.0, 7.5, 10.0)


@torch.no_grad()
def draw() -> Figure:
    """Five moments; the paths are those from the moment before."""
    flow = load_model(RUN, open_run(RUN))
    points = flow.base.sample(torch.Size([600]))
    figure, axes = panels(len(TIMES), height=2.0)
    before, path = 0.0, torch.empty(0, 8, 2)
    for panel, time in zip(axes, TIMES, strict=True):
        for moment in torch.linspace(before, time, 9)[1:].tolist() if time > before else ():
            points = flow.transport(points, before, moment)
            path, before = torch.cat([path, points[None, :8]]), moment
        panel.plot(*points.T, ".", ms=1.5, color=BLUE, rasterized=True)
        panel.plot(path[..., 0], path[..., 1], "-", lw=0.7, color=ORANGE)
        panel.set(title=f"t = {time:g}", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), xticks=[], yticks=[], aspect="equal")
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
