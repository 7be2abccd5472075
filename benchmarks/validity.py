"""Is a trained ODE-Net a differential equation? Its accuracy must not move when the test's integrator is tightened.

    python benchmarks/validity.py RUN [--data-dir DIR] [--out FILE.json]

A network that was trained by a few coarse steps may have learnt those steps instead of an equation: another integrator
then gives other answers. Printed are the accuracy on the test images by each integrator, the images on which it differs
from the tightest one, and the two-sided p of McNemar's exact test between the two.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import dise
from dise.select import find_block
from dise.select.deploy import strict_json
from dise_experiments.common.statistics import mcnemar
from dise_experiments.mnist.data import Batches
from dise_experiments.mnist.task import TEST_BATCH
from dise_experiments.run.rundir import load_model, open_run

TIGHTEST = dise.Dopri5(rtol=1e-5, atol=1e-5)
INTEGRATORS = (dise.Euler(1), dise.RK4(1), dise.RK4(4), dise.Dopri5(rtol=1e-3, atol=1e-3), TIGHTEST)


@torch.no_grad()
def measure(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> list[dict[str, Any]]:
    """A row for each integrator, the tightest one last."""
    block, labels = find_block(model), torch.cat([y for _, y in batches])
    answers = []
    for integrator in INTEGRATORS:
        with block.using(integrator):
            answers.append(torch.cat([model(x).argmax(1) for x, _ in batches]))
    right = [answer == labels for answer in answers]
    return [
        {
            "integrator": str(integrator),
            "accuracy": float(own.double().mean()),
            "other answers": int((answer != answers[-1]).sum()),
            "p": mcnemar(own, right[-1])["p"],
        }
        for integrator, answer, own in zip(INTEGRATORS, answers, right, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of an MNIST run")
    parser.add_argument("--data-dir", type=Path, help="folder with mnist/*.gz")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    config = open_run(args.run)
    task, settings = config.found
    splits = task.load(settings, args.data_dir)
    batches = list(Batches.evaluation(splits.test, batch_size=TEST_BATCH))
    rows = measure(load_model(args.run, config), batches)
    table = Table(*rows[0], title=f"{args.run.name}, {len(splits.test):,} test images")
    for row in rows:
        table.add_row(row["integrator"], f"{row['accuracy']:.4f}", str(row["other answers"]), f"{row['p']:.2g}")
    Console().print(table)
    if args.out:
        args.out.write_text(strict_json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
