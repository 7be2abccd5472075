"""What users pass, checked: errors name the argument, what came and what was expected."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dise.integrate.problem.state import shapes
from dise.integrate.tracing import has_values


def check_options(flags: Mapping[str, object], functions: Mapping[str, object]) -> None:
    """Raise a TypeError unless flags are True or False and functions functions (or None, but for f)."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name}: expected True or False, got {flag!r}")
    for name, function in functions.items():
        if not callable(function) and (function is not None or name == "f"):
            described = "a function of (t, y)" if name == "f" else "a function"
            raise TypeError(f"{name}: expected {described}, got {type(function).__name__}")


def as_sequence(name: str, values: object) -> tuple[Any, ...]:
    """A tuple or list of f's further arguments; a tensor would be taken apart row by row."""
    if not isinstance(values, tuple | list):
        raise TypeError(f"{name}: expected a tuple or list of f's further arguments, got {type(values).__name__}")
    return tuple(values)


def check_state(name: str, state: object, *, batched: bool) -> None:
    """Raise a TypeError or ValueError unless it is a state."""
    parts = tuple(state.values()) if isinstance(state, dict) else state if isinstance(state, tuple) else (state,)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(f"{name}: expected a tensor, or a tuple or dict of tensors, got {shapes(state)}")
    if isinstance(state, dict) and not all(isinstance(key, str) for key in state):
        raise TypeError(f"{name}: expected a dict whose keys are strings, got {list(state)}")
    first = parts[0]
    if all(part.is_meta for part in parts):
        raise TypeError(f"{name}: expected tensors with data, got device meta")
    for part in parts:
        if not (part.is_floating_point() or part.is_complex()) or part.dtype.itemsize < 2:
            raise TypeError(f"{name}: expected a floating-point or complex dtype, got {part.dtype}")
        if (part.dtype, part.device) != (first.dtype, first.device):
            raise TypeError(
                f"{name}: expected tensors of one dtype and device, got "
                f"{first.dtype} on {first.device} and {part.dtype} on {part.device}"
            )
        if batched and (part.ndim == 0 or first.ndim == 0 or part.shape[0] != first.shape[0]):
            raise ValueError(
                f"{name}: expected tensors [B, ...] with the same number of samples B first (batched=False takes "
                f"any shape), got {shapes(state)}"
            )


def check_sample_args(sample_args: Sequence[Tensor], y0: Tensor, *, batched: bool) -> tuple[Tensor, ...]:
    """sample_args, each [B, ...] like the packed state y0 [n, F]."""
    for i, arg in enumerate(as_sequence("sample_args", sample_args)):
        if not isinstance(arg, Tensor) or (batched and (arg.ndim == 0 or arg.shape[0] != y0.shape[0])):
            raise ValueError(f"sample_args[{i}]: expected a tensor [B, ...] with B={y0.shape[0]}, got {shapes(arg)}")
        if arg.device != y0.device:
            raise TypeError(f"sample_args[{i}]: expected a tensor on {y0.device} like y0, got it on {arg.device}")
    return tuple(sample_args)


def as_times(name: str, t: float | Tensor, y0: Tensor, *, batched: bool, endless: bool = False) -> Tensor:
    """[n] times in the real dtype of the (packed) state y0 and on its device; infinite ones only if `endless`."""
    if not isinstance(t, Tensor | int | float) or isinstance(t, bool):
        raise TypeError(f"{name}: expected a number or a tensor, got {type(t).__name__}")
    if isinstance(t, Tensor) and (t.dtype.is_complex or t.dtype == torch.bool):
        raise TypeError(f"{name}: expected real times, got {t.dtype}")
    if isinstance(t, Tensor) and t.is_meta:
        raise TypeError(f"{name}: expected times with data, got device meta")
    if not isinstance(t, Tensor):
        if math.isnan(t) or not (endless or math.isfinite(t)):
            raise ValueError(f"{name}: expected finite times, got {t}")
        return torch.full(y0.shape[:1], t, dtype=y0.dtype.to_real(), device=y0.device)
    time = t.to(y0.device, y0.dtype.to_real())
    if time.ndim > 0 and (not batched or time.shape != y0.shape[:1]):
        expected = (
            f"a number or a tensor of shape ({y0.shape[0]},)" if batched else "a number (batched=False has one time)"
        )
        raise ValueError(f"{name}: expected {expected}, got shape {tuple(time.shape)}")
    if has_values(t) and not (~time.isnan() if endless else time.isfinite()).all():
        raise ValueError(f"{name}: expected finite times, got {t}")
    return time.expand(y0.shape[0])
