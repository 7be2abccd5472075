"""Finding the head of a model: the modules that it calls after its block."""

from typing import Any

import torch
from torch import Tensor, nn

from dise.integrate.argument_types import checked_arguments
from dise.nn import NeuralODE
from dise.select.model.inputs import Inputs


@checked_arguments
@torch.no_grad()
def find_head(model: nn.Module, block: NeuralODE, x: Any) -> nn.Module | None:
    """The head of a model with model(x) = head(h(t1)): the modules after the block, called in their registered order.

    The head is checked on x before it is returned.

    Args:
        model: contains `block` and calls it once.
        block: integrates a tensor, not a tuple.
        x: inputs of the model, a tensor [B, ...] or a tuple or dict of several, with B ≥ 1.

    Returns:
        a module made of the model's own modules; None if the model computes its output from h(t1) in another way.
    """
    inputs, states = Inputs.of(x), list[object]()
    hook = block.register_forward_hook(lambda module, inputs, state: states.append(state))
    try:
        with block.recording(throw=False):
            output = inputs.call(model)
    finally:
        hook.remove()
    if len(states) != 1 or not isinstance(states[0], Tensor) or not isinstance(output, Tensor):
        return None
    head = _after(model, block)
    try:
        # a head may change its input in place, so give it a copy
        found = head(states[0].clone())
    except (RuntimeError, TypeError, ValueError):
        return None
    same = isinstance(found, Tensor) and found.shape == output.shape
    return head if same and torch.allclose(found, output, rtol=1e-4, atol=1e-5, equal_nan=True) else None


def _after(model: nn.Module, block: nn.Module) -> nn.Module:
    """The modules registered after the block, at each level from the innermost outwards."""
    name = next(name for name, module in model.named_modules() if module is block)
    tail: list[nn.Module] = []
    while name:
        parent, _, own = name.rpartition(".")
        children = list(model.get_submodule(parent).named_children())
        position = [child for child, _ in children].index(own)
        tail += [module for _, module in children[position + 1 :]]
        name = parent
    return tail[0] if len(tail) == 1 else nn.Sequential(*tail)
