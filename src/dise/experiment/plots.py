"""Plots of a run, as PNG."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

COLOURS = ("#4C72B0", "#DD8452", "#55A868", "#C44E52", "#8172B3")


def accuracy_against_nfe(rows: list[dict[str, Any]], title: str, file: Path) -> None:
    """Every policy's accuracy over its NFE, selector included.

    Args:
        rows: policies, as in `metrics.json`.
        title: above the plot.
        file: PNG to write.
    """
    kinds = {"DISE": "D", "random": "x", "oracle": "*"}
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for i, row in enumerate(rows):
            marker = next((m for start, m in kinds.items() if row["policy"].startswith(start)), "o")
            nfe = row["nfe"] + row.get("selector_macs", 0.0)
            colour = COLOURS[list("oDx*").index(marker)]
            axes.plot(nfe, 100 * row["accuracy"], marker, color=colour, markersize=7)
            shift = 6 if i % 2 else -11
            axes.annotate(
                row["policy"],
                (nfe, 100 * row["accuracy"]),
                xytext=(5, shift),
                textcoords="offset points",
                fontsize=7,
            )
        axes.set_xscale("log")
        axes.margins(x=0.12, y=0.15)
        axes.set(xlabel="NFE a sample, selector included", ylabel="accuracy, %", title=title)
        axes.grid(alpha=0.3)
        figure.savefig(file, dpi=150)


def training_curves(log: list[dict[str, float]], title: str, file: Path) -> None:
    """Task loss, λ·R and NFE over the training steps.

    Args:
        log: rows of Lightning's CSV log that have `step` and `train/...` values.
        title: above the plot.
        file: PNG to write.
    """
    shown = [name for name in ("train/loss", "train/penalty", "train/nfe") if any(row.get(name) for row in log)]
    names = shown or ["train/loss"]
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6.4, 1.8 * len(names)), layout="constrained")
        for axes, name, colour in zip(
            figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], names, COLOURS, strict=False
        ):
            points = [(row["step"], row[name]) for row in log if name in row]
            axes.plot([step for step, _ in points], [value for _, value in points], color=colour, linewidth=1)
            axes.set_ylabel({"train/loss": "task loss", "train/penalty": "λ·R", "train/nfe": "NFE a sample"}[name])
            axes.grid(alpha=0.3)
            if points and name != "train/nfe":
                axes.set_yscale("log")
        axes.set_xlabel("training step")
        figure.suptitle(title)
        figure.savefig(file, dpi=150)
