"""The user's vector field, as the solver calls it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from dise.integrate.compile.cache import compiled
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request
from dise.integrate.problem.state import Layout, State, leaves, same_structure, shapes
from dise.integrate.tracing import times_changed

F = TypeVar("F", bound=Callable)


class BoundField(NamedTuple):
    """f with its arguments, on the solver's layout and for certain samples."""

    f: Callable[..., State]
    layout: Layout
    args: tuple[Any, ...]
    own: tuple[Tensor, ...]  # the samples' rows of sample_args


def call(f: BoundField, t: Tensor, y: Tensor) -> Tensor:
    """f at times [n] and states [n, F], checked: [n, F]. Not a method, which older torch cannot compile."""
    layout = f.layout
    state = layout.unpack(y.contiguous())
    value = f.f(layout.time(t), state, *f.args, *f.own)
    if not same_structure(value, state):
        raise ValueError(f"f: expected dy/dt of shape {shapes(state)} like y, got {shapes(value)}.")
    for part in leaves(value):
        if part.is_complex() and not layout.dtype.is_complex:
            raise TypeError(f"f: expected a real dy/dt like y, of {layout.dtype}, got a complex one")
        if part.device != y.device:
            raise TypeError(f"f: expected dy/dt on {y.device} like y, got it on {part.device}")
    return layout.pack(value)


class Field:
    """The user's f on the solver's layout: answers requests, checks what comes back, counts calls.

    Args:
        f: vector field (see `dise.solve`).
        problem: the solve's problem; its times and states stand in for samples that ask for nothing.
        args, sample_args: further arguments of f.
        options: arguments of `torch.compile`; None: f is called as it is.
    """

    def __init__(
        self,
        f: Callable[..., State],
        problem: Problem,
        args: Sequence[Any] = (),
        sample_args: Sequence[Tensor] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.f, self.problem = f, problem
        self.args, self.sample_args, self.options = tuple(args), tuple(sample_args), options
        self.calls = 0
        self._last: tuple[Tensor, int] | None = None  # the value returned last, and its version
        self._common = BoundField(f, problem.layout, self.args, ())

    def __call__(self, request: Request) -> Tensor:
        """The request's values of f."""
        if request.rows is None or self.problem.drop_finished:
            return self._evaluate(request)
        # f wants all samples always: those that ask for nothing are evaluated at their start
        rows = (request.rows,)
        t, y = self.problem.t0.index_put(rows, request.t), self.problem.y0.index_put(rows, request.y)
        return self._evaluate(Request(None, t, y))[request.rows]

    def bound(self, rows: Tensor | None) -> BoundField:
        """f for some of the samples (None: all, in order)."""
        if not self.sample_args:
            return self._common
        own = self.sample_args if rows is None else tuple(arg[rows] for arg in self.sample_args)
        return self._common._replace(own=own)

    def compiled(self, function: F, *key: Hashable) -> F:
        """A function of a `BoundField` f and of tensors, compiled; `key` is what else it depends on."""
        if self.options is None:
            raise RuntimeError("this field was made without options of torch.compile")
        layout = self.problem.layout  # a graph of one structure does not turn into that of another
        structure = (layout.is_tuple, layout.names, layout.batched, layout.dtype)
        return compiled(function, self.f, (*key, structure), self.options)

    def _evaluate(self, request: Request) -> Tensor:
        self.calls += 1
        evaluate = call if self.options is None else self.compiled(call)
        try:
            version = times_changed(request.y)
            value = evaluate(self.bound(request.rows), request.t.contiguous(), request.y)
            self._check_memory(request.y, version, value)
            return value
        except (RuntimeError, ValueError) as error:
            self.explain(error, request)
            raise

    def explain(self, error: Exception, request: Request) -> None:
        """Add to an error of f what may be behind it; compiled, raise f's own instead, if it has one."""
        if self.options is not None:
            call(self.bound(request.rows), request.t, request.y)
            error.add_note("compile: f works, but torch.compile makes no single graph of it; see above what hinders it")
        if request.rows is not None:
            error.add_note(PARTIAL)

    def _check_memory(self, y: Tensor, version: int, value: Tensor) -> None:
        """Raise if f wrote where the solver still reads: into y, or over the value that it returned before."""
        if times_changed(y) != version:
            raise RuntimeError("f: changed y in place; work on a copy")
        if self._last is not None and times_changed(self._last[0]) != self._last[1]:
            raise RuntimeError("f: returned memory that it returned before, overwritten; return a new tensor each time")
        self._last = value, times_changed(value)


PARTIAL = (
    "f was called on some of the samples only. Tensors with a row a sample belong in sample_args=, "
    "not in a closure; or pass drop_finished=False."
)
