"""Checks of arguments by their annotations, for functions and constructors that are called rarely."""

import inspect
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from numbers import Integral, Real
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from dise.integrate.annotations import Shape
from dise.integrate.value import is_number

T = TypeVar("T", bound=Callable[..., Any])


def checked_arguments(target: T) -> T:
    """The function or class, whose call raises a TypeError for an argument that is not what its annotation says.

    The error names the argument. Numbers, functions, tensors, instances of classes, and sequences are known; other
    annotations, parts of sequences, and defaults are not checked. Numbers of other libraries are numbers. A tensor of
    another shape than annotated is a ValueError: shapes that broadcast would give a wrong result silently.
    """
    if isinstance(target, type):
        target.__init__ = _checked(target.__init__, target.__module__)  # type: ignore[misc]
        return target
    return _checked(target, target.__module__)  # type: ignore[return-value]


def _checked(function: Callable[..., Any], module: str) -> Callable[..., Any]:
    signature, hints = inspect.signature(function), dict[str, Any]()

    @wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        if not hints:  # annotations may name classes that are defined later
            found = get_type_hints(function, vars(sys.modules[module]), include_extras=True)
            hints.update(found, **{"": None})
        try:
            given = signature.bind(*args, **keywords).arguments
        except TypeError:  # which Python says better
            return function(*args, **keywords)
        sizes: dict[str, Any] = {}
        for name, value in given.items():
            several = signature.parameters[name].kind in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            )
            if name in hints and not several and not _fits(value, hints[name]):
                raise TypeError(f"{name}: expected {_described(hints[name])}, got {_shown(value)}")
            shape = _shape(hints.get(name)) if isinstance(value, Tensor) else None
            if shape is not None and not shape.fits(value, sizes):
                got = f"{value.dtype} of shape {tuple(value.shape)}"
                raise ValueError(f"{name}: expected {shape.described(sizes)}, got {got}")
        return function(*args, **keywords)

    vars(call)["checks_arguments"] = True  # so that tests do not check them before
    return call


def _shape(hint: Any) -> Shape | None:
    """What an annotation says of a tensor's shape."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((part.__metadata__[0] for part in parts if get_origin(part) is Annotated), None)


def _without_shape(hint: Any) -> Any:
    return hint.__origin__ if get_origin(hint) is Annotated else hint


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says; True where that is not known."""
    hint = _without_shape(hint)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return (
            isinstance(value, Real) and not isinstance(value, bool) and (not isinstance(value, int) or is_number(value))
        )
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if origin is Callable or hint is Callable:
        return callable(value)
    if origin in (Sequence, tuple):
        return _is_sequence(value, (*get_args(hint), Any)[0])
    kind = origin or hint
    if not isinstance(kind, type) or kind is Any:
        return True
    return _has_members(value, kind) if getattr(kind, "_is_protocol", False) else isinstance(value, kind)


def _has_members(value: Any, protocol: type) -> bool:
    """Whether a value has the public attributes of a protocol, which need not be runtime-checkable."""
    names = {name for name in (*vars(protocol), *vars(protocol).get("__annotations__", ())) if not name.startswith("_")}
    return not isinstance(value, type) and all(hasattr(value, name) for name in names)


def _is_sequence(value: Any, part: Any) -> bool:
    """Whether it has an order; arrays and tensors are sequences of numbers. What the parts are is not checked."""
    if isinstance(value, str | bytes | Mapping | type):
        return False
    arrays = part in (float, int, Any) and hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return arrays or isinstance(value, Sequence)


def _described(hint: Any) -> str:
    """An annotation in words."""
    hint = _without_shape(hint)
    origin, names = get_origin(hint), {float: "a number", int: "a whole number", bool: "True or False", None: "None"}
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(part) for part in get_args(hint)))
    if hint in (None, type(None)):
        return "None"
    if origin is Callable or hint is Callable:
        return "a function"
    if origin in (Sequence, tuple):
        return "a sequence"
    kind = origin or hint
    name = {Tensor: "tensor", Iterable: "iterable"}.get(kind, getattr(kind, "__name__", str(kind)))
    return names.get(kind) or f"{'an' if name[0] in 'AEIOU' or name == 'iterable' else 'a'} {name}"


def _shown(value: Any) -> str:
    short = value is None or isinstance(value, bool | int | float | str)
    return repr(value)[:60] if short else f"{value.__name__}" if isinstance(value, type) else type(value).__name__
