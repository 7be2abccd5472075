"""Finding the block of a model, and the device that the model is on."""

from itertools import chain

import torch
from torch import nn

from dise.nn import NeuralODE


def check_model(model: object) -> None:
    """Raise a TypeError unless it is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module that contains a dise.NeuralODE, got {type(model).__name__}")


def named_blocks(model: nn.Module) -> dict[str, NeuralODE]:
    """The NeuralODEs of a model, by name; without those in policies, which may contain copies of later blocks."""
    check_model(model)
    found = {name: module for name, module in model.named_modules() if isinstance(module, NeuralODE)}
    policies = tuple(f"{name}.policy." if name else "policy." for name in found)
    return {name: module for name, module in found.items() if not name.startswith(policies)}


def contains_block(model: nn.Module) -> bool:
    """Whether the model contains a NeuralODE."""
    return bool(named_blocks(model))


def find_block(model: nn.Module, block: NeuralODE | str | None = None) -> NeuralODE:
    """A NeuralODE of the model.

    Args:
        model: contains it.
        block: its name, or itself; default: the model's only one.

    Raises:
        ValueError: the model contains no such block; or none or more than one, and no name is given.
    """
    blocks = named_blocks(model)
    if block is not None:
        found = blocks.get(block) if isinstance(block, str) else block
        if found is None or not any(found is other for other in blocks.values()):
            raise ValueError(f"block: expected a dise.NeuralODE of the model, one of {list(blocks)}, got {block!r}")
        return found
    if len(blocks) != 1:
        names = f"; name one as block=, of {list(blocks)}" if blocks else ""
        raise ValueError(f"model: expected one dise.NeuralODE inside, found {len(blocks)}{names}")
    return next(iter(blocks.values()))


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's parameters, or of its buffers; the CPU if it has neither."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
