"""NeuralODE blocks that replace blocks written on torchdiffeq."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.integrate.argument_types import checked_arguments
from dise.nn import NeuralODE


class AdaptedBlock(NeuralODE):
    """A NeuralODE that replaces a module which returns the last state of torchdiffeq's `odeint(f, x, [t0, t1])`.

    Its state dict keeps the names of the original module, so weights saved before the replacement can be loaded
    after it.

    Args:
        original: the module to replace; it contains the vector field.
        f: name of the vector field in it.
        integrator, t0, t1: see `NeuralODE`.
    """

    def __init__(self, original: nn.Module, f: str, integrator: Integrator, *, t0: float, t1: float) -> None:
        super().__init__(original.get_submodule(f), integrator, t0=t0, t1=t1)
        self.field_name = f
        # the adapted block has no other entries than f's, so loading must drop the original's
        self.dropped_keys = tuple(key for key in original.state_dict() if not key.startswith(f"{f}."))
        # both methods have no annotations in torch
        registers: list[Callable[[Callable[..., None]], object]] = [
            self.register_state_dict_post_hook,
            self.register_load_state_dict_pre_hook,
        ]
        for register, hook in zip(registers, (_to_original_names, _from_original_names), strict=True):
            register(hook)


def _to_original_names(module: AdaptedBlock, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    _rename(state, f"{prefix}f.", f"{prefix}{module.field_name}.")


def _from_original_names(module: AdaptedBlock, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    for name in module.dropped_keys:
        state.pop(prefix + name, None)
    _rename(state, f"{prefix}{module.field_name}.", f"{prefix}f.")


def _rename(state: dict[str, Tensor], old: str, new: str) -> None:
    for key in [key for key in state if key.startswith(old)]:
        state[new + key.removeprefix(old)] = state.pop(key)


@checked_arguments
def adapt(
    module: nn.Module, integrator: Integrator, *, f: str | None = None, span: Sequence[float] | None = None
) -> AdaptedBlock:
    """A NeuralODE equivalent to a module written on torchdiffeq; the two share their weights.

    torchdiffeq's ODE-Net example has such a module: its child `odefunc` is the vector field, called with a scalar t,
    and its attribute `integration_time` is [0, 1]. The adapted block calls f with t [n, 1, …, 1], as `dise.solve` does.

    Args:
        module: h(t0) [B, ...] → h(t1) [B, ...].
        integrator: integrator of the new block.
        f: name of the child that is the vector field; default: the only child.
        span: (t0, t1); default: the values of the module's only tensor of two numbers.

    Raises:
        ValueError: the vector field or the span is not given and cannot be found in the module.
    """
    children = [name for name, _ in module.named_children()]
    if f is None and len(children) != 1:
        raise ValueError(f"f: give the name of the vector field, one of {children}")
    name = children[0] if f is None else f
    if name not in dict(module.named_modules()):
        raise ValueError(f"f: expected the name of a module of the block, one of {children}, got {f!r}")
    t0, t1 = _span_of(module) if span is None else (float(t) for t in span)
    return AdaptedBlock(module, name, integrator, t0=t0, t1=t1)


def _span_of(module: nn.Module) -> tuple[float, float]:
    tensors = {**vars(module), **dict(module.named_buffers(recurse=False))}
    pairs = [value for value in tensors.values() if isinstance(value, Tensor) and value.shape == torch.Size([2])]
    if len(pairs) != 1:
        raise ValueError(f"span: give (t0, t1); the block has {len(pairs)} tensors of two numbers to read it from")
    t0, t1 = pairs[0].tolist()
    return float(t0), float(t1)


@torch.no_grad()
def check_equivalence(original: nn.Module, adapted: NeuralODE, h0: Tensor) -> None:
    """Raise an error unless both blocks integrate h0 [B, ...] to about the same state.

    A wrongly identified vector field, span or output changes the final state by as much as the state moves over the
    span; two solvers at the same tolerance differ by a small part of that.

    Raises:
        ValueError: the final states differ, or the original does not return a state like its input.
    """
    expected, got = original(h0), adapted(h0)
    if not isinstance(expected, Tensor) or expected.shape != h0.shape:
        shape = tuple(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
        raise ValueError(f"block: expected a module that returns a state like its input {tuple(h0.shape)}, got {shape}")
    moved = float((expected - h0).norm())
    difference = float((got - expected).norm())
    if not difference <= _SLACK * moved:
        raise ValueError(
            f"block: {adapted.integrator} from {adapted.t0:g} to {adapted.t1:g} gives another final state than the "
            f"block: they differ by {difference:.3g}, while the state moves by {moved:.3g}; give f, span and reference"
        )


_SLACK = 0.05  # allowed difference of two solvers, relative to the distance that the state moves
