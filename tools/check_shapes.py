"""Checks shape annotations while tests run: `install()` before dise is imported.

Functions of dise whose parameters or results are annotated with shapes, or by records with such fields (NamedTuples and
dataclasses), are wrapped as their module is imported; jaxtyping checks them. The same letter is the same size within a
call. What torch compiles or exports is not checked: a graph is to be that of the function alone. Checks are made at the
calls 1, 4, 16, … of each function in a test, so that long loops are not slowed down. Arguments of functions that check
them in each call (`checked_arguments`) are left to these.
"""

import functools
import importlib.abc
import importlib.machinery
import inspect
import operator
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from types import FunctionType, ModuleType, UnionType
from typing import Any

import jaxtyping
import torch
from beartype import BeartypeConf
from beartype.door import die_if_unbearable

CONF = BeartypeConf(violation_type=TypeError)
PACKAGE = "dise"
UNCHECKED = ("dise.integrate.compile",)  # its functions are compiled by their code

_counts: dict[FunctionType, int] = {}


def install() -> None:
    """Check all modules of dise that are imported from here on."""
    loaded = [name for name in sys.modules if name.split(".")[0] == PACKAGE]
    if loaded:
        raise RuntimeError(f"check_shapes must be installed before dise is imported; {loaded[0]} is there")
    sys.meta_path.insert(0, _Finder())


def start_test() -> None:
    """Count the calls from 1 again."""
    _counts.clear()


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        """The module as it would be found, with a loader that wraps its functions."""
        if name.split(".")[0] != PACKAGE or name.startswith(UNCHECKED):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then wrap what it defines, before others import it."""
        super().exec_module(module)
        for name, value in list(vars(module).items()):
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if isinstance(value, FunctionType):
                setattr(module, name, _checked(value))
            elif isinstance(value, type):
                _check_methods(value)


def _check_methods(cls: type) -> None:
    for name, value in list(vars(cls).items()):
        if isinstance(value, FunctionType) and (name in ("__init__", "__call__") or not name.startswith("__")):
            setattr(cls, name, _checked(value))


def _checked(function: FunctionType) -> Callable[..., Any]:
    """The function, with its annotated tensors and records checked before and after."""
    if inspect.isgeneratorfunction(function) or not _hints(function):
        return function

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        # torch's compiler follows this branch alone
        if torch.compiler.is_compiling() or not _is_due(function):
            return function(*args, **kwargs)
        call = _uncompiled() if "torch._dynamo" in sys.modules else _call_checked
        return call(function, args, kwargs)

    return checked


@functools.cache
def _uncompiled() -> Callable[..., Any]:
    """`_call_checked` where a model around the solve may be compiled: the checks are not to be traced."""
    return torch.compiler.disable(_call_checked)


def _call_checked(function: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    hints = _hints(function)
    given = inspect.signature(function).bind(*args, **kwargs).arguments
    with jaxtyping.jaxtyped("context"):
        for name, hint in hints.items():
            if name in given and not hasattr(function, "checks_arguments"):
                _check(given[name], hint, f"{function.__qualname__}: {name}")
        result = function(*args, **kwargs)
        if "return" in hints:
            _check(result, hints["return"], f"{function.__qualname__}: result")
    return result


def _is_due(function: FunctionType) -> bool:
    count = _counts[function] = _counts.get(function, 0) + 1
    return count & (count - 1) == 0 and count.bit_length() % 2 == 1  # a power of four


@functools.cache
def _hints(function: Any) -> dict[str, Any]:
    """The annotations of a function or record that have shapes in them."""
    found = typing.get_type_hints(function, include_extras=True)
    return {name: hint for name, given in found.items() if _has_shapes(hint := _jaxtyped(given))}


def _jaxtyped(hint: Any) -> Any:
    """An annotation with jaxtyping's types in place of dise's shapes."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        shape = parts[1]
        return getattr(jaxtyping, shape.kind)[parts[0], shape.dims] if hasattr(shape, "dims") else hint
    if origin in (typing.Union, UnionType):
        return functools.reduce(operator.or_, map(_jaxtyped, parts))
    return origin[tuple(map(_jaxtyped, parts))] if origin in (tuple, list) else hint


def _has_shapes(hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, UnionType, tuple, list):
        return any(_has_shapes(part) for part in typing.get_args(hint))
    return isinstance(hint, type) and (issubclass(hint, jaxtyping.AbstractArray) or _is_record(hint))


def _is_record(hint: type) -> bool:
    named = hasattr(hint, "_fields") and issubclass(hint, tuple)
    return (named or is_dataclass(hint)) and hint.__module__.split(".")[0] == PACKAGE and bool(_hints(hint))


def _check(value: Any, hint: Any, where: str) -> None:
    """Raise a TypeError unless a value is as annotated. Parts of sequences and records are checked one by one."""
    if _is_record(type(value)):
        with jaxtyping.jaxtyped("context"):  # a record's letters are its own
            _check_record(value, where)
    elif isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        for part, part_hint in zip(value, _parts(hint, len(value)), strict=False):
            _check(part, part_hint, where)
    elif isinstance(value, torch.Tensor) and not (isinstance(hint, type) and _is_record(hint)):  # functions check that
        try:
            die_if_unbearable(value, hint, conf=CONF)
        except TypeError as error:
            raise TypeError(f"{where}: expected {hint}, got {value.dtype} of shape {tuple(value.shape)}") from error


def _check_record(record: Any, where: str) -> None:
    for name, hint in _hints(type(record)).items():
        _check(getattr(record, name), hint, f"{where}: {type(record).__name__}.{name}")


def _parts(hint: Any, number: int) -> Iterator[Any]:
    for option in typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, UnionType) else (hint,):
        if typing.get_origin(option) in (tuple, list):
            parts = typing.get_args(option)
            return iter((parts[0],) * number if len(parts) == 1 or parts[-1] is Ellipsis else parts)
    return iter(())
