"""What does a regularizer's weight λ buy on a flow? Likelihood and DOPRI's NFE of trained runs, in pairs by seed.

    python benchmarks/flow_weights.py RUN [RUN ...] [--threads 2] [--out FILE.json]

RUNs are trained by `dise train circles`, among them the runs without regularizer to compare with. Every flow is scored
on the same 625 sets of 32 points by a solve at 1e-7 in double precision; NFE is of DOPRI at 1e-5, a step size a set.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dise.select import find_block
from dise.select.deploy import strict_json
from dise_experiments.circles.evaluate import Reference
from dise_experiments.circles.points import sets
from dise_experiments.common.table import spread
from dise_experiments.run.rundir import load_model, open_run

SETS = 625


@torch.no_grad()
def score(path: Path) -> dict[str, Any]:
    """A run's negative log-likelihood (nats) and mean NFE."""
    config = open_run(path)
    flow = load_model(path, config)
    reference, block = Reference(flow), find_block(flow)
    nll, nfe = [], []
    for x in sets(config.settings["target"], SETS, "large test").split(64):
        nll.append(-reference(x))
        with block.recording() as records:
            flow(x)
        nfe.append(records[0].solution.nfe)
    return {
        "run": config.name,
        "reg": config.reg,
        "weight": config.weight,
        "seed": config.seed,
        "nll": float(torch.cat(nll).double().mean()),
        "nfe": float(torch.cat(nfe).double().mean()),
    }


def compare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means of each regularizer and weight, and mean differences from the plain flow of the same seed."""
    plain = {row["seed"]: row for row in rows if row["reg"] == "none"}
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["reg"], row["weight"]), []).append(row)
    means = []
    for (reg, weight), group in sorted(groups.items()):
        pairs = [(row, plain[row["seed"]]) for row in group if row["seed"] in plain]
        means.append(
            {
                "reg": reg,
                "weight": weight,
                "seeds": [row["seed"] for row in group],
                "nll": [row["nll"] for row in group],
                "nfe": [row["nfe"] for row in group],
                "nll difference": [ours["nll"] - base["nll"] for ours, base in pairs],
                "nfe ratio": [ours["nfe"] / base["nfe"] for ours, base in pairs],
            }
        )
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="run directories of flows")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    means = compare([score(path) for path in args.run])
    table = Table(title="Flows on 20,000 points, mean ± standard deviation over seeds")
    for column in ("regularizer", "λ", "seeds", "NLL", "NFE a set", "NLL − no reg.'s", "NFE / no reg.'s"):
        table.add_column(column, justify="left" if column == "regularizer" else "right")
    for row in means:
        table.add_row(
            row["reg"],
            f"{row['weight']:g}",
            ", ".join(map(str, row["seeds"])),
            spread(row["nll"], 4),
            spread(row["nfe"], 1),
            spread(row["nll difference"], 4),
            spread(row["nfe ratio"], 2),
        )
    Console(width=120).print(table)
    if args.out:
        args.out.write_text(strict_json.dumps(means, indent=2) + "\n")


if __name__ == "__main__":
    main()
