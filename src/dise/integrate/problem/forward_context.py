"""What f depends on beside its arguments, as in the forward pass, for a backward pass that evaluates f again."""

from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dise.integrate.tracing import times_changed

_MAX_DEPTH = 6  # of the search for modules; f → functools.partial → method → object → module takes 4
_MAX_ITEMS = 1000  # a longer container holds data
_ABSENT: Any = object()

Table = MutableMapping[str, Any]


class ForwardContext:
    """The tensors in f's modules and the autocast state, as they are when this object is made.

    Both may differ in the backward pass: `torch.func.functional_call` exchanges a module's tensors during one call, and
    `loss.backward()` is usually called outside of autocast.

    Args:
        sources: f and its arguments, from which f's modules are reached.
        device: type of the device whose autocast state is kept.
    """

    def __init__(self, sources: Iterable[object], device: str) -> None:
        self._slots = _slots(sources)
        # f's first call gives parameters of lazy modules their values
        self._versions = [(tensor, times_changed(tensor)) for tensor in self.tensors if not is_lazy(tensor)]
        self._autocast = _Autocast.now(device)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The modules' tensors that require gradients."""
        return tuple(tensor for _, _, tensor in self._slots if tensor.requires_grad)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """A context with these tensors in the modules, and with this autocast state.

        Raises:
            RuntimeError: one that requires a gradient was changed in place since.
        """
        for tensor, version in self._versions:
            if times_changed(tensor) != version:
                raise RuntimeError(
                    f"f: a tensor of shape {tuple(tensor.shape)} that it uses was changed in place after the forward "
                    "pass, but the backward pass calls f again; call backward() before the optimizer's step"
                )
        changed = [
            (table, name, value, table.get(name, _ABSENT))
            for table, name, value in self._slots
            if table.get(name) is not value
        ]
        for table, name, value, _ in changed:
            table[name] = value
        try:
            with self._autocast.entered():
                yield
        finally:
            for table, name, value, present in changed:
                if table.get(name) is not value:
                    continue  # f itself has assigned another one
                if present is _ABSENT:
                    del table[name]
                else:
                    table[name] = present


def module_tensors(sources: Iterable[object]) -> list[Tensor]:
    """The tensors in the modules, and other objects, that f and its arguments lead to."""
    return [tensor for _, _, tensor in _slots(sources)]


def training_modes(sources: Iterable[object]) -> tuple[bool, ...]:
    """Whether each module that f and its arguments lead to is in training mode."""
    modes: list[bool] = []
    others: list[object] = []
    for source in sources:
        if isinstance(source, nn.Module):
            modes.extend(_modes_of_module(source))
        else:
            others.append(source)
    if others:
        modes.extend(table["training"] for table in _tables(others) if isinstance(table.get("training"), bool))
    return tuple(modes)


def _modes_of_module(module: nn.Module) -> list[bool]:
    """Those of a module and all below it; every solve asks, so without the names of `nn.Module.named_modules`."""
    found, seen = [module], {module}
    for some in found:  # to which its children are added
        for child in some._modules.values():
            if child is not None and child not in seen:
                found.append(child)
                seen.add(child)
    return [some.training for some in found]


class _Autocast(NamedTuple):
    """The autocast state of a type of device."""

    device: str
    enabled: bool = False
    dtype: torch.dtype | None = None
    cached: bool = False

    @classmethod
    def now(cls, device: str) -> "_Autocast":
        """The present state."""
        if not torch.amp.is_autocast_available(device):
            return cls(device)
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        return cls(device, enabled, dtype, torch.is_autocast_cache_enabled())

    def entered(self) -> AbstractContextManager[Any]:
        """A context with this state."""
        # entering autocast is slow, so do it only where the present state differs
        if self == _Autocast.now(self.device):
            return nullcontext()
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled, cache_enabled=self.cached)


def _slots(sources: Iterable[object]) -> list[tuple[Table, str, Tensor]]:
    """The tensors in the tables of the sources, each with its table and name."""
    return [
        (table, name, value) for table in _tables(sources) for name, value in table.items() if isinstance(value, Tensor)
    ]


def _tables(sources: Iterable[object]) -> list[Table]:
    """The tables in which modules and other objects keep their tensors by name.

    Modules are reached through closures, defaults, methods, `functools.partial`, containers and attributes.
    """
    tables: list[Table] = []
    seen: set[int] = set()
    level = list(sources)
    for _ in range(_MAX_DEPTH):
        following: list[object] = []
        for value in level:
            if id(value) in seen or isinstance(value, Tensor | type):
                continue
            seen.add(id(value))
            if isinstance(value, nn.Module):
                seen.update(id(module) for module in value.modules())
                tables.extend(table for module in value.modules() for table in _tables_of_module(module))
            elif (attributes := _attributes(value)) is not None:
                tables.append(attributes)
                following.extend(attributes.values())
            following.extend(_parts(value))
        level = following
    return tables


def _tables_of_module(module: nn.Module) -> tuple[Table, ...]:
    if isinstance(module, torch.jit.ScriptModule):
        return ()  # its tensors cannot be exchanged
    # replicas, as nn.DataParallel makes them, keep their tensors as attributes
    return module._parameters, module._buffers, vars(module)


def _attributes(value: object) -> Table | None:
    """The attributes of an object, unless it is a function, one of Python's modules, or the like."""
    attributes = getattr(value, "__dict__", None)
    if type(value).__module__ == "builtins" or not isinstance(attributes, dict) or len(attributes) > _MAX_ITEMS:
        return None
    return attributes


def _parts(value: object) -> Iterable[object]:
    """What a function, a method or a container leads to."""
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, FunctionType):
        return _captured(value)
    if isinstance(value, list | tuple | dict) and len(value) <= _MAX_ITEMS:
        return list(value.values()) if isinstance(value, dict) else value
    return ()


def _captured(function: FunctionType) -> list[object]:
    """What a Python function takes from outside: closure, defaults, and modules and functions among its globals."""
    captured = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    captured.append(getattr(function, "__wrapped__", None))
    for cell in function.__closure__ or ():
        try:
            captured.append(cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    values = (function.__globals__.get(name) for name in function.__code__.co_names)
    captured.extend(x for x in values if isinstance(x, nn.Module | MethodType | partial) or _is_beside(function, x))
    return captured


def _is_beside(function: FunctionType, value: object) -> bool:
    """Whether a value is a function of the same file; those of libraries are not followed."""
    return isinstance(value, FunctionType) and value.__globals__ is function.__globals__
