"""A policy that was calibrated on upright digits, on rotated ones: the guarantee fails, and the mean NFE tells.

The numbers are those of `results/policies/shift.json`, which `benchmarks/shift.py` wrote.
"""

import json
from pathlib import Path

from matplotlib.figure import Figure
from style import GREY, ORANGE, ROOT, panels, save


def draw() -> Figure:
    """Left: changed answers. Right: evaluations of f."""
    report = json.loads((ROOT / "results" / "policies" / "shift.json").read_text())
    angles = [row["angle"] for row in report["rows"]]
    figure, (left, right) = panels(2, height=2.6)
    left.plot(angles, [100 * row["differs from DOPRI"] for row in report["rows"]], "o-", ms=4)
    epsilon = 100 * report["policy"]["epsilon"]
    left.axhline(epsilon, color=GREY, ls=":")
    left.annotate(
        f"ε = {epsilon:g} %", (angles[-1], epsilon), ha="right", va="bottom", xytext=(0, 2), textcoords="offset points"
    )
    left.set(xlabel="rotation, degrees", ylabel="answers unlike DOPRI's, %")
    right.plot(angles, [row["NFE"] for row in report["rows"]], "o-", ms=4, color=ORANGE)
    right.set(xlabel="rotation, degrees", ylabel="evaluations of f per image", ylim=(1, None))
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
