"""Arguments of torchdiffeq's functions, checked: errors name the argument, what came and what was expected."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dise.integrate import State
from dise.integrate.clock import clock_dtype
from dise.torchdiffeq.methods import ADAPTIVE, FIXED, SOLVERS, options_of


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


def _tolerance(name: str, value: Any, y0: State) -> Any:
    several = isinstance(value, tuple | list) or getattr(value, "ndim", 0) > 0
    parts = tuple(value) if several else (value,)
    if any(isinstance(part, Tensor) and part.requires_grad for part in parts):
        raise ValueError(f"{name}: a tolerance has no gradient, so it must not require one")
    if not several or isinstance(y0, Tensor):
        return value
    if len(parts) != len(y0):
        raise ValueError(f"{name}: expected one for each of the state's {len(y0)} tensors, got {len(parts)}")
    return parts


def check_state(y0: object) -> None:
    """Raise a TypeError unless y0 is a tensor or a tuple of tensors."""
    parts = y0 if isinstance(y0, tuple) else (y0,)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(f"y0: expected a tensor or a tuple of tensors, got {type(y0).__name__}")


def method_name(method: object) -> str:
    """The name of a method that dise itself has; "dopri5" for None.

    Raises:
        ValueError: an unknown name, or SciPy's.
    """
    name = "dopri5" if method is None else method
    if not isinstance(name, str) or (name not in ADAPTIVE and name not in FIXED):
        if name in SOLVERS:
            raise ValueError(f"method: {name} has neither events, nor dense output, nor a backward solve")
        raise ValueError(f"method: expected one of {', '.join(SOLVERS)}, got {method!r}")
    return name


def as_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the method has. Others are ignored with a warning, as in torchdiffeq.

    Raises:
        ValueError: a value that the method's option cannot have.
    """
    known = options_of(method)
    unknown = [name for name in options if name not in known]
    if unknown:
        message = f"options: {method} ignores {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
        warnings.warn(message, stacklevel=5)  # the caller of `odeint`
    options = {name: value for name, value in options.items() if name in known}
    if options.get("perturb"):
        raise ValueError("options: perturb is not supported; with an adaptive method name discontinuities by jump_t")
    if options.get("interp") not in (None, "linear", "cubic"):
        raise ValueError(f"options: interp is 'linear' or 'cubic', got {options['interp']!r}")
    step = options.get("step_size")
    if step is not None and not float(step) > 0:
        raise ValueError(f"options: step_size: expected a positive number, got {float(step):g}")
    if step is not None and options.get("grid_constructor") is not None:
        raise ValueError("options: step_size and grid_constructor both define the time grid; give one")
    norm = options.get("norm")
    if norm is not None and not callable(norm):
        raise ValueError(f"options: expected a function as norm, got {norm!r}")
    return options


def as_times(t: object, y0: Tensor, *, pair: bool) -> Tensor:
    """[T] times in the clock's dtype and on the device of y0; two if `pair`.

    Raises:
        TypeError, ValueError: not a tensor of strictly increasing or decreasing times.
    """
    if not isinstance(t, Tensor) or not t.is_floating_point():
        raise TypeError(
            f"t: expected a tensor of real times, got {t.dtype if isinstance(t, Tensor) else type(t).__name__}"
        )
    if t.ndim != 1 or len(t) == 0:
        raise ValueError(f"t: expected shape [T], got {tuple(t.shape)}")
    steps = t.diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        raise ValueError("t: expected strictly increasing or decreasing times")
    if pair and len(t) != 2:
        raise ValueError(f"t: expected two times with event_fn, the start and one in its direction, got {len(t)}")
    return t.to(y0.device, clock_dtype(y0.device))
