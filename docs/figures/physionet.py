"""Area under the ROC curve against evaluations of f, for each policy on PhysioNet's test records.

The numbers are those of `results/physionet-cpu`, which `dise run physionet --preset cpu` wrote.
"""

import json
from pathlib import Path

from matplotlib.figure import Figure
from style import GREEN, ORANGE, PURPLE, ROOT, panels, plain, save

FAMILIES = {
    "one integrator": (ORANGE, "s"),
    "DISE, the paper's network": (PURPLE, "D"),
    "DISE, pooled": (GREEN, "*"),
}


def family_of(policy: str) -> str:
    """The family that a policy belongs to; bounds such as the oracle belong to none."""
    if policy.startswith("DISE"):
        return "DISE, pooled" if "pooled" in policy else "DISE, the paper's network"
    return "" if policy.startswith(("oracle", "random")) else "one integrator"


def draw() -> Figure:
    """Left: without regularizer. Right: with DOPRI's error estimate."""
    figure, axes = panels(2)
    for panel, name, title in zip(axes, ("none", "error"), ("no regularizer", "error regularizer"), strict=True):
        report = json.loads((ROOT / "results" / "physionet-cpu" / f"z_end-{name}-seed0" / "metrics.json").read_text())
        for family, (color, marker) in FAMILIES.items():
            some = [row for row in report["policies"] if family_of(row["policy"]) == family]
            panel.plot([r["nfe"] for r in some], [r["auroc"] for r in some], marker, color=color, ms=6, label=family)
        panel.set(xscale="log", xlabel="evaluations of f per record", title=title)
        plain(panel, "x")
        panel.grid(visible=True)
    axes[0].set(ylabel="area under the ROC curve")
    axes[1].legend(loc="lower right")
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
