"""Figure 3: a flow from its base to the data, as densities and as samples; and the same as an animation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dise.flow import Flow
from dise_experiments.circles.points import draw
from dise_experiments.common.plots import styled

EXTENT = 1.5  # half the width of the plotted square
GRID, SAMPLES = 100, 4000
TARGET_POINTS = 400_000  # points of the target's histogram: 40 per cell
TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)  # the paper's labels, as fractions of the flow's time span
FRAMES = 25


def draw_flows(flows: Mapping[str, Flow], target: str, file: Path) -> None:
    """Densities and samples of each flow at five times, beside the target.

    Args:
        flows: flows by label.
        target: name of the learnt distribution.
        file: PNG to write.
    """
    rows, columns = 2 * len(flows), len(TIMES) + 1
    points = draw(target, TARGET_POINTS, "figure")
    with styled():
        figure = Figure(figsize=(1.5 * columns, 1.5 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for (name, flow), above, below in zip(flows.items(), axes[::2], axes[1::2], strict=True):
            for panel, density in zip(above, densities(flow, TIMES), strict=False):
                show_density(panel, density)
            for panel, samples in zip(below, sample_paths(flow, TIMES), strict=False):
                show_points(panel, samples)
            show_density(above[-1], histogram(points))
            show_points(below[-1], points[:SAMPLES])
            above[0].set_ylabel("\n".join(wrap(f"{name}: density", 22)), fontsize=8)
            below[0].set_ylabel("samples", fontsize=8)
        for panel, title in zip(axes[0], [*(f"t = {t:g}" for t in TIMES), "target"], strict=True):
            panel.set_title(title)
        for panel in axes.flat:
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(True)
        figure.savefig(file, dpi=110)


def animate(flow: Flow, file: Path) -> None:
    """An animation of the flow from its base to the data: density on the left, samples on the right.

    Args:
        flow: a trained flow.
        file: GIF to write.
    """
    times = torch.linspace(0, 1, FRAMES).tolist()
    frames = list(zip(times, densities(flow, times), sample_paths(flow, times), strict=True))
    frames += frames[-1:] * 6
    figure = Figure(figsize=(4.4, 2.4), layout="constrained")
    left, right = figure.subplots(1, 2)

    def update(frame: tuple[float, Tensor, Tensor]) -> list[Axes]:
        time, density, samples = frame
        for panel in (left, right):
            panel.clear()
        show_density(left, density)
        show_points(right, samples)
        figure.suptitle(f"t = {time:.2f}", fontsize=9)
        return []

    FuncAnimation(figure, update, frames=frames).save(file, writer=PillowWriter(fps=10), dpi=80)


@torch.no_grad()
def densities(flow: Flow, times: Sequence[float]) -> list[Tensor]:
    """[GRID, GRID] density at each time, a fraction of the flow's time span; the first row is at the bottom."""
    line = torch.linspace(-EXTENT, EXTENT, GRID)
    y, x = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack([x, y], -1).reshape(1, -1, 2)
    start, end = float(flow.t0), float(flow.t1)
    return [flow.until(start + t * (end - start)).log_prob(grid).exp().reshape(GRID, GRID) for t in times]


@torch.no_grad()
def sample_paths(flow: Flow, times: Sequence[float]) -> list[Tensor]:
    """[SAMPLES, 2] points of the base, moved by the flow to each time; times are increasing fractions of its span."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        z = flow.base.sample(torch.Size([1, SAMPLES]))
    start, end = float(flow.t0), float(flow.t1)
    moments = [start + t * (end - start) for t in times]
    paths = []
    for before, moment in zip([start, *moments], moments, strict=False):
        z = flow.transport(z, before, moment)
        paths.append(z[0])
    return paths


def histogram(points: Tensor) -> Tensor:
    """[GRID, GRID] density of many points [n, 2]; the first row is at the bottom."""
    counts, _ = torch.histogramdd(points, bins=[GRID, GRID], range=[-EXTENT, EXTENT] * 2)
    return counts.T / (len(points) * (2 * EXTENT / GRID) ** 2)


def show_density(panel: Axes, density: Tensor) -> None:
    """Plot a density [rows, columns]."""
    panel.imshow(density.numpy(), origin="lower", extent=(-EXTENT, EXTENT) * 2, cmap="viridis", vmin=0)
    panel.set(xticks=[], yticks=[])


def show_points(panel: Axes, points: Tensor) -> None:
    """Plot points [n, 2]."""
    panel.plot(*points.T.numpy(), ",", color="#4C72B0", alpha=0.6)
    panel.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), xticks=[], yticks=[], aspect="equal")
