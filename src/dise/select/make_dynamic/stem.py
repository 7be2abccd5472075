"""The model without its stem, the layers before the block: their output is the same for all policies."""

import torch
from torch import Tensor, nn

from dise.integrate import Euler, Integrator
from dise.nn import NeuralODE
from dise.select.make_dynamic.samples import Samples
from dise.select.model.block import device_of
from dise.select.model.states import concatenate_state


@torch.no_grad()
def without_stem(
    model: nn.Module, block: NeuralODE, head: nn.Module, reference: Integrator, given: list[Samples]
) -> tuple[nn.Module, list[Samples]]:
    """Block and head as a model whose inputs are the block's initial states, and samples of these.

    The model and its samples are returned as they are if that is not all it does: its spans may depend on the sample.

    Args:
        model: calls the block once.
        block: the model's.
        head: what the model does with h(t1).
        reference: integrator to compare both models with.
        given: samples whose inputs are the model's.
    """
    short, x = nn.Sequential(block, head), given[0].x[: given[0].size]
    with block.using(reference), block.recording(throw=False) as records:
        expected = model(x.to(device_of(model)))
        start = records[0].y0
        if not isinstance(start, Tensor) or not _close(short(start), expected):
            return model, given
    return short, [samples._replace(x=_initial_states(model, block, samples)) for samples in given]


def _initial_states(model: nn.Module, block: NeuralODE, samples: Samples) -> Tensor:
    """[N, ...] h(t0) of all samples, on their device."""
    with block.using(Euler()), block.recording(throw=False) as records:
        for x in torch.split(samples.x, samples.size):
            model(x.to(device_of(model)))
            records[-1] = records[-1]._replace(y0=concatenate_state(records[-1].y0).to(samples.x.device))
    return torch.cat([concatenate_state(record.y0) for record in records])


def _close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
