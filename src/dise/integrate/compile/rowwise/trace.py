"""A graph as a list of operators on values, recorded while torch runs it on a few rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dise.integrate.compile import private
from dise.integrate.compile.rowwise.operators import (
    CALLS,
    CONSTANTS,
    DATA,
    ELEMENTWISE,
    EXTREMA,
    REDUCTIONS,
    simple_power,
)
from dise.integrate.compile.rowwise.values import (
    C_TYPES,
    Section,
    UnsupportedError,
    Value,
    View,
    fresh_index,
    view_of,
)

_aten = torch.ops.aten
PRODUCTS = (_aten.mm.default, _aten.addmm.default)
SIZES = (_aten.sym_size.int, _aten.sym_stride.int, _aten.sym_numel.default, _aten._assert_scalar.default)
ROW_SUMS = (_aten.sum.default, _aten.sum.dim_IntList)


@dataclass(frozen=True)
class Node:
    """An operator of a graph.

    Attributes:
        operator: torch's, or "sum over rows" and "product over rows".
        arguments: by their names in the operator's schema; tensors are views.
        value: the result.
        view: the result as a whole.
    """

    operator: Any
    arguments: Mapping[str, Any]
    value: Value
    view: View

    def operands(self) -> list[View]:
        """The views among the arguments."""
        return _views(self.arguments)


@dataclass
class Trace:
    """Operators and inputs of a graph."""

    rows: int
    nodes: list[Node] = field(default_factory=list)
    inputs: list[View] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)  # inputs after the graph's own


class Tracer(TorchDispatchMode):
    """Records the operators of everything that is called within it.

    Args:
        rows: the number of rows.

    Raises:
        UnsupportedError: an operator for which there is no code.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace(rows)
        self._places: dict[int, tuple[Value, Tensor]] = {}  # by the address of a storage
        self._numbers = count()
        self._kept: list[Tensor] = []  # so that no storage takes the address of another

    def input(self, x: Tensor, *, per_row: bool) -> View:
        """x [rows, ...] or a tensor for all rows as an input; a constant if it is not the graph's."""
        view = self._added(x, Section.ROW if per_row else Section.SHARED, 0 if per_row else None)
        self.trace.inputs.append(view)
        return view

    def view(self, x: Tensor) -> View:
        """A tensor as a view of a value."""
        place = self._places.get(x.untyped_storage().data_ptr())
        if x.is_neg() or (place is not None and x.dtype is not place[0].dtype):
            raise UnsupportedError("a view of other numbers than those in memory")
        if place is None:
            if x.numel() == 0 or not x.is_contiguous():
                raise UnsupportedError("a constant without elements, or with strides")
            self.trace.constants.append(x)
            return self.input(x, per_row=False)
        return view_of(x, *place, self.trace.rows)

    def _added(self, x: Tensor, section: Section, row: int | None) -> View:
        if x.dtype not in C_TYPES or x.layout is not torch.strided or not x.is_cpu:
            raise UnsupportedError(f"a tensor of {x.dtype}")
        elements = x.numel() if row is None else x.numel() // x.shape[row]
        value = Value(next(self._numbers), x.dtype, elements, section)
        self._kept.append(x)
        self._places[x.untyped_storage().data_ptr()] = value, fresh_index(x, row, elements)
        return self.view(x)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            return self._changed(func, args, kwargs)
        out = func(*args, **kwargs)
        results = [x for x in (out if isinstance(out, list | tuple) else [out]) if isinstance(x, Tensor)]
        if not results and func not in SIZES:
            raise UnsupportedError(f"{func}, which reads a tensor")
        if all(x.untyped_storage().data_ptr() in self._places for x in results) or func in DATA:
            self._kept.extend(results)
            return out
        if func is _aten.flip.default:
            return self._flipped(args[0], args[1], out)
        arguments = {name: self._viewed(x) for name, x in _named(func, args, kwargs).items()}
        if len(results) == 1 and self._record(func, arguments, out):
            return out
        return self._decomposed(func, args, kwargs)

    def _flipped(self, x: Tensor, dims: list[int], out: Tensor) -> Tensor:
        """A view of the value of x with negative strides, which torch does not have."""
        self.view(x)
        value, index = self._places[x.untyped_storage().data_ptr()]
        places = torch.full((out.numel(),), -1)
        flipped = index.as_strided(x.shape, x.stride(), x.storage_offset()).flip(dims)
        places.as_strided(out.shape, out.stride(), 0).copy_(flipped)
        self._kept.append(out)
        self._places[out.untyped_storage().data_ptr()] = value, places
        return out

    def _changed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operator that changes the whole of its first argument, which is not an input: a value takes its place."""
        name, x = func._schema.name.removeprefix("aten::"), args[0]
        other = getattr(getattr(_aten, name.removesuffix("_"), None), func._overloadname, None)
        if other is None or not name.endswith("_"):
            raise UnsupportedError(f"{func}, which changes a tensor")
        view = self.view(x)
        whole = x.numel() * x.element_size() == x.untyped_storage().nbytes()
        if not whole or any(view.value == y.value for y in self.trace.inputs):
            raise UnsupportedError(f"{func}, which changes an input or a part of a tensor")
        arguments = {argument: self._viewed(y) for argument, y in _named(func, args, kwargs).items()}
        func(*args, **kwargs)
        if not self._record(other, arguments, x):
            raise UnsupportedError(str(func))
        return x

    def _decomposed(self, func: Any, args: Any, kwargs: Any) -> Any:
        formula = private.decomposition(func)
        if formula is None:
            raise UnsupportedError(str(func))
        with self:
            return formula(*args, **kwargs)

    def _record(self, func: Any, arguments: dict[str, Any], out: Tensor) -> bool:
        """Record an operator; False: there is no code for it."""
        if func in CONSTANTS:
            number = CONSTANTS[func]
            number = next(arguments[k] for k in ("fill_value", "s") if k in arguments) if number is None else number
            return self._record_constant(func, number, out)
        operands = _views(arguments)
        section = max((x.value.section for x in operands), default=Section.SHARED)
        if section is Section.SUM and any(x.value.section is Section.ROW for x in operands):
            raise UnsupportedError("a row that depends on a sum over rows")
        if section is Section.ROW and func in ROW_SUMS and self._sums_rows(arguments):
            self._add("sum over rows", arguments, out, Section.SUM, None)
            return True
        if section is Section.ROW and func in EXTREMA:
            self._add(f"{EXTREMA[func]} of rows", arguments, out, Section.SUM, None)
            return True
        row = self._row_of(func, arguments, out, operands)
        if row is NotImplemented:
            return False
        if row == "product over rows":
            self._add(row, arguments, out, Section.SUM, None)
            return True
        if func is _aten.pow.Tensor_Scalar and simple_power(func, arguments["exponent"]):
            func = simple_power(func, arguments["exponent"])
        self._add(func, arguments, out, section, row)
        return True

    def _viewed(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self.view(x)
        return [self._viewed(y) for y in x] if isinstance(x, list | tuple) else x

    def _add(self, operator: Any, arguments: Mapping[str, Any], out: Tensor, section: Section, row: int | None) -> None:
        view = self._added(out, section, row)
        self.trace.nodes.append(Node(operator, arguments, view.value, view))

    def _record_constant(self, func: Any, number: Any, out: Tensor) -> bool:
        if out.numel() == 0:
            raise UnsupportedError("a tensor without elements")
        self._kept.append(out)
        value = Value(next(self._numbers), out.dtype, 1, Section.SHARED)
        index = torch.zeros(out.untyped_storage().nbytes() // out.element_size(), dtype=torch.int64)
        self._places[out.untyped_storage().data_ptr()] = value, index
        if isinstance(number, View):
            raise UnsupportedError("a constant from a tensor")
        self.trace.nodes.append(Node(func, {"fill_value": number}, value, View(value, (), (), 0, None)))
        return True

    def _sums_rows(self, arguments: Mapping[str, Any]) -> bool:
        x, dims = arguments["self"], arguments.get("dim")
        dims = range(len(x.shape)) if not dims else [dim % len(x.shape) for dim in dims]
        return x.row in dims

    def _row_of(self, func: Any, arguments: Mapping[str, Any], out: Tensor, operands: Sequence[View]) -> Any:
        """The dimension of rows in a result; NotImplemented: there is no code."""
        if func in ELEMENTWISE or func in CALLS:
            return _aligned_row(operands, out.ndim)
        if func in REDUCTIONS:
            return _row_after_reduction(arguments, out)
        if func is _aten.cat.default:
            rows = {x.row for x in operands}
            if len(rows) != 1 or arguments["dim"] % out.ndim in rows:
                raise UnsupportedError("cat of rows")
            return rows.pop()
        if func in PRODUCTS:
            a, b = (arguments[name] for name in (("self", "mat2") if func is PRODUCTS[0] else ("mat1", "mat2")))
            if a.row == 1 and b.row == 0 and func is PRODUCTS[0]:
                return "product over rows"
            if b.row is not None or a.row == 1:
                raise UnsupportedError("a product with other rows")
            if func is PRODUCTS[1]:
                plain = arguments["beta"] == arguments["alpha"] == 1
                if not plain or _aligned_row([a, arguments["self"]], 2) != 0:
                    raise UnsupportedError("a scaled product")
            return a.row
        return NotImplemented


def _views(arguments: Mapping[str, Any]) -> list[View]:
    flat = [y for x in arguments.values() for y in (x if isinstance(x, list | tuple) else [x])]
    return [x for x in flat if isinstance(x, View)]


def _named(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an operator by their names, with the defaults."""
    named = {}
    for position, argument in enumerate(func._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        named[argument.name] = args[position] if position < len(args) else kwargs.get(argument.name, default)
    return named


def _aligned_row(operands: Sequence[View], ndim: int) -> int | None:
    """The dimension of rows in an elementwise result of operands that are broadcast."""
    rows = {x.row + ndim - len(x.shape) for x in operands if x.row is not None}
    if len(rows) > 1:
        raise UnsupportedError("rows in different dimensions")
    row = rows.pop() if rows else None
    for x in operands:
        dim = None if row is None else row - ndim + len(x.shape)
        if x.row is None and dim is not None and dim >= 0 and x.shape[dim] > 1 and x.strides[dim] != 0:
            raise UnsupportedError("a tensor of other rows")
    return row


def _row_after_reduction(arguments: Mapping[str, Any], out: Tensor) -> int | None:
    x, dims = arguments["self"], arguments.get("dim")
    if arguments.get("ord", 2) != 2 or arguments.get("dtype") is not None:
        raise UnsupportedError("another norm")
    if dims is None or dims == []:
        raise UnsupportedError("a reduction of everything")
    dims = [dim % len(x.shape) for dim in ([dims] if isinstance(dims, int) else dims)]
    if x.row in dims:
        raise UnsupportedError("a reduction over rows")
    if x.row is None or arguments.get("keepdim"):
        return x.row
    return x.row - sum(dim < x.row for dim in dims)


def needed(nodes: Sequence[Node], results: Sequence[View]) -> list[Node]:
    """The operators on which results depend."""
    wanted, kept = {x.value for x in results}, []
    for node in reversed(nodes):
        if node.value in wanted:
            kept.append(node)
            wanted.update(x.value for x in node.operands())
    return kept[::-1]
