"""Compiled functions, kept from one solve to the next."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary, ref

import torch

from dise.integrate.compile.backend import inductor

F = TypeVar("F", bound=Callable)

_KEPT: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()


def compiled(function: F, f: Callable, key: Hashable, options: Mapping[str, Any]) -> F:
    """`function` compiled into one graph, for calls whose vector field is f.

    It is compiled anew for another f (functions with the same code and different closures are the same f), another
    key, and with and without gradients; and by torch for other dtypes and for up to 8 (torch's recompile_limit) shapes.

    Args:
        function: a pure function of tensors; f is one of its arguments. The key has the tableau of a `method`.
        f: what to keep it with: it is forgotten when f is.
        key: what else it depends on.
        options: arguments of `torch.compile`.
    """
    kept = _KEPT.setdefault(identity(f), {})
    full_key = (
        function,
        key,
        repr(sorted(options.items())),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )
    if full_key not in kept:
        kept[full_key] = torch.compile(_copy(function), **_arguments(options))
    return kept[full_key]


def _arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """torch.compile's arguments: the user's options, and our backend if they name none."""
    arguments = {"fullgraph": True, **options}
    if "backend" in options or "mode" in options:  # a mode is of torch's own backend
        return arguments
    own = {"guard_filter_fn": _to_be_checked, **options.get("options", {})}
    return arguments | {"backend": inductor, "options": own}


def _to_be_checked(guards: Sequence[Any]) -> list[bool]:
    """Which guards of a graph to check at each call: all but those of its tableau's numbers, which the key covers."""
    tableau = ("method.tableau", "L['method'].tableau")  # torch's names for it
    return [not guard.name.startswith(tableau) for guard in guards]


def identity(f: Callable) -> Any:
    """What stands for a function in a table: its code, which outlives each closure; another callable itself."""
    code = getattr(f, "__code__", None)
    if isinstance(code, CodeType):
        return code
    try:
        hash(f), ref(f)
    except TypeError:
        return type(f)
    return f


def _copy(function: F) -> F:
    """The same function with a code object of its own: torch counts recompilations by code object."""
    code, closure = function.__code__.replace(), function.__closure__
    copy = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    return cast("F", copy)
