"""The block to make dynamic: found in the model, or put in the place of one written on torchdiffeq."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dise.integrate import Dopri5, Integrator
from dise.nn import NeuralODE
from dise.select.model.adapt import adapt, check_equivalence
from dise.select.model.block import contains_block, device_of, find_block
from dise.select.model.inputs import Inputs


@torch.no_grad()
def place_block(
    model: nn.Module,
    name: str | None,
    *,
    f: str | None,
    span: Sequence[float] | None,
    reference: Integrator | None,
    inputs: Inputs,
) -> NeuralODE:
    """The model's NeuralODE; it takes the place of a block on torchdiffeq after a check that both end alike.

    Args:
        model: it is changed if the block is replaced.
        name: of the block; None: the model's one NeuralODE.
        f, span, reference: of a block on torchdiffeq, see `make_dynamic`.
        inputs: of the model, to compare both blocks on.

    Raises:
        ValueError: no such block, or one that cannot be replaced.
    """
    names = [other for other, _ in model.named_modules() if other]
    if name is None:
        if not contains_block(model):
            raise ValueError(
                "block: the model contains no dise.NeuralODE; give the name of the submodule that integrates, one of "
                f"{names}"
            )
        _check_unneeded(f=f, span=span)
        return find_block(model)
    if name not in names:
        raise ValueError(f"block: expected one of {names}, got {name!r}")
    module = model.get_submodule(name)
    if isinstance(module, NeuralODE):
        _check_unneeded(f=f, span=span)
        return module
    block = adapt(module, reference or Dopri5(rtol=1e-3, atol=1e-3), f=f, span=span).eval()
    check_equivalence(module, block, _initial_state(model, module, inputs))
    model.set_submodule(name, block)
    return block


def _check_unneeded(**arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name}: expected None, since the block is a dise.NeuralODE with its own, got {value!r}")


def _initial_state(model: nn.Module, module: nn.Module, inputs: Inputs) -> Tensor:
    """The state that a block on torchdiffeq is called with when the model is called with the inputs."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = module.register_forward_pre_hook(
        lambda module, arguments, named: calls.append((arguments, named)), with_kwargs=True
    )
    try:
        inputs.to(device_of(model)).call(model)
    finally:
        hook.remove()
    if not calls:
        raise ValueError("block: the model does not call it")
    arguments, named = calls[0]
    if len(arguments) != 1 or named or not isinstance(arguments[0], Tensor):
        got = [type(value).__name__ for value in (*arguments, *named.values())]
        raise ValueError(
            f"block: a block on torchdiffeq can be replaced if it is called with a state alone, got {got}; write it as "
            "a dise.NeuralODE, which takes conditions as sample_args="
        )
    return arguments[0]
