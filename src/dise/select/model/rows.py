"""A check that f treats each sample of a batch on its own, which all policies rely on."""

import torch
from torch import Tensor, nn

from dise.integrate import Euler
from dise.integrate.problem.row_check import same_values
from dise.integrate.problem.state import Layout
from dise.nn import BlockSolve, NeuralODE
from dise.select.model.inputs import Inputs
from dise.select.model.states import concatenate_state

WHAT_TO_DO = (
    "Policies call f on parts of a batch. Put the model in evaluation mode (model.eval()); if f still mixes samples, "
    "pass drop_finished=False to its block, and use one integrator for all samples or granularity='batch'"
)


@torch.no_grad()
def check_rows(model: nn.Module, block: NeuralODE, inputs: Inputs) -> None:
    """Raise an error if f gives samples of a batch other values when it gets half of the batch.

    Blocks with batched=False or drop_finished=False, which never call f on a part of the batch, are not checked, nor
    are batches of one sample.

    Args:
        model: contains the block.
        block: to check, at t0.
        inputs: a batch, on the model's device.

    Raises:
        ValueError: f mixes the samples of a batch, or draws random numbers.
    """
    if not (block.options.batched and block.options.drop_finished):
        return
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[]), block.autocasting(None):  # whose rounding depends on the number of rows
        with block.using(Euler()), block.recording(throw=False) as solves:
            inputs.call(model)
        if not solves:
            return
        first = solves[0]
        half = Layout.of(first.y0, batched=True).pack(first.y0).shape[0] // 2
        if half == 0:
            return
        whole = _first_stage(block, first)[:half]
        try:
            part = _first_stage(block, _take(first, half))
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"f: it fails on half of a batch, but not on all of it ({error}). {WHAT_TO_DO}") from error
    if same_values(part, whole):
        return
    for buffer, before in buffers:
        buffer.copy_(before)  # batch normalization in training mode has changed its running statistics
    off = float((part - whole).abs().nan_to_num(nan=torch.inf).max())
    raise ValueError(
        f"f: its values for {half} samples differ by up to {off:.3g} when it gets these alone instead of the whole "
        f"batch, so it mixes samples (batch normalization in training mode, a batch mean) or draws random numbers. "
        f"{WHAT_TO_DO}"
    )


def _first_stage(block: NeuralODE, start: BlockSolve) -> Tensor:
    return concatenate_state(block.first_stage(start.y0, t0=start.t0, args=start.args, sample_args=start.sample_args))


def _take(start: BlockSolve, number: int) -> BlockSolve:
    """The first samples of a solve."""
    layout, t0 = Layout.of(start.y0, batched=True), start.t0
    return start._replace(
        y0=layout.unpack(layout.pack(start.y0)[:number]),
        t0=t0[:number] if isinstance(t0, Tensor) and t0.ndim else t0,
        sample_args=tuple(arg[:number] for arg in start.sample_args),
    )
