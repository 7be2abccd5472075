"""Families of policies on MNIST's test images: accuracy against evaluations of f, each family's settings a line.

The numbers are those of `results/policies/pareto-mnist-none.json`, which `benchmarks/pareto.py` wrote.
"""

from pathlib import Path

from front_page import Row, measured
from matplotlib.figure import Figure
from style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, panels, plain, save

CHAIN = "Euler → Midpoint → RK4 → RK4(steps=2) → Dopri5"
FAMILIES = (
    ("DOPRI, heuristic first step", "DOPRI, 1e-1 to 1e-6", BLUE, "o-"),
    ("single candidates", "single candidates", ORANGE, "s"),
    (f"forecast {CHAIN}", "cascade on forecasts", GREEN, ".-"),
    (f"cascade {CHAIN}", "cascade on confidence", RED, ".-"),
    ("selector on the head's confidence", "selector, head's confidence", PURPLE, ".-"),
    ("selector on the state's channels", "selector, state's channels", GREY, ".-"),
)


def draw() -> Figure:
    """One panel; better is further up and further left."""
    rows, _ = measured()
    figure, (axes,) = panels(1, height=3.6)
    for group, name, color, style in FAMILIES:
        some = sorted((row for row in rows if row.group == group), key=lambda row: row.nfe)
        axes.plot(*_points(some), style, color=color, lw=1, ms=5, label=name)
    axes.set(xscale="log", ylim=(98.4, 99.4), xlabel="evaluations of f per image", ylabel="accuracy, %")
    axes.grid(visible=True)
    plain(axes, "x")
    axes.legend(loc="lower right")
    return figure


def _points(rows: list[Row]) -> tuple[list[float], list[float]]:
    return [row.nfe for row in rows], [100 * row.accuracy for row in rows]


if __name__ == "__main__":
    save(draw, Path(__file__))
