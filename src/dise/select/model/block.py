"""Finding the block of a model, and the device that the model is on."""

from itertools import chain

import torch
from torch import nn

from dise.nn import NeuralODE


def contains_block(model: nn.Module) -> bool:
    """Whether the model contains a NeuralODE."""
    return any(isinstance(module, NeuralODE) for module in model.modules())


def find_block(model: nn.Module) -> NeuralODE:
    """The model's only NeuralODE.

    Raises:
        ValueError: the model contains none, or more than one.
    """
    blocks = [module for module in model.modules() if isinstance(module, NeuralODE)]
    if len(blocks) != 1:
        raise ValueError(f"model: expected one dise.NeuralODE inside, found {len(blocks)}")
    return blocks[0]


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's parameters, or of its buffers; the CPU if it has neither."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
