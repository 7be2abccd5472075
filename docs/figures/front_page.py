"""Accuracy against evaluations of f and against time, DISE beside DOPRI: the README's figure and its table.

The numbers are those that `benchmarks/pareto.py` measured and wrote to `results/policies/pareto-mnist-none.json`.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from style import BLUE, GREEN, GREY, ORANGE, PURPLE, ROOT, panels, plain, save

MEASURED = ROOT / "results" / "policies" / "pareto-mnist-none.json"
BASELINE = "torchdiffeq dopri5"
SHOWN = {
    "DOPRI, heuristic first step, Dopri5 1e-03": "DOPRI, tolerance 1e-3",
    "single candidates, RK4": "RK4, one step",
    "single candidates, Midpoint": "midpoint method, one step",
    "single candidates, Euler": "Euler, one step",
    "the paper's selector, M = 1000": "DISE, the paper's selector",
    "make_dynamic, ε = 0.001": "**`make_dynamic`, ε = 0.1 %**",
    "make_dynamic, ε = 0.002": "**`make_dynamic`, ε = 0.2 %**",
}
MARKS = re.compile(r"(<!-- table [^\n]*-->\n\n).*?(\n<!-- end -->)", re.DOTALL)


class Row(NamedTuple):
    """One policy on the test images."""

    group: str
    policy: str
    accuracy: float  # a part of 1
    nfe: float  # per image
    ms: float  # the ODE part's, per batch of 100


def measured() -> tuple[list[Row], float]:
    """All policies that were timed, and torchdiffeq's time for a batch, in ms."""
    report = json.loads(MEASURED.read_text())
    times = report["timing"]["every"]
    keyed = [(f"{row['group']}, {row['policy']}", row) for row in report["rows"]]
    rows = [
        Row(row["group"], row["policy"], row["accuracy"], row["nfe"], times[key]) for key, row in keyed if key in times
    ]
    return rows, times[BASELINE]


def table() -> str:
    """The table of the README, in Markdown."""
    rows, baseline = measured()
    found = {f"{row.group}, {row.policy}": row for row in rows}
    lines = ["| integrator | accuracy | NFE | ms | faster than torchdiffeq |", "| --- | ---: | ---: | ---: | ---: |"]
    for key, name in SHOWN.items():
        row = found[key]
        lines.append(
            f"| {name} | {100 * row.accuracy:.2f} % | {row.nfe:.2f} | {row.ms:.1f} | {baseline / row.ms:.1f} times |"
        )
    lines.append(f"| torchdiffeq's dopri5, 1e-3 | | | {baseline:.1f} | 1.0 times |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """A page with today's table between its marks."""
    return MARKS.sub(lambda found: found[1] + table() + found[2], text)


def draw() -> Figure:
    """Two panels that share the axis of accuracy."""
    rows, baseline = measured()
    figure, (left, right) = panels(2, height=3.4)
    families = (
        ("DOPRI, heuristic first step", "DOPRI, 1e-1 to 1e-6", BLUE, "o-"),
        ("single candidates", "one fixed method for all", ORANGE, "s"),
        ("the paper's selector", "DISE, the paper's selector", PURPLE, "D"),
        ("make_dynamic", "DISE, make_dynamic", GREEN, "*-"),
    )
    for group, name, color, style in families:
        some = sorted((row for row in rows if row.group == group), key=lambda row: row.nfe)
        size = 11 if "*" in style else 5
        for axes, x in ((left, [row.nfe for row in some]), (right, [row.ms for row in some])):
            axes.plot(x, [100 * row.accuracy for row in some], style, color=color, ms=size, lw=1, label=name)
    right.axvline(baseline, color=GREY, ls=":", label="torchdiffeq's dopri5, 1e-3")
    left.set(xlabel="evaluations of f per image", ylabel="accuracy, %")
    right.set(xlabel="ms of the ODE per batch of 100")
    right.tick_params(labelleft=False)
    for axes in (left, right):
        axes.set(xscale="log", ylim=(97.4, 99.5))
        plain(axes, "x")
        axes.grid(visible=True)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text()))
