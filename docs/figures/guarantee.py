"""Settings of one cascade on 15,000 of MNIST's images: how often an answer changes, against evaluations of f.

The numbers are those of `results/policies/guarantee-mnist-none.json`, which `benchmarks/guarantee.py` wrote.
"""

import json
from pathlib import Path

from matplotlib.figure import Figure
from style import GREY, ORANGE, ROOT, panels, save

MEASURED = ROOT / "results" / "policies" / "guarantee-mnist-none.json"


def draw() -> Figure:
    """Risk of each setting, the bound ε, and what `calibrate` takes in the mean of 200 splits."""
    report = json.loads(MEASURED.read_text())
    settings = sorted(report["settings"].values(), key=lambda setting: setting["nfe"])
    shown = [setting for setting in settings if setting["risk"] < 0.008]
    figure, (axes,) = panels(1, height=2.8)
    risks = [100 * setting["risk"] for setting in shown]
    axes.plot([setting["nfe"] for setting in shown], risks, "o-", ms=4, lw=1, label="settings, from bold to safe")
    axes.axhline(100 * report["epsilon"], color=GREY, ls=":", label=f"ε = {100 * report['epsilon']:g} %")
    row = next(row for row in report["rows"] if (row["p-value"], row["calibration"]) == ("exact binomial", 5000))
    axes.plot(
        row["NFE"],
        100 * row["mean risk"],
        "*",
        ms=13,
        color=ORANGE,
        label="certified on 5,000 images, mean of 200 splits",
    )
    axes.set(xlabel="evaluations of f per image", ylabel="answers unlike DOPRI's, %", xlim=(1, 2))
    axes.legend()
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
