"""Reading tensors: whether they have values at all, and what is known of the values without a device sync."""

import cmath
import math
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Named = TypeVar("Named", bound=NamedTuple)

# torch 2.6 has no is_exporting; there, a compiled graph counts as exported
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

# Private functions of torch, tried with 2.6 and 2.13. Without them vmap goes unnoticed, and torch itself raises where a
# mapped tensor is read.
_functorch = getattr(torch._C, "_functorch", None)
_is_wrapped = getattr(_functorch, "is_functorch_wrapped_tensor", None)
_is_batched = getattr(_functorch, "is_batchedtensor", None)
_unwrapped = getattr(_functorch, "get_unwrapped", None)
_interpreters = getattr(_functorch, "get_interpreter_stack", None)


def _dual_level() -> int:
    """The level of forward-mode differentiation; -1 outside of it, or if torch does not say (it is private)."""
    return getattr(torch.autograd.forward_ad, "_current_level", -1)


def replaced(values: Named, **changes: Any) -> Named:
    """A named tuple with some fields changed, in graphs, too: torch 2.6 cannot compile its `_replace`."""
    kind = type(values)
    return kind(*[changes.get(name, getattr(values, name)) for name in kind._fields])


def has_values(x: Tensor) -> bool:
    """Whether a tensor has values to read: False while torch exports a graph, or maps over it (`torch.vmap`)."""
    return not (_is_exporting() if torch.compiler.is_compiling() else _is_mapped(x))


FIXED_STEPS = (
    "use fixed steps, e.g. dise.RK4(steps=20); instead of mapping, give the samples to one solve as its batch, with "
    "sample_args= for what differs; for a faster model use compile=True, for a graph dise.export_policy"
)


def check_readable(name: str, *tensors: Tensor, advice: str = FIXED_STEPS) -> None:
    """Raise a ValueError if the values of tensors cannot be read, or are only those of an example.

    Args:
        name: of the argument that depends on them.
        tensors: the values.
        advice: what to use instead.
    """
    if not torch.jit.is_tracing() and not transformed():
        return
    if torch.jit.is_tracing():
        reason = "torch.jit.trace keeps what the example's values lead to, for all other inputs"
    elif not all(has_values(x) for x in tensors):
        reason = "torch.vmap and torch.export hide values"
    else:
        return
    raise ValueError(f"{name} depends on values, but {reason}; {advice}")


def in_transform() -> bool:
    """Whether one of torch.func's transforms sees what is called."""
    return bool(_interpreters and _interpreters())


def in_forward_mode() -> bool:
    """Whether derivatives are taken forwards, by dual numbers or `torch.func.jvp`; graphs have backward ones alone."""
    return not torch.compiler.is_compiling() and _dual_level() >= 0


def transformed() -> bool:
    """Whether one of torch.func's transforms, or a graph, sees what is called."""
    return torch.compiler.is_compiling() or in_transform()


def check_transforms(gradient: str) -> None:
    """Raise a ValueError if torch.func's transforms cannot differentiate a solve with this `gradient`."""
    names = _transforms()
    if names if gradient == "backsolve" else names & {"Grad", "Jvp"}:
        raise ValueError(
            f"gradient: torch.func's transforms cannot differentiate {gradient!r}, which calls f again in the backward "
            "pass; use gradient='direct', or loss.backward()"
        )


def check_compiled() -> None:
    """Raise a ValueError in forward-mode differentiation and in torch.func's transforms, which graphs do not see."""
    if _dual_level() >= 0:
        raise ValueError("compile: compiled graphs have no forward-mode derivatives; use compile=False for them")
    if _transforms() & {"Grad", "Vmap"}:
        raise ValueError("compile: torch.func's transforms cannot go through compiled graphs; use compile=False")


def _transforms() -> set[str]:
    """The names of torch.func's transforms that see what is called."""
    return {interpreter.key().name for interpreter in (_interpreters() or ())} if _interpreters else set()


def on_host(x: Tensor) -> bool:
    """Whether a tensor's values can be read without a device sync: they are in host memory and no graph is traced."""
    return x.is_cpu and not torch.compiler.is_compiling() and not _is_mapped(x)


def is_differentiated(x: Tensor) -> bool:
    """Whether operations on a tensor may be differentiated, backwards or forwards."""
    return x.requires_grad or in_forward_mode()


def untracked(x: Tensor) -> bool:
    """Whether nothing tracks operations on a tensor: no gradient, transform or graph; results may be overwritten."""
    tracked = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing() or _dual_level() >= 0
    # a transform may map over f's parameters alone
    return not tracked and type(x) is Tensor and not in_transform()


def known_all(mask: Tensor) -> bool:
    """Whether a mask is known to be True everywhere, without a device sync."""
    return on_host(mask) and bool(mask.all())


def known_none(mask: Tensor) -> bool:
    """Whether a mask is known to be False everywhere, without a device sync."""
    return on_host(mask) and not bool(mask.any())


def known_min(x: Tensor) -> float:
    """The smallest of some numbers; NaN if one of them is, if there are none, or if telling needs a device sync."""
    return float((x.detach() if x.requires_grad else x).amin().item()) if on_host(x) and x.numel() else math.nan


def known_finite(x: Tensor) -> bool:
    """Whether a tensor is known to be free of NaN and infinity, without a device sync.

    Tests the sum, so False is also returned where finite numbers overflow when summed.
    """
    return on_host(x) and has_finite_sum(x)


def has_finite_sum(x: Tensor) -> bool:
    """Whether the sum of a tensor on the host is finite, and with it each of its numbers."""
    return cmath.isfinite((x.detach() if x.requires_grad else x).sum().item())


def times_changed(x: Tensor) -> int:
    """How often a tensor was changed in place; 0 where torch does not count (inference mode)."""
    return 0 if x.is_inference() else x._version  # a private attribute, tried with torch 2.6 and 2.13


def stops_recomputation(error: Exception) -> bool:
    """Whether an error is none: torch's checkpoint ends a recomputation by one, wherever it has all that it needs."""
    return type(error).__module__ == "torch.utils.checkpoint"


def _is_mapped(x: Tensor) -> bool:
    """Whether torch.vmap maps over a tensor, at any level of torch.func's transforms."""
    if _is_wrapped is None or _is_batched is None or _unwrapped is None:
        return False
    while _is_wrapped(x):
        if _is_batched(x):
            return True
        x = _unwrapped(x)
    return False
