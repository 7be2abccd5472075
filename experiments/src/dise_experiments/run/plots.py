"""Plots of a training, as PNG files."""

from pathlib import Path

from matplotlib.figure import Figure

from dise_experiments.common.plots import COLOURS, styled


def training_curves(log: list[dict[str, float]], title: str, file: Path) -> None:
    """Plot task loss, λ·R and NFE against the training step.

    Args:
        log: rows of Lightning's CSV log with `step` and `train/...`.
        title: title of the plot.
        file: PNG file to write.
    """
    shown = [name for name in ("train/loss", "train/penalty", "train/nfe") if any(row.get(name) for row in log)]
    names = shown or ["train/loss"]
    with styled():
        figure = Figure(figsize=(6.4, 1.8 * len(names)), layout="constrained")
        for axes, name, colour in zip(
            figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], names, COLOURS, strict=False
        ):
            points = [(row["step"], row[name]) for row in log if name in row]
            axes.plot([step for step, _ in points], [value for _, value in points], color=colour, linewidth=1)
            axes.set_ylabel({"train/loss": "task loss", "train/penalty": "λ·R", "train/nfe": "NFE per sample"}[name])
            axes.grid(alpha=0.3)
            if points and name != "train/nfe":
                axes.set_yscale("log")
        axes.set_xlabel("training step")
        figure.suptitle(title)
        figure.savefig(file, dpi=150)
