"""Figures of single test samples: their steps, choices by difficulty, predicted costs, and the samples themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dise_experiments.common.plots import COLOURS, styled

GROUPS = 6  # of difficulty
PICTURES = 8  # samples shown for each candidate


def draw_steps(samples: dict[str, Any], title: str, file: Path) -> None:
    """Plot step sizes and error ratios along t, of the samples that are easiest and hardest for the reference."""
    shown = samples["steps"]
    with styled():
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        sizes, errors = figure.subplots(2, sharex=True)
        for i, sample in enumerate(shown):
            hard = i >= len(shown) // 2
            style: dict[str, Any] = {"color": COLOURS[3 if hard else 0], "marker": "o", "markersize": 3, "alpha": 0.8}
            style |= {"linestyle": "--" if hard else "-", "linewidth": 1}
            label = ("hardest" if hard else "easiest") + f", NFE {sample['nfe']}"
            t = np.array(sample["t"])
            sizes.plot(t[:-1], np.abs(np.diff(t)), label=label, **style)
            errors.plot(t[:-1], sample["ratio"], **style)
        sizes.set(ylabel="step size", yscale="log")
        errors.set(ylabel="error ratio", xlabel="t at the step's start", yscale="log")
        sizes.legend(fontsize=7, ncols=2)
        figure.suptitle(title)
        figure.savefig(file, dpi=150)


def draw_shares(samples: dict[str, Any], title: str, file: Path) -> None:
    """Plot each candidate's share among samples of similar difficulty, the reference's NFE."""
    nfe, choice = np.array(samples["nfe"]), np.array(samples["choice"])
    nfe, choice = nfe[choice >= 0], choice[choice >= 0]  # an empty span has no choice
    groups = _groups(nfe)
    names = samples["candidates"]
    colours = colormaps["viridis"](np.linspace(0.95, 0.05, len(names)))
    with styled():
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes, bottom = figure.add_subplot(), np.zeros(len(groups))
        for i, name in enumerate(names):
            share = np.array([100 * float(np.mean(choice[rows] == i)) for rows in groups])
            if share.any():
                axes.bar(range(len(groups)), share, bottom=bottom, color=colours[i], label=name, width=0.8)
            bottom += share
        labels = [f"{_range(nfe[rows])}\n({len(rows)})" for rows in groups]
        axes.set_xticks(range(len(groups)), labels)
        axes.set(xlabel="NFE of the reference (number of samples)", ylabel="share, %", title=title)
        figure.legend(fontsize=7, loc="outside right upper")
        figure.savefig(file, dpi=150)


def _groups(nfe: np.ndarray) -> list[np.ndarray]:
    """Indices of samples, in at most `GROUPS` groups of increasing NFE; equal NFE are in one group."""
    edges = np.unique(np.quantile(nfe, np.linspace(0, 1, GROUPS + 1)[1:-1], method="inverted_cdf"))
    places = np.searchsorted(edges, nfe, side="left")
    return [rows for i in range(len(edges) + 1) if len(rows := np.flatnonzero(places == i))]


def _range(nfe: np.ndarray) -> str:
    low, high = int(nfe.min()), int(nfe.max())
    return str(low) if low == high else f"{low}–{high}"


def draw_calibration(samples: dict[str, Any], title: str, file: Path) -> None:
    """Plot each candidate's actual mean cost against the predicted one, in bins of the prediction."""
    with styled():
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        axes = figure.add_subplot()
        every = [value for part in samples["calibration"] for values in part.values() for value in values]
        ends = min(every), max(every)
        axes.plot(ends, ends, color="grey", linewidth=1, linestyle=":")
        names = samples["candidates"]
        colours = colormaps["viridis"](np.linspace(0.95, 0.05, len(names)))
        for name, part, colour in zip(names, samples["calibration"], colours, strict=True):
            axes.plot(
                part["predicted"], part["actual"], color=colour, marker="o", markersize=3, linewidth=1, label=name
            )
        scale = "linear" if ends[1] < 10 * ends[0] else "symlog" if ends[0] <= 0 else "log"
        axes.set(xlabel="predicted cost", ylabel="actual cost", xscale=scale, yscale=scale, title=title)
        axes.legend(fontsize=7)
        figure.savefig(file, dpi=150)


def draw_chosen(samples: dict[str, Any], draw: Callable[[Axes, int], None], title: str, file: Path) -> None:
    """Draw the first samples for which each candidate is chosen, a row for each candidate.

    Args:
        samples: as by `dise_experiments.run.samples.study`.
        draw: draws the sample of an index.
        title: of the figure.
        file: PNG file to write.
    """
    choice = np.array(samples["choice"])
    rows = [(name, np.flatnonzero(choice == i)[:PICTURES]) for i, name in enumerate(samples["candidates"])]
    rows = [(name, found) for name, found in rows if len(found)]
    with styled():
        figure = Figure(figsize=(6.4, 0.6 + 1.05 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), PICTURES, squeeze=False)
        for line, (name, found) in zip(grid, rows, strict=True):
            for axes, i in zip(line, found, strict=False):
                draw(axes, int(i))
            for axes in line:
                axes.set_axis_off()
            share = 100 * np.mean(choice == samples["candidates"].index(name))
            heading = line[0].set_title(f"{name}: {share:.1f} %", loc="left")
            heading.set_in_layout(False)  # it may be longer than its picture is wide
        figure.suptitle(title)
        figure.savefig(file, dpi=150)


SAMPLE_PLOTS: dict[str, Callable[[dict[str, Any], str, Path], None]] = {
    "steps.png": draw_steps,
    "shares.png": draw_shares,
    "calibration.png": draw_calibration,
}
