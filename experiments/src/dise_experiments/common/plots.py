"""Plots of policies, as PNG files."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

COLOURS = ("#4C72B0", "#DD8452", "#55A868", "#C44E52", "#8172B3")


def styled() -> AbstractContextManager[None]:
    """A context with the common style of all plots."""
    return mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def quality_against_nfe(
    rows: Sequence[dict[str, Any]],
    title: str,
    file: Path,
    *,
    quality: Callable[[dict[str, Any]], float],
    label: str,
    unit: str = "sample",
    log: bool = False,
) -> None:
    """Plot the quality of all policies against their NFE, selector included.

    Args:
        rows: policies, as in `metrics.json`.
        title: title of the plot.
        file: PNG file to write.
        quality: a row's value on the y axis.
        label: label of the y axis.
        unit: the unit to which one integrator is assigned.
        log: whether the y axis is logarithmic.
    """
    kinds = {"DISE": "D", "random": "x", "oracle": "*"}
    with styled():
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for i, row in enumerate(rows):
            marker = next((m for start, m in kinds.items() if row["policy"].startswith(start)), "o")
            nfe = row["nfe"] + row.get("selector_macs", 0.0)
            colour = COLOURS[list("oDx*").index(marker)]
            axes.plot(nfe, quality(row), marker, color=colour, markersize=7)
            shift = 6 if i % 2 else -11
            axes.annotate(
                row["policy"],
                (nfe, quality(row)),
                xytext=(5, shift),
                textcoords="offset points",
                fontsize=7,
            )
        axes.set_xscale("log")
        if log:
            axes.set_yscale("log")
        axes.margins(x=0.12, y=0.15)
        axes.set(xlabel=f"NFE per {unit}, selector included", ylabel=label, title=title)
        axes.grid(alpha=0.3)
        figure.savefig(file, dpi=150)
