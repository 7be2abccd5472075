"""What does Eq. 5 make a flow's selector choose? Cross-validated routing with errors below a resolution counted as it.

    python benchmarks/flow_rule.py RUN [RUN ...] [--resolution 0.005 0.02] [--threads 2] [--out FILE.json]

RUNs are trained by `dise train circles`. Everything is of the sets that selectors are fitted to, none of a test set:
each set is routed by selectors of kind `set` that were fitted to others, with the M that `dise.choose_penalty` takes.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dise.select import Costs, TaskErrorCost, choose_penalty, oracle, run_candidates
from dise.select.deploy import strict_json
from dise_experiments.circles.presets import ALPHA, BETA, PENALTY
from dise_experiments.circles.task import CirclesTask, likelihood_gap
from dise_experiments.run.rundir import load_model, open_run


def score(path: Path, resolutions: list[float]) -> list[dict[str, Any]]:
    """What is chosen on a run's selection sets, a row for each resolution."""
    config = open_run(path)
    task, settings = CirclesTask(), config.found[1]
    model, spec = load_model(path, config), task.selectors["set"]
    data = task.selection_batches(model, task.load(settings, None), on="held-out", unit="set")
    outcomes = run_candidates(model, [((x,), target) for x, target in data], task.candidates)
    rows = []
    for resolution in resolutions:
        rule = TaskErrorCost(ALPHA, PENALTY, task_error=likelihood_gap, beta=BETA, resolution=resolution)
        costs = Costs.of(outcomes, rule)
        network = partial(spec.network, model, len(task.candidates))
        found = choose_penalty(costs, network, tolerance=spec.tolerance, seed=config.seed)
        trial = next(trial for trial in found.trials if trial.M == found.M)
        rows.append(
            {
                "run": config.name,
                "resolution": resolution,
                "M": found.M,
                "passed": found.passed,
                "adequate": trial.adequate,
                "nfe": trial.nfe / found.reference.nfe,
                "oracle_nfe": oracle(costs).mean_nfe / found.reference.nfe,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="run directories of flows")
    parser.add_argument("--resolution", type=float, nargs="+", default=[0.005, BETA], help="nats, up to β")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for path in args.run for row in score(path, args.resolution)]
    table = Table(title=f"Selector `set`, cross-validated, β = {BETA:g}")
    for column in ("run", "resolution", "M", "passed", "adequate", "NFE / DOPRI 1e-5's", "oracle's"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for row in rows:
        table.add_row(
            row["run"],
            f"{row['resolution']:g}",
            f"{row['M']:g}",
            str(row["passed"]),
            f"{row['adequate']:.4f}",
            f"{row['nfe']:.3f}",
            f"{row['oracle_nfe']:.3f}",
        )
    Console(width=120).print(table)
    if args.out:
        args.out.write_text(strict_json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
