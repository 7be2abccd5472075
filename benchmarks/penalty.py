"""Which M of Eq. 4 keeps DISE's accuracy? The selector is refitted for each M; the candidates run once.

    python benchmarks/penalty.py RUN [--data-dir DIR] [--out FILE.json]

The rule that chooses M looks at held-out data alone: the selector is fitted to one half, and M is the smallest one
whose accuracy on the other half is at most 0.05 points below DOPRI's. The test set's columns are computed after that,
from what each candidate did alone on it (executing the policy gives the same predictions: `dise evaluate` does).
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import dise
from dise.experiment.rundir import load_model, open_run
from dise.experiment.statistics import mcnemar
from dise.tasks.mnist.model import CHANNELS

PENALTIES = (1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
MARGIN = 0.0005


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


def sweep(held_out: dise.Costs, test: dise.Costs, alpha: float) -> list[dict[str, float]]:
    """A row for each M."""
    rows = []
    for penalty in PENALTIES:
        rule = dise.ClassificationCost(alpha=alpha, M=penalty)
        costs = replace(held_out, cost=rule(held_out.nfe, held_out.adequate), rule=rule)
        torch.manual_seed(0)
        network = dise.PooledNetwork(CHANNELS, len(costs.candidates))
        selector = dise.CostSelector.fit(network, half(costs, 0))
        other = half(costs, 1)
        _, right_held, _ = route(selector, other)
        choice, right, nfe = route(selector, test)
        rows.append(
            {
                "M": penalty,
                "held-out accuracy": float(right_held.double().mean()),
                "held-out DOPRI": float(other.adequate[:, -1].double().mean()),
                "test accuracy": float(right.double().mean()),
                "test DOPRI": float(test.adequate[:, -1].double().mean()),
                "NFE": float(nfe.mean()),
                "shares": torch.bincount(choice, minlength=len(test.candidates)).div(len(choice)).tolist(),
                "mcnemar": mcnemar(test.adequate[:, -1], right),
            }
        )
    return rows


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
    rows = sweep(held_out, test, rule.alpha)
    chosen = next((r["M"] for r in rows if r["held-out accuracy"] >= r["held-out DOPRI"] - MARGIN), None)
    table = Table(
        title=f"{config.name}: DISE (pooled) for each M, α = {rule.alpha:g}; chosen on held-out data: M = {chosen}"
    )
    for name in ("M", "held-out accuracy (DOPRI)", "test accuracy (DOPRI)", "NFE", "Euler / RK4 / DOPRI", "McNemar p"):
        table.add_column(name, justify="right")
    for r in rows:
        table.add_row(
            f"{r['M']:g}",
            f"{r['held-out accuracy']:.4f} ({r['held-out DOPRI']:.4f})",
            f"{r['test accuracy']:.4f} ({r['test DOPRI']:.4f})",
            f"{r['NFE']:.2f}",
            " / ".join(f"{share:.1%}" for share in r["shares"]),
            f"{r['mcnemar']['p']:.3g}",
        )
    Console(width=140).print(table)
    if args.out:
        args.out.write_text(json.dumps({"run": config.name, "chosen": chosen, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
