"""Figures of a field's solvers: errors against evaluations, samples and paths by the budget that was chosen."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from dise.flow.fitting.draws import Draws
from dise.integrate import Integrator, solve
from dise_experiments.common.plots import styled
from dise_experiments.flows.cases import Case
from dise_experiments.flows.measure.solvers import FITTED, POLICY, SINGLE

PATHS, MOMENTS = 40, 41  # paths drawn, and times of each
SHOWN = 4000  # samples
GALLERY = (4, 10)  # rows and columns of images
COLOURS = {
    "Euler": "#937860",
    "Midpoint": "#8172B3",
    "Heun": "#DA8BC3",
    "RK4": "#8C8C8C",
    "AB2": "#4C72B0",
    "AB3": "#64B5CD",
    "DPM++2M": "#CCB974",
    "UniPC2": "#B5A642",
    "Dopri5": "#DD8452",
    "Adams": "#55A868",
    FITTED: "#000000",
    SINGLE: "#C44E52",
    POLICY: "#C44E52",
}
MARKERS = {FITTED: "D", SINGLE: "o", POLICY: "*"}


def draw_pareto(rows: Sequence[Mapping[str, Any]], title: str, tolerance: float, file: Path) -> None:
    """The error of 99 % of the draws against the mean of the evaluations; a family is a line.

    Args:
        rows: of `solvers.json`.
        title: of the figure.
        tolerance: τ, a horizontal line.
        file: PNG to write.
    """
    with styled():
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for family, colour in COLOURS.items():
            points = [(row["nfe"]["mean"], row["error"]["q99"]) for row in rows if row["family"] == family]
            shown = [point for point in points if 0 < point[1] < math.inf]  # where it did not fail
            marker = MARKERS.get(family, ".")
            size = {"*": 14, ".": 7}.get(marker, 6)
            line = "-" if marker == "." else ""
            if shown:
                x, y = zip(*sorted(shown), strict=True)
                axes.plot(x, y, line, marker=marker, color=colour, ms=size, lw=1, label=family)
        axes.axhline(tolerance, color="0.6", lw=0.8, ls=":")
        axes.set(xscale="log", yscale="log", title=title)
        axes.set(xlabel="evaluations of the field per draw", ylabel="error of 99 % of the draws")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        if axes.lines[:-1]:
            axes.legend(fontsize=7, ncols=2, loc="lower left")
        figure.savefig(file, dpi=110)


def draw_budgets(case: Case, integrator: Integrator, draws: Draws, ends: Tensor, nfe: Tensor, file: Path) -> None:
    """Samples and paths in the first two coordinates, or images, by the evaluations that each draw was given.

    Args:
        case: the field.
        integrator: the reference, whose paths are drawn.
        draws: noise and conditions.
        ends: [N, ...] data that a policy makes of them.
        nfe: [N] its evaluations.
        file: PNG to write.
    """
    if case.images:
        _gallery(ends, nfe, f"{case.name}: from few to many evaluations", file)
        return
    norm = _budgets(nfe)
    with styled():
        figure = Figure(figsize=(7.6, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        order = nfe[:SHOWN].argsort()
        x, y = ends[:SHOWN][order, :2].T.numpy()
        shown = left.scatter(x, y, c=nfe[:SHOWN][order].numpy(), s=3, cmap="viridis", norm=norm, lw=0)
        paths = _paths(case, integrator, draws[:PATHS])[..., :2].numpy()
        colours = shown.cmap(norm(nfe[:PATHS].double().numpy()))
        for path, colour in zip(paths, colours, strict=True):
            right.plot(*path.T, color=colour, lw=0.8)
            right.plot(*path[-1], ".", color=colour, ms=4)
        for panel, title in ((left, "samples"), (right, "paths from the noise")):
            panel.set(xticks=[], yticks=[], title=f"{case.name}: {title}")
        ticks = nfe.unique().tolist() if isinstance(norm, BoundaryNorm) else None
        figure.colorbar(shown, ax=[left, right], label="evaluations of the field", shrink=0.9, ticks=ticks)
        figure.savefig(file, dpi=110)


def _budgets(nfe: Tensor) -> Normalize:
    """A colour per budget if there are few, else a scale."""
    values = nfe.unique().double()
    if len(values) == 1 or len(values) > 12:
        return Normalize(float(values[0]), float(values[-1]))
    between = (values[1:] + values[:-1]) / 2
    return BoundaryNorm([float(values[0]) - 0.5, *between.tolist(), float(values[-1]) + 0.5], 256)


@torch.no_grad()
def _paths(case: Case, integrator: Integrator, draws: Draws) -> Tensor:
    """[n, MOMENTS, D] states of draws at equally distant times."""
    times = torch.linspace(0, 1, MOMENTS).tolist()
    solution = solve(
        case.flow.f, draws.starts, 0.0, 1.0, integrator, sample_args=draws.conditions, save_at=times, throw=False
    )
    return cast(Tensor, solution.saved)


def _gallery(images: Tensor, nfe: Tensor, title: str, file: Path) -> None:
    """Images at equally distant ranks of their evaluations, with these above them; each image once."""
    rows, columns = GALLERY
    ranks = torch.linspace(0, len(images) - 1, min(rows * columns, len(images))).long()
    chosen = nfe.argsort(stable=True)[ranks]
    with styled():
        figure = Figure(figsize=(0.7 * columns, 0.85 * rows + 0.3), layout="constrained")
        panels: list[Axes] = list(figure.subplots(rows, columns).flat)
        for panel in panels:
            panel.axis("off")
        for panel, i in zip(panels, chosen.tolist(), strict=False):
            panel.imshow(images[i, 0].clamp(-1, 1).numpy(), cmap="gray_r", vmin=-1, vmax=1)
            panel.set_title(f"{int(nfe[i])}", fontsize=7, pad=1)
        figure.suptitle(title, fontsize=9)
        figure.savefig(file, dpi=110)
