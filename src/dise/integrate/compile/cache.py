"""Compiled functions, kept between solves."""

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import count
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary, ref

import torch

from dise.integrate.compile.backend import fast_inductor, inductor

LOG = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable)
Setting = bool | str | Mapping[str, Any]  # `compile=` of `dise.solve`, except False

_copies = count()
_GRAPHS: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()


class Graph:
    """A compiled function. Its first call compiles it, and logs how long that took.

    Args:
        function: by `torch.compile`.
        name: what it computes, for the log.

    Attributes:
        calls: number of finished calls.
        requests: how often it would have been of use, called or not; counted by its user.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function, self._name, self.calls, self.requests = function, name, 0, 0

    def __call__(self, *args: Any) -> Any:
        """The function's value."""
        start = time.perf_counter()
        value = self._function(*args)
        if not self.calls:
            LOG.info("compiled %s in %.1f s", self._name, time.perf_counter() - start)
        self.calls += 1
        return value


def compiled(function: Callable[..., Any], f: Callable, key: Hashable, setting: Setting, name: str) -> Graph:
    """`function` compiled into one graph, for calls with the vector field f.

    There is one graph for each f (functions with the same code and different closures count as one), key and setting,
    with and without gradients. torch itself compiles another for other dtypes, and for up to 8 (torch's
    `recompile_limit`) shapes.

    Args:
        function: a pure function of tensors; f is one of its arguments. The key includes the tableau of its `method`.
        f: graphs are dropped together with it.
        key: everything else that the graph depends on.
        setting: True, "fast" or arguments of `torch.compile`.
        name: what the function computes, for the log.
    """
    graphs = _GRAPHS.setdefault(function_key(f), {})
    options = repr(sorted(setting.items())) if isinstance(setting, Mapping) else setting
    full_key = (function, key, options, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    if full_key not in graphs:
        graphs[full_key] = Graph(torch.compile(_copy(function), **_arguments(setting)), name)
    graph: Graph = graphs[full_key]
    return graph


def function_key(f: Callable) -> Any:
    """A weakly referenceable key for f: its code, which outlives each closure, or a callable object itself."""
    code = getattr(f, "__code__", None)
    if isinstance(code, CodeType):
        return code
    try:
        hash(f), ref(f)
    except TypeError:
        return type(f)
    return f


def _arguments(setting: Setting) -> dict[str, Any]:
    """Arguments of torch.compile: the user's, with one of our backends unless a backend or a mode is given."""
    given = setting if isinstance(setting, Mapping) else {}
    arguments = {"fullgraph": True, **given}
    # a mode belongs to torch's own backend
    if "backend" in given or "mode" in given:
        return arguments
    # a prototype of torch; torch 2.6 passes it on to the backend, which ignores it, and checks all guards
    options = {"guard_filter_fn": _checked_guards, **given.get("options", {})}
    return arguments | {"backend": fast_inductor if setting == "fast" else inductor, "options": options}


def _checked_guards(guards: Sequence[Any]) -> list[bool]:
    """For each guard of a graph, whether calls check it.

    All are except a tableau's numbers, which the key covers, and what the modules of the solver define, which stays as
    it is. torch may call its own functions by the first module that imports it, so what these guards find in torch is
    checked.
    """
    tableau = ("method.tableau", "L['method'].tableau")  # torch's names for it
    own, torchs = "__import_dise_dot_integrate_dot_", ".torch"
    return [
        not (guard.name.startswith(tableau) or (own in guard.name and torchs not in guard.name)) for guard in guards
    ]


def _copy(function: F) -> F:
    """The function with a code object and a name of its own.

    torch counts recompilations per code object. It remembers per name which numbers and sizes have changed and makes
    them inputs of later graphs, though the key covers them.
    """
    code, closure = function.__code__, function.__closure__
    code = code.replace(co_name=f"{code.co_name}_{next(_copies)}")
    copy = FunctionType(code, function.__globals__, code.co_name, function.__defaults__, closure)
    return cast("F", copy)
