"""Options of torchdiffeq's methods, checked: errors name the option, what came and what was expected."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dise.integrate.value import check_whole
from dise.torchdiffeq.arguments import as_real_tensor
from dise.torchdiffeq.methods import ADAMS, ADAMS_MAX_ORDER, ADAMS_MIN_ORDER, options_of

NUMBERS = ("first_step", "min_step", "max_step", "safety", "ifactor", "dfactor", "step_size")
WHOLE_NUMBERS = ("max_num_steps", "max_order", "max_iters")
TIMES = ("step_t", "jump_t")
FUNCTIONS = ("norm", "grid_constructor")
# by the names of dise's integrators, whose errors use them
OPTION_OF = {
    "first_step": "first_step",
    "dt_min": "min_step",
    "dt_max": "max_step",
    "safety": "safety",
    "grow": "ifactor",
    "shrink": "dfactor",
    "max_steps": "max_num_steps",
}


def as_mapping(name: str, options: object) -> dict[str, Any]:
    """Options by their names; none for None.

    Raises:
        TypeError: something else than a mapping from names.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise TypeError(f"{name}: expected a dict from names of options, got {type(options).__name__}")
    return dict(options)


def as_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the method has, numbers as such. Others are ignored with a warning, as in torchdiffeq.

    Raises:
        TypeError, ValueError: a value that the method's option cannot have.
    """
    known = options_of(method)
    unknown = [name for name in options if name not in known]
    if unknown:
        message = f"options: {method} ignores {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
        warnings.warn(message, stacklevel=5)  # the caller of `odeint`
    given = {name: _value(name, value) for name, value in options.items() if name in known and value is not None}
    interp = given.get("interp", "linear")
    if not isinstance(interp, str) or interp not in ("linear", "cubic"):
        raise ValueError(f"options: interp is 'linear' or 'cubic', got {interp!r}")
    step = given.get("step_size")
    if step is not None and not 0 < step < math.inf:
        raise ValueError(f"options: step_size: expected a positive number, got {step:g}")
    if step is not None and "grid_constructor" in given:
        raise ValueError("options: step_size and grid_constructor both define the time grid; give one")
    if method in ADAMS:
        _check_adams(given)
    return given


def named_as_option(error: Exception) -> Exception:
    """An error about a field of an integrator, with the option that the user knows."""
    field, colon, text = str(error).partition(":")
    return type(error)(f"options: {OPTION_OF[field]}:{text}") if colon and field in OPTION_OF else error


def _value(name: str, value: Any) -> Any:
    if name in NUMBERS:
        return _number(f"options: {name}", value)
    if name in WHOLE_NUMBERS:
        number = _number(f"options: {name}", value)
        whole = int(number) if math.isfinite(number) and number == int(number) else value
        check_whole(f"options: {name}", whole)
        return whole
    if name in TIMES:
        return as_real_tensor(f"options: {name}", value).reshape(-1)
    if name == "perturb":
        return bool(_number("options: perturb", value))
    if name in FUNCTIONS and not callable(value):
        raise ValueError(f"options: expected a function as {name}, got {value!r}")
    return value


def _number(name: str, value: Any) -> float:
    single = isinstance(value, Tensor) or not isinstance(value, str | bytes)
    try:
        if single:
            return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise TypeError(f"{name}: expected a number, got {value!r}") from None


def _check_adams(options: Mapping[str, Any]) -> None:
    order = options.get("max_order", ADAMS_MAX_ORDER)
    if order > ADAMS_MAX_ORDER:
        raise ValueError(f"options: max_order: expected at most {ADAMS_MAX_ORDER}, got {order}")
    if order < ADAMS_MIN_ORDER:
        message = f"options: max_order is {order}, below {ADAMS_MIN_ORDER}, so the Adams method takes the steps of rk4"
        warnings.warn(message, stacklevel=6)
