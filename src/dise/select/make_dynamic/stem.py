"""The model without its stem, the layers before the block: their output is the same for all policies."""

import torch
from torch import Tensor, nn

from dise.integrate import Euler, Integrator
from dise.nn import BlockSolve, NeuralODE
from dise.select.make_dynamic.samples import Samples
from dise.select.model.block import device_of
from dise.select.model.inputs import Inputs


class BlockAndHead(nn.Module):
    """h(t0) [n, ...] and the rows of the block's `sample_args` → output: a model without its stem."""

    def __init__(self, block: NeuralODE, head: nn.Module) -> None:
        super().__init__()
        self.block, self.head = block, head

    def forward(self, h0: Tensor, *conditions: Tensor) -> Tensor:
        """The output of the head."""
        output: Tensor = self.head(self.block(h0, sample_args=conditions))
        return output


@torch.no_grad()
def without_stem(
    model: nn.Module, block: NeuralODE, head: nn.Module, reference: Integrator, given: list[Samples]
) -> tuple[nn.Module, list[Samples]]:
    """Block and head as a model whose inputs are the block's initial states and conditions, and samples of these.

    The model and its samples are returned as they are if that is not all it does: it may give its block spans, or
    arguments that all samples share.

    Args:
        model: calls the block once.
        block: the model's.
        head: what the model does with h(t1).
        reference: integrator to compare both models with.
        given: samples whose inputs are the model's.
    """
    short, inputs = BlockAndHead(block, head), given[0].inputs.take(slice(given[0].size))
    with block.using(reference), block.recording(throw=False) as records:
        expected = inputs.to(device_of(model)).call(model)
        start = records[0]
        plain = start.t0 is block.t0 and start.t1 is block.t1 and not start.args and isinstance(start.y0, Tensor)
        if not plain or not _close(_inputs_of(start).call(short), expected):
            return model, given
    return short, [samples._replace(inputs=_block_inputs(model, block, samples)) for samples in given]


def _block_inputs(model: nn.Module, block: NeuralODE, samples: Samples) -> Inputs:
    """The inputs of the model without its stem for all samples, on their device."""
    starts: list[Inputs] = []
    with block.using(Euler()):
        for inputs in samples.inputs.split(samples.size):
            with block.recording(throw=False) as records:
                inputs.to(device_of(model)).call(model)
            starts.append(_inputs_of(records[0]).to(inputs.device))
    return Inputs.concatenate(starts, "data")


def _inputs_of(start: BlockSolve) -> Inputs:
    return Inputs.of((start.y0, *start.sample_args))


def _close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
