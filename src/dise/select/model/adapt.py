"""A block in the place of one that is written on torchdiffeq."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.nn import NeuralODE


class AdaptedBlock(NeuralODE):
    """A NeuralODE in the place of a module that returns the last state of torchdiffeq's `odeint(f, x, [t0, t1])`.

    Its entries in a state dict keep the names that they have in the other module, so that weights saved from the
    model as it was can be loaded into the model as it is.

    Args:
        original: the module to replace, with its vector field among its children.
        f: its name there.
        integrator, t0, t1: as of `NeuralODE`.
    """

    def __init__(self, original: nn.Module, f: str, integrator: Integrator, *, t0: float, t1: float) -> None:
        super().__init__(original.get_submodule(f), integrator, t0=t0, t1=t1)
        self.name_of_f = f
        # of what else is in the original's state dict nothing is left
        self.dropped = tuple(key for key in original.state_dict() if not key.startswith(f"{f}."))
        self.register_state_dict_post_hook(_to_original_names)
        self.register_load_state_dict_pre_hook(_from_original_names)


def _to_original_names(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    _rename(state, f"{prefix}f.", f"{prefix}{module.name_of_f}.")


def _from_original_names(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    for name in module.dropped:  # type: ignore[union-attr]  # set in __init__, which nn.Module's types do not know
        state.pop(prefix + name, None)
    _rename(state, f"{prefix}{module.name_of_f}.", f"{prefix}f.")


def _rename(state: dict[str, Tensor], old: str, new: str) -> None:
    for key in [key for key in state if key.startswith(old)]:
        state[new + key.removeprefix(old)] = state.pop(key)


def adapt(
    module: nn.Module, integrator: Integrator, *, f: str | None = None, span: Sequence[float] | None = None
) -> AdaptedBlock:
    """A NeuralODE that does what a module written on torchdiffeq does; its weights are the same objects.

    torchdiffeq's ODE-Net example has such a module: its child `odefunc` is the vector field, called with a scalar t,
    and its attribute `integration_time` is [0, 1]. Here f is called with t [n, 1, …, 1], as `dise.solve` says.

    Args:
        module: h(t0) [B, ...] → h(t1) [B, ...].
        integrator: how to solve.
        f: name of the child that is the vector field; default: the only child.
        span: (t0, t1); default: the values of the module's only tensor of two numbers.

    Raises:
        ValueError: vector field or span is not given, and not to be seen.
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
def check_same(original: nn.Module, adapted: NeuralODE, h0: Tensor) -> None:
    """Raise unless both integrate h0 [B, ...] to about the same state.

    A block that was read wrongly (another vector field, span, or answer) differs by as much as the state moves; two
    solvers at one tolerance differ by some of it.

    Raises:
        ValueError: they differ.
    """
    expected, got = original(h0), adapted(h0)
    if not isinstance(expected, Tensor) or expected.shape != h0.shape:
        shape = tuple(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
        raise ValueError(f"block: expected a module that returns a state like its input {tuple(h0.shape)}, got {shape}")
    moved = float((expected - h0).norm())
    difference = float((got - expected).norm())
    if not difference <= _SLACK * moved:
        raise ValueError(
            f"block: integrated by {adapted.integrator} from {adapted.t0:g} to {adapted.t1:g} it ends elsewhere: the "
            f"difference is {difference:.3g}, where the state moves by {moved:.3g}; give f, span and reference"
        )


_SLACK = 0.05  # a part of the state's way that solvers may differ by
