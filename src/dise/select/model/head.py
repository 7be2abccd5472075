"""Finding what a model does with the answer of its block."""

import torch
from torch import Tensor, nn

from dise.nn import NeuralODE


@torch.no_grad()
def find_head(model: nn.Module, block: NeuralODE, x: Tensor) -> nn.Module | None:
    """The modules that a model calls after its block, if they are all that it does: model(x) = head(h(t1)).

    What is looked for is the modules that were registered after the block, called in that order. It is tried on x, so
    what is returned is right there.

    Args:
        model: contains `block`, and calls it once.
        block: integrates a tensor, not a tuple.
        x: input of the model, [B, ...] with B ≥ 1.

    Returns:
        a module made of the model's own; None if something else happens between h(t1) and the output.
    """
    answers: list[object] = []
    hook = block.register_forward_hook(lambda module, inputs, answer: answers.append(answer))
    try:
        output = model(x)
    finally:
        hook.remove()
    if len(answers) != 1 or not isinstance(answers[0], Tensor) or not isinstance(output, Tensor):
        return None
    head = _after(model, block)
    try:
        # a copy, since a head may change its input in place
        found = head(answers[0].clone())
    except (RuntimeError, TypeError, ValueError):
        return None
    same = isinstance(found, Tensor) and found.shape == output.shape
    return head if same and torch.allclose(found, output, rtol=1e-4, atol=1e-5, equal_nan=True) else None


def _after(model: nn.Module, block: nn.Module) -> nn.Module:
    """The modules registered after the block, at each level from the innermost out."""
    name = next(name for name, module in model.named_modules() if module is block)
    tail: list[nn.Module] = []
    while name:
        parent, _, own = name.rpartition(".")
        children = list(model.get_submodule(parent).named_children())
        position = [child for child, _ in children].index(own)
        tail += [module for _, module in children[position + 1 :]]
        name = parent
    return tail[0] if len(tail) == 1 else nn.Sequential(*tail)
