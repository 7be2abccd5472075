"""What a run's policy does with single test samples: who is hard, what is chosen, and what was predicted."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from dise.integrate import Steps
from dise.nn import BlockSolve, NeuralODE
from dise.select import Costs, Dynamic, find_block, run_candidates
from dise_experiments.common.task import Task

SAMPLES, CHOSEN = "samples.json", "chosen.png"
STUDIED = 10  # test batches
SHOWN = 3  # samples at each end of the difficulty
BINS = 8  # of predicted costs


def studied_batches(model: nn.Module, task: Task, splits: Any) -> list[tuple[Any, Tensor]]:
    """The first test batches (x, target), in units of the task's default selector."""
    unit = task.selectors[task.default_selector].unit
    return list(islice(task.selection_batches(model, splits, on="test", unit=unit), STUDIED))


@torch.no_grad()
def study(
    model: nn.Module, task: Task, dynamic: Dynamic, selection: dict[str, Any], batches: Sequence[tuple[Any, Tensor]]
) -> dict[str, Any]:
    """A policy sample by sample.

    Args:
        model: a trained model, in evaluation mode.
        task: its task, whose default selector is studied.
        dynamic: that selector, fitted.
        selection: the content of `selection.json`.
        batches: (x, target), as by `studied_batches`.

    Returns:
        "candidates": names; "nfe" and "choice": of each sample, by the reference and as chosen; "steps": the accepted
        steps of the samples that are easiest and hardest for the reference; "calibration": of each candidate the mean
        costs that the selector predicts and the actual ones, in bins of equally many samples.
    """
    spec, block = task.selectors[task.default_selector], find_block(model)
    with block.using(task.reference), block.recording() as exact:
        _run(model, (x for x, _ in batches))
    with block.using(dynamic), block.recording() as chosen:
        _run(model, (x for x, _ in batches))
    nfe = torch.cat([solve.solution.nfe for solve in exact]).cpu()
    choice = torch.cat([solve.solution.choice for solve in chosen if solve.solution.choice is not None]).cpu()
    order = torch.argsort(nfe, stable=True).tolist()
    with block.using(task.reference):
        steps = [_steps(block, exact, row) | {"nfe": int(nfe[row])} for row in [*order[:SHOWN], *order[-SHOWN:]]]
    outcomes = run_candidates(model, [((x,), target) for x, target in batches], task.candidates)
    own = selection["selectors"][task.default_selector]
    costs = Costs.of(outcomes, task.rule(selection["alpha"], own["M"], spec.equation))
    choosable = range(len(task.candidates)) if spec.candidates is None else spec.candidates
    return {
        "candidates": [str(candidate) for candidate in dynamic.candidates],
        "nfe": nfe.tolist(),
        "choice": choice.tolist(),
        "steps": steps,
        "calibration": _calibration(dynamic.selector, costs.take_candidates(choosable)),
    }


def _run(model: nn.Module, inputs: Iterable[Any]) -> None:
    device = next(model.parameters()).device
    for x in inputs:
        model(x.to(device))


def _steps(block: NeuralODE, solves: list[BlockSolve], row: int) -> dict[str, Any]:
    """Ends of the accepted steps of one sample, counted over all solves, and their error ratios."""
    for solve in solves:
        number = len(solve.solution.nfe)
        if row < number:
            break
        row -= number

    def own(value: Any) -> Any:
        """The sample's part of a tensor that has a row for each sample."""
        if isinstance(value, Tensor) and value.ndim > 0 and len(value) == number:
            return value[row : row + 1]
        return value

    again = block.solve(
        own(solve.y0), t0=own(solve.t0), t1=own(solve.t1), args=solve.args,
        sample_args=[own(value) for value in solve.sample_args], record=True,
    )  # fmt: skip
    steps = cast(Steps, again.steps)  # recorded
    start = float(own(torch.as_tensor(solve.t0)))
    return {"t": [start, *steps.t[0].tolist()], "ratio": steps.ratio[0].tolist()}


@torch.no_grad()
def _calibration(selector: Callable[..., Tensor], costs: Costs) -> list[dict[str, list[float]]]:
    """Each candidate's mean predicted and actual costs in bins of equally many samples, by predicted cost."""
    predicted = torch.cat([selector(*inputs) for inputs in costs.input_batches(selector)]).cpu()
    found = []
    for i in range(len(costs.candidates)):
        bins = torch.argsort(predicted[:, i]).tensor_split(min(BINS, len(costs)))
        actual = costs.cost[:, i].cpu().double()
        found.append(
            {
                "predicted": [float(predicted[rows, i].double().mean()) for rows in bins],
                "actual": [float(actual[rows].mean()) for rows in bins],
            }
        )
    return found
