"""Compiled functions, kept from one solve to the next."""

from collections.abc import Callable, Hashable, Mapping
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary, ref

import torch

from dise.integrate.lowering import inductor

F = TypeVar("F", bound=Callable)

_KEPT: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()


def compiled(function: F, f: Callable, key: Hashable, options: Mapping[str, Any]) -> F:
    """`function` compiled into one graph, for calls whose vector field is f.

    It is compiled anew for another f (functions with the same code and different closures are the same f), another
    key, and with and without gradients; and by torch for other dtypes and for up to 8 (torch's recompile_limit) shapes.

    Args:
        function: a pure function of tensors; f is one of its arguments.
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
        own = {} if "mode" in options else {"backend": inductor}  # a mode is of torch's own backend alone
        kept[full_key] = torch.compile(_copy(function), **{"fullgraph": True, **own, **options})
    return kept[full_key]


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
    copy = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__)
    return cast("F", copy)
