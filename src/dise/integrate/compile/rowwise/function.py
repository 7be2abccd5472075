"""Kernels as functions of tensors."""

import ctypes
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dise.integrate.compile.rowwise.build import VECTOR_BYTES, built
from dise.integrate.compile.rowwise.kernel import Loop, kernel_source
from dise.integrate.compile.rowwise.trace import Trace, Tracer
from dise.integrate.compile.rowwise.values import Section, UnsupportedError, View

ROWS = (13, 17)  # in traces of graphs for any number of rows; both must give the same code
ROWS_PER_THREAD = 256
_FORMATS = (torch.preserve_format, torch.contiguous_format)  # of results of up to two dimensions, and of others


class Spec(NamedTuple):
    """What a kernel must know of an input."""

    shape: tuple[Any, ...]
    dtype: torch.dtype
    requires_grad: bool


def spec_of(x: Any) -> Any:
    """What a kernel must know of a tensor; sizes stay as they are."""
    return Spec(tuple(x.shape), x.dtype, x.requires_grad) if isinstance(x, Tensor) else x


class Result(NamedTuple):
    """A result of a kernel: [n, *shape], or `shape` if it is not per row."""

    per_row: bool
    shape: tuple[int, ...]
    dtype: torch.dtype
    by_feature: bool  # whether features, not rows, are the outer dimension in memory

    def empty(self, n: int) -> Tensor:
        """Memory for it."""
        if self.by_feature:
            return torch.empty(*self.shape, n, dtype=self.dtype).t()
        return torch.empty((n, *self.shape) if self.per_row else self.shape, dtype=self.dtype)


class Rounds(NamedTuple):
    """How a kernel repeats its function, from round to round.

    Attributes:
        carried: the inputs whose next values are the first results, in their order.
        logged: number of results after these that are kept of each round, [rounds · n, ...].
        given: inputs of which each round has its own, [rounds · n, ...].
        backwards: from the last round to the first one.
    """

    carried: Sequence[int]
    logged: int = 0
    given: Sequence[int] = ()
    backwards: bool = False


class Kernel:
    """A function of tensors, compiled.

    Args:
        function: (inputs) → (results, running); running is None, or of rounds [n] which rows run after a round, or
            backwards before it: bool, the status, or the number of such rows.
        inputs: fake tensors, and sizes, which must be the number of rows.
        rows: the number of rows, or a symbol for it.
        rounds: how it is repeated, until no row runs; None: it is not.

    Raises:
        UnsupportedError: there is no code for it.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: Sequence[Any],
        rows: Any,
        rounds: Rounds | None = None,
    ) -> None:
        self._rounds = rounds
        self._per_row = [is_per_row(x, rows) for x in inputs]
        numbers = (rows,) if isinstance(rows, int) else ROWS
        if numbers[0] < 2:
            raise UnsupportedError("fewer than two rows")
        source = self._source(function, inputs, numbers[0])
        constants = self._constants
        for number in numbers[1:]:
            same = source == self._source(function, inputs, number)
            if not same or not all(map(torch.equal, constants, self._constants)):
                raise UnsupportedError("numbers that depend on the number of rows")
        self._function = built(source)

    def _source(self, function: Any, inputs: Sequence[Any], rows: int) -> str:
        tracer, examples = Tracer(rows), list[Any]()
        for x, per_row in zip(inputs, self._per_row, strict=True):
            examples.append(rows if per_row is None else _example(x, rows, per_row=per_row))
            if per_row is not None:
                tracer.input(examples[-1].detach(), per_row=per_row)
        with tracer:
            outputs, running = function(*examples)
        results, trace = [tracer.view(x) for x in outputs], tracer.trace
        loop = None if self._rounds is None else self._loop(self._rounds, trace, results, tracer.view(running))
        self._constants = trace.constants
        self._results = [_result(x, view) for x, view in zip(outputs, results, strict=True)]
        vector = VECTOR_BYTES[torch.backends.cpu.get_cpu_capability()]
        return kernel_source(trace, results, loop, vector)

    def __call__(
        self, inputs: Sequence[Any], limit: int = 1, likes: Sequence[Tensor] = ()
    ) -> tuple[list[Tensor], list[int]]:
        """The results, and of rounds the number of rows that still run and of rounds.

        Args:
            inputs: as before.
            limit: the largest number of rounds; backwards their number.
            likes: tensors whose strides the results have.
        """
        given, logged = () if self._rounds is None else self._rounds.given, self._logged
        tensors, n = [], 0
        for k, (x, per_row) in enumerate(zip(inputs, self._per_row, strict=True)):
            if per_row is not None:
                x = x.resolve_neg() if x.is_neg() else x
                tensors.append(x if per_row and x.ndim <= 2 else x.contiguous())
                n = x.shape[0] if per_row and k not in given else n
        results = [torch.empty_like(x, memory_format=_FORMATS[x.ndim > 2]) for x in likes]
        results = results or [x.empty(limit * n if k in logged else n) for k, x in enumerate(self._results)]
        tensors += [*self._constants, *results]
        pointers = (ctypes.c_void_p * len(tensors))(*[x.data_ptr() for x in tensors])
        strides = (ctypes.c_long * (2 * len(tensors)))(*[s for x in tensors for s in _strides(x)])
        counts = (ctypes.c_long * 2)()
        threads = max(1, min(torch.get_num_threads(), n // ROWS_PER_THREAD))
        self._function(pointers, strides, n, limit, threads, counts)
        if counts[1] < limit:
            for k in logged:
                results[k] = results[k][: counts[1] * n]
        return results, list(counts)

    def _loop(self, rounds: Rounds, trace: Trace, results: Sequence[View], running: View) -> Loop:
        if running.row is None:
            counted = next((node for node in trace.nodes if node.value == running.value), None)
            if counted is None or counted.operator != "sum over rows":
                raise UnsupportedError("a loop that does not count its rows")
            running = counted.arguments["self"]
        tensors = [k for k, per_row in enumerate(self._per_row) if per_row is not None]
        views = dict(zip(tensors, trace.inputs, strict=False))
        carried = [(views[k], new) for k, new in zip(rounds.carried, results, strict=False)]
        return Loop(carried, running, rounds.logged, [views[k] for k in rounds.given], rounds.backwards)

    @property
    def logged_bytes(self) -> int:
        """What is kept of each round, per row."""
        return sum(prod(self._results[k].shape) * self._results[k].dtype.itemsize for k in self._logged)

    @property
    def _logged(self) -> range:
        """The results that are kept of each round."""
        rounds = self._rounds or Rounds(())
        return range(len(rounds.carried), len(rounds.carried) + rounds.logged)


def is_per_row(x: Any, rows: Any) -> bool | None:
    """Whether the first dimension of an input is that of rows; None: it is their number."""
    if isinstance(x, Spec):
        return len(x.shape) > 0 and str(x.shape[0]) == str(rows)
    if str(x) != str(rows):
        raise UnsupportedError("another size")
    return None


def _example(x: Spec, rows: int, *, per_row: bool) -> Tensor:
    shape = (rows, *x.shape[1:]) if per_row else tuple(x.shape)
    if not all(isinstance(size, int) for size in shape):
        raise UnsupportedError("another size")
    return torch.ones(shape, dtype=x.dtype, requires_grad=x.requires_grad)


def _result(x: Tensor, view: View) -> Result:
    if view.row not in (None, 0) or (view.row is None and view.value.section is Section.ROW):
        raise UnsupportedError("a result with rows in another dimension")
    by_feature = view.row == 0 and x.ndim == 2 and x.shape[1] > 1 and x.stride(0) == 1
    return Result(view.row == 0, view.tail, x.dtype, by_feature)


def _strides(x: Tensor) -> tuple[int, int]:
    """Elements between rows, and between the elements of a row."""
    if x.ndim == 0:
        return 0, 0
    return x.stride(0), x.stride(1) if x.ndim == 2 else 1
