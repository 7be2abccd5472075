"""Which M of Eq. 4 keeps DISE's accuracy? The selector is refitted for each M; the candidates run once.

    python benchmarks/penalty.py RUN [--data-dir DIR] [--out FILE.json]

M is chosen on held-out data alone: the selector is fitted to one half of it, and the M of the highest accuracy on the
other half wins, among those that need at most half of DOPRI's NFE there. Then the selector is fitted to all held-out
data with that M. The test set's columns are computed from what each candidate did alone on it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import dise
from dise.experiment.rundir import load_model, open_run
from dise.tasks.mnist.model import CHANNELS
from dise.tasks.statistics import mcnemar

PENALTIES = (1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
BUDGET = 0.5


def half(costs: dise.Costs, index: int) -> dise.Costs:
    """Every second sample."""
    rows = slice(index, None, 2)
    columns = {name: getattr(costs, name)[rows] for name in ("h0", "k1", "nfe", "adequate", "cost")}
    return replace(costs, **columns)


@torch.no_grad()
def route(selector: dise.CostSelector, costs: dise.Costs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choice, rightness and NFE of every sample under the selector."""
    scores = [selector(h0, k1) for h0, k1 in zip(costs.h0.split(500), costs.k1.split(500), strict=True)]
    choice = torch.cat(scores).argmin(1, keepdim=True)
    return choice[:, 0], costs.adequate.gather(1, choice)[:, 0], costs.nfe.gather(1, choice)[:, 0].float()


def fit(costs: dise.Costs, penalty: float) -> dise.CostSelector:
    """The light selector for this M."""
    rule = dise.ClassificationCost(alpha=costs.rule.alpha, M=penalty)
    costs = replace(costs, cost=rule(costs.nfe, costs.adequate), rule=rule)
    torch.manual_seed(0)
    return dise.CostSelector.fit(dise.PooledNetwork(CHANNELS, len(costs.candidates)), costs)


def score(selector: dise.CostSelector, penalty: float, held_out: dise.Costs, test: dise.Costs) -> dict[str, Any]:
    """Accuracy and NFE of the routed samples."""
    _, right_held, nfe_held = route(selector, held_out)
    choice, right, nfe = route(selector, test)
    return {
        "M": penalty,
        "held-out accuracy": float(right_held.double().mean()),
        "held-out DOPRI": float(held_out.adequate[:, -1].double().mean()),
        "held-out NFE": float(nfe_held.mean()),
        "test accuracy": float(right.double().mean()),
        "test DOPRI": float(test.adequate[:, -1].double().mean()),
        "test NFE": float(nfe.mean()),
        "shares": torch.bincount(choice, minlength=len(test.candidates)).div(len(choice)).tolist(),
        "mcnemar": mcnemar(test.adequate[:, -1], right),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of an ODE-Net")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = open_run(args.run)
    task, settings = config.found
    model = load_model(args.run, config)
    splits = task.load(settings, args.data_dir)
    rule = task.rule(None, None)
    batches = (task.selection_batches(splits, on="held-out"), task.test_batches(splits))
    held_out, test = (dise.collect_costs(model, part, task.candidates, rule) for part in batches)
    fitted, other = half(held_out, 0), half(held_out, 1)
    rows = [score(fit(fitted, penalty), penalty, other, test) for penalty in PENALTIES]
    affordable = [r for r in rows if r["held-out NFE"] <= BUDGET * float(other.nfe[:, -1].float().mean())]
    chosen = max(affordable, key=lambda r: (r["held-out accuracy"], -r["M"]))["M"]
    rows.append(score(fit(held_out, chosen), chosen, other, test) | {"fitted to": "all held-out data"})
    table = Table(
        title=f"{config.name}: DISE (pooled), α = {rule.alpha:g}; last row: M = {chosen:g}, all held-out data"
    )
    for name in ("M", "held-out accuracy (DOPRI)", "test accuracy (DOPRI)", "NFE", "Euler / RK4 / DOPRI", "McNemar p"):
        table.add_column(name, justify="right")
    for r in rows:
        table.add_row(
            f"{r['M']:g}",
            f"{r['held-out accuracy']:.4f} ({r['held-out DOPRI']:.4f})",
            f"{r['test accuracy']:.4f} ({r['test DOPRI']:.4f})",
            f"{r['test NFE']:.2f}",
            " / ".join(f"{share:.1%}" for share in r["shares"]),
            f"{r['mcnemar']['p']:.3g}",
        )
    Console(width=140).print(table)
    if args.out:
        args.out.write_text(json.dumps({"run": config.name, "chosen": chosen, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
