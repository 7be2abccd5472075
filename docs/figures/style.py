"""One look for all figures: no background, and greys and colours that can be read on white and on black."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE = COLORS = ("#3a86d4", "#e07b00", "#2a9d6f", "#d9534f", "#9067c6")
GREY = "#808080"
SETTINGS: dict[str, Any] = {
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "axes.labelcolor": GREY,
    "axes.prop_cycle": mpl.cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.facecolor": "none",
    "font.size": 10,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.labelcolor": GREY,
    "font.family": "DejaVu Sans",
    "svg.fonttype": "none",
    "svg.hashsalt": "dise",  # the same names of clip paths in every run
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}
NUMBER = re.compile(r"-?\d+\.\d{3,}")
ROOT = Path(__file__).parents[2]


def panels(columns: int, *, width: float = 8.0, height: float = 3.2, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def plain(axes: Axes, *directions: str) -> None:
    """Numbers such as 0.1, 1, 10 on logarithmic axes "x" or "y", instead of powers."""
    for direction in directions:
        getattr(axes, f"{direction}axis").set_major_formatter("{x:g}")


def save(draw: Callable[[], Figure], file: Path) -> None:
    """Write what `draw` draws, as SVG beside the script `file`, under its name."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    text = io.StringIO()
    with mpl.rc_context(SETTINGS):
        draw().savefig(text, format="svg", dpi=144, transparent=True, metadata={"Creator": None, "Date": None})
    # hundredths of a point are enough, and a third of the bytes; what stands between tags are the labels
    rounded = re.sub(r'"[^"]*"', lambda value: NUMBER.sub(lambda x: f"{float(x[0]):.2f}", value[0]), text.getvalue())
    file.with_suffix(".svg").write_text(rounded.replace("'DejaVu Sans'", "'DejaVu Sans', sans-serif"))
