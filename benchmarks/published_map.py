"""The paper's selector over M and α on a trained run: are there any at which the paper's shares come out?

    python benchmarks/published_map.py RUN --out FILE [--euler-steps 50 --rk4-steps 5] [--limit 2000] [--data-dir DIR]

Every cell of the grid fits the selector as published, except that on MNIST the network reads the channels' means of
h(0) and k1 (`PooledNetwork`): a fit of Table 2's network takes minutes. Shares, NFE and quality are those of the
network's choices on the test data. On circles β is that of the committed selection, or `--beta`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from dise.select import Costs, CostSelector, Outcomes, PooledNetwork, run_candidates
from dise.select.deploy import strict_json
from dise_experiments.circles.evaluate import CHUNK
from dise_experiments.circles.points import sets
from dise_experiments.common.task import AsPublished, Task
from dise_experiments.mnist.data import Batches
from dise_experiments.mnist.model import CHANNELS
from dise_experiments.physionet.starts import FromStarts, encoded
from dise_experiments.run.published import published_task
from dise_experiments.run.rundir import load_model, open_run

PENALTIES = (1e2, 1e3, 1e4, 1e6, 1e8)
EXPONENTS = (0.03, 0.05, 0.1, 0.3, 1.0)
EPOCHS = 30
TEST_IMAGES = 2000
TEST_SETS = 256


def tested(task: Task, model: nn.Module, splits: Any) -> Outcomes:
    """All candidates on test data."""
    if task.name == "mnist":
        batches = Batches.evaluation(splits.test[:TEST_IMAGES], batch_size=100)
        return run_candidates(model, [((x,), y) for x, y in batches], task.candidates)
    if task.name == "physionet":
        return run_candidates(FromStarts(model), encoded(model, splits.test), task.candidates)
    points = sets(splits.target, TEST_SETS, "large test")
    return run_candidates(model, [((x,), x.new_zeros(x.shape[:2])) for x in points.split(CHUNK)], task.candidates)


def quality(name: str, outcomes: Outcomes, choice: Tensor) -> dict[str, float]:
    """The task's measure of the chosen outputs; on circles the reported NLL beside DOPRI's on the same points."""
    output = outcomes.output[torch.arange(len(choice)), choice]
    if name == "mnist":
        return {"accuracy": float((output.argmax(-1) == outcomes.target).double().mean())}
    if name == "physionet":
        return {"auroc": float(binary_auroc(output.sigmoid().contiguous(), outcomes.target.long()))}
    return {"nll": float(-output.double().mean()), "dopri's": float(-outcomes.output[:, -1].double().mean())}


def cell(
    name: str, network: Callable[[], nn.Module], costs: Costs, test: Outcomes, M: float, alpha: float
) -> dict[str, Any]:
    """One fit and its choices."""
    try:
        costs = costs.with_penalty(M, alpha)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            selector = CostSelector.fit(network(), costs, max_epochs=EPOCHS, seed=0)
    except ValueError:  # M is less than the price of an adequate candidate
        return {"M": M, "alpha": alpha}
    with torch.no_grad():
        choice = selector(test.h0, test.k1).argmin(1)
    shares = torch.bincount(choice, minlength=3).double() / len(choice)
    nfe = float(test.nfe[torch.arange(len(choice)), choice].double().mean())
    return {"M": M, "alpha": alpha, "shares": shares.tolist(), "nfe": nfe} | quality(name, test, choice)


def main() -> None:
    """Fit all cells and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--euler-steps", type=int, default=1)
    parser.add_argument("--rk4-steps", type=int, default=1)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--beta", type=float)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    config = open_run(options.run)
    about = AsPublished(options.euler_steps, options.rk4_steps, options.limit)
    task = published_task(options.run, config, about, options.beta)
    model = load_model(options.run, config)
    splits = task.load(config.found[1], options.data_dir)
    spec = next(iter(task.selectors.values()))
    batches = [((x,), y) for x, y in task.selection_batches(model, splits, on="train", unit=spec.unit)]
    costs = Costs.of(run_candidates(model, batches, task.candidates), task.rule(None, None, spec.equation))
    test = tested(task, model, splits)
    pooled = config.task == "mnist"
    report = {
        "run": config.name,
        "candidates": list(map(str, task.candidates)),
        "network": "PooledNetwork" if pooled else "as published",
        "beta": options.beta,
        "training samples": len(costs),
        "adequate": costs.adequate.double().mean(0).tolist(),
        "cells": [
            cell(
                config.task,
                lambda: PooledNetwork(CHANNELS, 3) if pooled else spec.network(model, 3),
                costs,
                test,
                M,
                alpha,
            )
            for M in PENALTIES
            for alpha in EXPONENTS
        ],
    }
    options.out.write_text(strict_json.dumps(report, indent=2) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
