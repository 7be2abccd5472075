"""One run of a model with a given integrator, in which samples that cannot be integrated are lost, not the batch."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.integrate.status import Status
from dise.nn import BlockSolve, NeuralODE
from dise.select.model.inputs import Inputs


class ModelRun(NamedTuple):
    """Outputs of a model on n samples, and the solves of its block."""

    output: Tensor  # [n, ...], NaN for the samples that failed
    failed: Tensor  # [n] bool, whether the sample could not be integrated
    solves: list[BlockSolve]


@torch.no_grad()
def run_model(model: nn.Module, block: NeuralODE, integrator: Integrator, inputs: Inputs) -> ModelRun:
    """Run a model on one batch, with one integrator in its block.

    Raises:
        ValueError: the model's output is not a tensor [n, ...], or it does not call the block.
        SolveError: samples failed, and which outputs are theirs is unknown, since the block solves another number.
    """
    with block.using(integrator), block.recording(throw=False) as solves:
        output = inputs.call(model)
    if not isinstance(output, Tensor) or output.ndim == 0:
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"model: expected a tensor [n, ...] of outputs, a row per sample, got {got}")
    if not solves:
        raise ValueError("model: expected one integration per forward pass, got none")
    failed = torch.zeros(len(output), dtype=torch.bool, device=output.device)
    for solve in solves:
        lost = (solve.solution.status != int(Status.SUCCESS)).to(output.device)
        if lost.ndim == 0 or len(lost) == len(output):
            failed = failed | lost
        else:
            solve.solution.raise_for_status()
    if not (output.is_floating_point() or output.is_complex()):
        if not failed.any():
            return ModelRun(output, failed, solves)
        output = output.double()  # whole numbers have no NaN
    rows = failed.reshape(-1, *(1 for _ in output.shape[1:]))
    return ModelRun(output.masked_fill(rows, torch.nan), failed, solves)
