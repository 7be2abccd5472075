"""Arguments of torchdiffeq's functions, checked: errors name the argument, what came and what was expected."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from dise.integrate import State
from dise.integrate.clock import clock_dtype
from dise.integrate.problem.state import leaves
from dise.integrate.value import check_callable
from dise.torchdiffeq.methods import SCIPY_NAMES, SOLVERS


@dataclass(frozen=True)
class ErrorTolerances:
    """rtol and atol in torchdiffeq's forms: numbers, tensors, or one of these per tensor of a tuple state."""

    rtol: Any
    atol: Any

    def for_state(self, y0: State) -> dict[str, Any]:
        """rtol and atol in the forms of `dise.Adaptive`, for such a state.

        Raises:
            ValueError: a tolerance that requires a gradient, or not one per tensor of a tuple.
        """
        return {"rtol": _tolerance("rtol", self.rtol, y0), "atol": _tolerance("atol", self.atol, y0)}

    def for_augmented(self, y0: State, params: int) -> "ErrorTolerances":
        """The tolerances for a state (number, y, adjoint, *params) with y and the adjoint flat.

        Those given for y apply to the adjoint too, and the tightest of them to the other parts. As in torchdiffeq they
        may also be given for all parts.
        """
        names = ("adjoint_rtol", "adjoint_atol")
        return ErrorTolerances(*map(_augmented, names, (self.rtol, self.atol), (y0,) * 2, (params,) * 2))


def _augmented(name: str, value: Any, y0: State, params: int) -> Any:
    if not _is_several(value) or len(value) == 3 + params:
        return value
    if isinstance(y0, Tensor):
        flat = as_real_tensor(name, value).double()
    else:
        pairs = zip(_tolerance(name, value, y0), leaves(y0), strict=True)
        flat = torch.cat([as_real_tensor(name, x).double().cpu().expand(y.shape).reshape(-1) for x, y in pairs])
    if flat.numel() == 0:
        raise ValueError(f"{name}: expected tolerances, got none")
    tightest, loosest = flat.aminmax()
    for_y = flat if bool(loosest > tightest) else float(tightest)
    return (float(tightest), for_y, for_y, *(float(tightest),) * params)


def _is_several(value: Any) -> bool:
    return isinstance(value, tuple | list) or getattr(value, "ndim", 0) > 0


def _tolerance(name: str, value: Any, y0: State) -> Any:
    several = _is_several(value)
    parts = tuple(value) if several else (value,)
    if any(isinstance(part, Tensor) and part.requires_grad for part in parts):
        raise ValueError(f"{name}: a tolerance has no gradient, so it must not require one")
    if not several or isinstance(y0, Tensor):
        return value
    if len(parts) != len(y0):
        raise ValueError(f"{name}: expected one for each of the state's {len(y0)} tensors, got {len(parts)}")
    return parts


def as_state(y0: object) -> State:
    """y0; the tensors of a tuple in one dtype, as in torchdiffeq.

    Raises:
        TypeError: y0 is neither a tensor nor a tuple of tensors.
    """
    if any(isinstance(part, Tensor) and part.layout is not torch.strided for part in (y0, *_items(y0))):
        raise TypeError("y0: expected dense tensors, got a sparse one")
    if isinstance(y0, Tensor):
        return y0
    parts = _items(y0)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(f"y0: expected a tensor or a tuple of tensors, got {type(y0).__name__}")
    dtype = reduce(torch.promote_types, (part.dtype for part in parts))
    return tuple(part.to(dtype) for part in parts)


def _items(y0: object) -> tuple[Any, ...]:
    return y0 if isinstance(y0, tuple) else ()


def as_slope(value: Any, y: State) -> Any:
    """func's value in y's structure and shapes, as in torchdiffeq where it is clear what is meant.

    For a tensor of y's a value of fewer dimensions is broadcast; for the tensors of a tuple dimensions of size 1 may be
    missing or added. Anything else is returned as it is.
    """
    if isinstance(y, Tensor):
        fewer = isinstance(value, Tensor) and value.dim() < y.dim()
        return value.expand(y.shape) if fewer and value.shape == y.shape[y.dim() - value.dim() :] else value
    parts = tuple(value) if isinstance(value, list | tuple | Tensor) else ()
    if len(parts) != len(y) or not all(isinstance(part, Tensor) for part in parts):
        return value
    pairs = zip(parts, leaves(y), strict=True)
    return tuple(x.reshape(part.shape) if _wide(x.shape) == _wide(part.shape) else x for x, part in pairs)


def _wide(shape: Sequence[int]) -> list[int]:
    """The sizes above 1."""
    return [size for size in shape if size != 1]


def check_function(name: str, value: object) -> None:
    """Raise a TypeError unless it can be called."""
    check_callable(name, value, "a function of (t, y)")


def method_name(method: object, argument: str = "method") -> str:
    """The name of a method in `SOLVERS`; "dopri5" for None.

    Raises:
        ValueError: an unknown name.
    """
    name = "dopri5" if method is None else method
    name = SCIPY_NAMES.get(name, name) if isinstance(name, str) else name
    if not isinstance(name, str) or name not in SOLVERS:
        raise ValueError(f"{argument}: expected one of {', '.join((*SOLVERS, *SCIPY_NAMES))}, got {method!r}")
    return name


def as_one_time(name: str, t: object) -> Tensor:
    """[] a time in float64, from a number or a tensor of one."""
    times = as_real_tensor(name, t)
    if times.numel() != 1:
        raise ValueError(f"{name}: expected one time, got shape {tuple(times.shape)}")
    return times.double().reshape(())


def as_real_tensor(name: str, value: object) -> Tensor:
    """A tensor of real numbers, from one or from (sequences of) numbers.

    Raises:
        TypeError: it is something else, or has no values.
    """
    try:
        # not in the default dtype, which is float32
        tensor = torch.as_tensor(value, dtype=None if hasattr(value, "dtype") else torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name}: expected real numbers, got {type(value).__name__}") from None
    if tensor.dtype is torch.bool or tensor.is_complex() or tensor.is_meta or tensor.layout is not torch.strided:
        raise TypeError(f"{name}: expected real numbers, got {tensor.dtype} on {tensor.device}, {tensor.layout}")
    return tensor


def as_times(t: object, y0: Tensor, *, pair: bool) -> Tensor:
    """[T] times in the clock's dtype and on the device of y0; two if `pair`.

    Raises:
        TypeError, ValueError: not a tensor of strictly increasing or decreasing times.
    """
    if not isinstance(t, Tensor) or not t.is_floating_point():
        raise TypeError(
            f"t: expected a tensor of real times, got {t.dtype if isinstance(t, Tensor) else type(t).__name__}"
        )
    t = as_real_tensor("t", t)
    if t.ndim != 1 or len(t) == 0:
        raise ValueError(f"t: expected shape [T], got {tuple(t.shape)}")
    steps = t.diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        raise ValueError("t: expected strictly increasing or decreasing times")
    if pair and len(t) != 2:
        raise ValueError(f"t: expected two times with event_fn, the start and one in its direction, got {len(t)}")
    if t.device != y0.device:
        warnings.warn(f"t is on {t.device} and y0 on {y0.device}; t is copied to {y0.device}", stacklevel=5)
    return t.to(y0.device, clock_dtype(y0.device))
