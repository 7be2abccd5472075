"""What does λ of DOPRI's error buy on MNIST, and is Eq. 2 a sum or a mean? Accuracy and NFE on held-out images.

    python benchmarks/mnist_weights.py RUN [RUN ...] [--data-dir DIR] [--out FILE.json]

RUNs are trained by `dise train mnist`, the first one without regularizer: the others are compared with it, by McNemar's
exact test. DOPRI at 1e-3 solves every image on its own, its first step by the heuristic ("NFE") or the whole span, and
batches of 100 as one system each. A sum over a batch of B is a mean with the weight λ·B, printed as "λ of the mean".
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
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
from dise_experiments.run.config import RunConfig
from dise_experiments.run.rundir import load_model, open_run

DOPRI = dise.Dopri5(rtol=1e-3, atol=1e-3)
WAYS = {  # integrator, and whether every image has steps of its own
    "NFE": (DOPRI, True),
    "NFE, first step span": (replace(DOPRI, first_step="span"), True),
    "NFE of a batch": (DOPRI, False),
}


@torch.no_grad()
def measure(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, dict[str, float]]:
    """Whether DOPRI's answer for each image is right, and the mean NFE in each way."""
    block, spent, right = find_block(model), {}, []
    for way, (integrator, batched) in WAYS.items():
        with block.using(integrator, batched=batched), block.recording() as records:
            answers = [model(x).argmax(1) == y for x, y in batches]
        spent[way] = float(torch.cat([record.solution.nfe.flatten() for record in records]).double().mean())
        right = right or answers
    return torch.cat(right), spent


def weight_of_mean(config: RunConfig) -> float:
    """λ, or what it is for a mean over the batch."""
    return config.weight * (config.settings["batch_size"] if config.reduce == "sum" else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="run directories of MNIST, the first without regularizer")
    parser.add_argument("--data-dir", type=Path, help="folder with mnist/*.gz")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    configs = [open_run(path) for path in args.run]
    if configs[0].reg != "none":
        parser.error(f"the first run must have no regularizer; {args.run[0]} has {configs[0].reg!r}")
    task, settings = configs[0].found
    splits = task.load(settings, args.data_dir)
    batches = list(Batches.evaluation(splits.held_out, batch_size=TEST_BATCH))
    rows, plain = [], None
    for path, config in zip(args.run, configs, strict=True):
        right, spent = measure(load_model(path, config), batches)
        plain = right if plain is None else plain
        row = {
            "run": config.name,
            "R": config.reduce if config.weight else "–",
            "λ of the mean": weight_of_mean(config),
        }
        accuracy = {"accuracy": float(right.double().mean()), "p": mcnemar(right, plain)["p"]}
        rows.append(row | accuracy | spent)
    table = Table(*rows[0], title=f"MNIST, {len(splits.held_out):,} held-out images")
    for row in rows:
        table.add_row(*(_cell(key, value) for key, value in row.items()))
    Console(width=160).print(table)
    if args.out:
        args.out.write_text(strict_json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if name == "accuracy" else f"{value:.2f}" if name.startswith("NFE") else f"{value:.3g}"


if __name__ == "__main__":
    main()
