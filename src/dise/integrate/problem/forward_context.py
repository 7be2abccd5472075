"""What f depends on beside its arguments, as in the forward pass, for a backward pass that evaluates f again."""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_file

from dise.integrate.problem.changes import Changes

_MAX_DEPTH = 6  # of the search for modules; f → functools.partial → method → object → module takes 4
_MAX_ITEMS = 1000  # a longer container holds data
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # hooks, and tables that are looked through by themselves
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ABSENT: Any = object()

Table = MutableMapping[str, Any]


class ForwardContext:
    """The tensors in f's modules and the autocast state, as they are when this object is made.

    Both may differ in the backward pass: `torch.func.functional_call` exchanges a module's tensors during one call, and
    `loss.backward()` is usually called outside of autocast.

    Args:
        f: from which, and from whose arguments, its modules are reached.
        args, sample_args: f's further arguments.
        device: type of the device whose autocast state is kept.
        state: tensors of the problem that the backward pass reads too, by their names.
    """

    def __init__(
        self,
        f: object,
        device: str,
        args: Sequence[object] = (),
        sample_args: Sequence[object] = (),
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._slots, others = _found((f, *args))
        state = {} if state is None else dict(state)
        self._state = tuple(state.values())
        named = {f"args[{i}]": x for i, x in enumerate(args) if isinstance(x, Tensor)}
        named |= {f"sample_args[{i}]": x for i, x in enumerate(sample_args) if isinstance(x, Tensor)}
        subjects = [("f: a tensor", x) for x in others] + [(f"f: its tensor {name}", x) for _, name, x in self._slots]
        self._changes = Changes([*subjects, *((f"{name}: the tensor", x) for name, x in (named | state).items())])
        self._autocast = _Autocast.now(device)

    def without_autocast(self) -> "ForwardContext":
        """The same tensors, without autocast."""
        exact = copy(self)
        exact._autocast = self._autocast._replace(enabled=False)
        return exact

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The modules' tensors that require gradients."""
        return tuple(tensor for _, _, tensor in self._slots if tensor.requires_grad)

    def end_forward(self) -> None:
        """Tell that the forward pass is over: what changes from now on is not f's doing."""
        self._changes.end_forward()

    def check_unchanged(self, evaluate: Callable[[], object]) -> None:
        """Raise an error if a tensor that the backward pass reads was changed in place after the forward pass.

        Args:
            evaluate: evaluates f; called only if something was changed, to see whether f reads it.

        Raises:
            RuntimeError: a tensor was changed.
        """
        self._changes.check(self._state)
        with self.restored():
            self._changes.check_reads(evaluate)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """A context with these tensors in the modules, and with this autocast state."""
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
    return [tensor for _, _, tensor in _found(sources)[0]]


def training_modes(sources: Iterable[object]) -> tuple[bool, ...]:
    """Whether each module that f and its arguments lead to is in training mode."""
    modules, tables = _modules(sources)
    return (*(module.training for module in modules), *(table["training"] for table in tables))


def hooks(sources: Iterable[object]) -> tuple[int, ...]:
    """The numbers, never used twice, of the hooks of all modules that f and its arguments lead to, and of every one."""
    modules, tables = _modules(sources)
    places = (*map(vars, modules), *tables)
    numbers = [number for place in places for kind in _HOOKS for number in place.get(kind, ())]
    return (*numbers, *(number for kind in _HOOKS for number in getattr(module_file, f"_global{kind}", ())))


def _modules(sources: Iterable[object]) -> tuple[list[nn.Module], list[Table]]:
    """The modules among the sources and below these, and the attributes of others that the sources lead to."""
    modules: list[nn.Module] = []
    others: list[object] = []
    for source in sources:
        if isinstance(source, nn.Module):
            modules.extend(_with_children(source))
        else:
            others.append(source)
    return modules, [table for table in _tables(others) if isinstance(table.get("training"), bool)] if others else []


def _with_children(module: nn.Module) -> list[nn.Module]:
    """A module and all below it; every solve asks, so without the names of `nn.Module.named_modules`."""
    found, seen = [module], {module}
    for some in found:  # to which its children are added
        for child in some._modules.values():
            if child is not None and child not in seen:
                found.append(child)
                seen.add(child)
    return found


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


def _found(sources: Iterable[object]) -> tuple[list[tuple[Table, str, Tensor]], list[Tensor]]:
    """The tensors in the tables of the sources, each with its table and name, and the tensors beside tables."""
    others: list[Tensor] = []
    tables = _tables(sources, others)
    slots = [(table, name, value) for table in tables for name, value in table.items() if isinstance(value, Tensor)]
    return slots, others


def _tables(sources: Iterable[object], others: list[Tensor] | None = None) -> list[Table]:
    """The tables in which modules and other objects keep their tensors by name.

    Modules are reached through closures, defaults, methods, `functools.partial`, containers and attributes. Tensors
    that are reached too are added to `others`.
    """
    tables: list[Table] = []
    seen: set[int] = set()
    level = list(sources)
    for _ in range(_MAX_DEPTH):
        following: list[object] = []
        for value in level:
            if isinstance(value, Tensor) and others is not None:
                others.append(value)
            if id(value) in seen or isinstance(value, Tensor | type):
                continue
            seen.add(id(value))
            if isinstance(value, nn.Module):
                seen.update(id(module) for module in value.modules())
                tables.extend(table for module in value.modules() for table in _tables_of_module(module))
                following.extend(x for module in value.modules() for x in _beside_tables(module))
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


def _beside_tables(module: nn.Module) -> list[object]:
    """What a module leads to beside the tensors in its tables and the modules below it."""
    if isinstance(module, torch.jit.ScriptModule):
        return [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    own = ((name, value) for name, value in vars(module).items() if name not in _OF_EVERY_MODULE)
    return [value for _, value in own if isinstance(value, list | tuple | dict)]


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
    """What a Python function takes from outside: closure, defaults, and what it and functions in it use of a file."""
    captured = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    captured.append(getattr(function, "__wrapped__", None))
    for cell in function.__closure__ or ():
        try:
            captured.append(cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    values = (function.__globals__.get(name) for name in _names(function.__code__))
    captured.extend(x for x in values if not isinstance(x, FunctionType | ModuleType) or _is_beside(function, x))
    return captured


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function, and functions and comprehensions within it, may take from the file."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _is_beside(function: FunctionType, value: object) -> bool:
    """Whether a value is a function of the same file; those of libraries are not followed."""
    return isinstance(value, FunctionType) and value.__globals__ is function.__globals__
