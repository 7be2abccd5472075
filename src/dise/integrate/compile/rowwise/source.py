"""C++ source of a trace."""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import torch

from dise.integrate.compile.rowwise.operators import CALLS, CONSTANTS, ELEMENTWISE, MASKS, REDUCTIONS, Call, Elementwise
from dise.integrate.compile.rowwise.trace import PRODUCTS, Node
from dise.integrate.compile.rowwise.values import C_TYPES, Section, UnsupportedError, View, literal

# elements of matrices up to which products cost no more than those of a library
MAX_PRODUCT, MAX_SUMMED_PRODUCT = 2**14, 2**12
MAX_UNROLLED = 4  # elements of a row up to which each has a statement of its own

_aten = torch.ops.aten


class Writer:
    """Writes operators as loops over the elements of a row, in which each element is a vector of several rows."""

    def __init__(self) -> None:
        self.lines: dict[Section, list[str]] = {section: [] for section in Section}
        self.totals: list[str] = []  # sums of a thread
        self.folds: list[str] = []  # into sums of all threads
        self.summed = 0  # bytes of these sums, per row of a block
        self.functions: set[tuple[Call, str]] = set()  # that are used, with their types

    def write(self, node: Node) -> None:
        """An operator."""
        lines, value = self.lines[node.value.section], node.value
        if node.operator in CONSTANTS:
            lines.append(
                f"const {value.c_type} {value.name}[1] = {{{literal(node.arguments['fill_value'], value.c_type)}}};"
            )
            return
        if isinstance(node.operator, str):
            self._write_sum(node)
            return
        lines.append(declaration(node.view))
        if node.operator in PRODUCTS:
            lines.extend(_product(node))
        elif node.operator in CALLS:
            lines.extend(self._call(node, CALLS[node.operator]))
        elif node.operator in REDUCTIONS:
            lines.extend(_reduction(node))
        elif node.operator is _aten.cat.default:
            lines.extend(_cat(node))
        else:
            lines.extend(_elementwise(node))

    def _call(self, node: Node, call: Call) -> Iterator[str]:
        T, names = node.value.c_type, [name for name in ("self", "exponent") if name in node.arguments]
        if T not in ("float", "double"):
            raise UnsupportedError("a function of integers")
        if node.view.row is None:
            plain = f"__builtin_{call.name}{'f' if T == 'float' else ''}"
            for loops, place in _elements(node.view.tail):
                operands = ", ".join(_read(node.arguments[name], node.view, place, T) for name in names)
                yield f"{_for(loops)}{node.value.name}[{_place(node.view, node.view, place)}] = {plain}({operands});"
            return
        self.functions.add((call, T))
        x = node.arguments[names[0]]
        if len(names) == 1 and x.value.c_type == T:
            yield _mapped(call, x, node.view)
            return
        for loops, place in _elements(node.view.tail):
            target = _place(node.view, node.view, place)
            texts = [_read(node.arguments[name], node.view, place, T) for name in names]
            filled = [f"alignas(64) {T} x{k}[1][W]; EACH x{k}[0][w] = {text};" for k, text in enumerate(texts)]
            pointers = ", ".join(f"x{k}, 1" for k in range(len(texts)))
            yield f"{_for(loops)}{{ {' '.join(filled)} map_{call.name}({pointers}, {node.value.name} + {target}, 1); }}"

    def _write_sum(self, node: Node) -> None:
        """Sums over rows: for each block of rows they are added to a vector, and in the end the vector's elements."""
        value, x = node.value, node.arguments["self"]
        if node.operator.endswith("of rows"):
            self._write_extremum(node, node.operator.split()[0])
            return
        total, T = f"total{value.number}", value.c_type
        self.summed += value.count * value.dtype.itemsize
        self.lines[Section.SHARED].append(f"alignas(64) {T} {value.name}[{value.count}] = {{}};")
        self.totals.append(f"alignas(64) {T} {total}[{value.count}][W] = {{}};")
        self.folds.append(f"fold({total}, {value.name});")
        lines = self.lines[Section.ROW]
        if node.operator == "product over rows":
            y = node.arguments["mat2"]
            if value.count > MAX_SUMMED_PRODUCT:
                raise UnsupportedError("a large product over rows")
            lines.append(
                f"product_over_rows<{T}, {x.shape[0]}, {y.shape[1]}>({x.value.name} + {x.offset}, {x.strides[0]}, "
                f"{y.value.name} + {y.offset}, {y.strides[1]}, live, {total});"
            )
            return
        dims = {dim % len(x.shape) for dim in node.arguments.get("dim") or range(len(x.shape))}
        others = [dim for dim in range(len(x.shape)) if dim != x.row]
        kept = [dim for dim in others if dim not in dims]
        for loops, place in _elements(x.tail):
            at = dict(zip(others, place, strict=True))
            target = _affine(0, [(at[dim], prod(x.shape[d] for d in kept if d > dim)) for dim in kept])
            source = _affine(x.offset, [(at[dim], x.strides[dim]) for dim in at])
            added = f"live[w] ? {T}({x.value.name}[{source}][w]) : 0"
            lines.append(f"{_for(loops)}EACH {total}[{target}][w] += {added};")

    def _write_extremum(self, node: Node, function: str) -> None:
        """The largest or smallest element of all rows."""
        value, x = node.value, node.arguments["self"]
        T, name = value.c_type, value.name
        if T not in ("float", "double"):
            raise UnsupportedError("an extremum of integers")
        sign = "-" if function == "larger" else ""
        start, total = f"{{{sign}({T})__builtin_inf()}}", f"total{value.number}"
        self.lines[Section.SHARED].append(f"{T} {name}[1] = {start};")
        self.totals.append(f"{T} {total} = {start};")
        self.folds.append(f"{name}[0] = {function}({total}, {name}[0]);")
        for loops, place in _elements(x.tail):
            element = f"{x.value.name}[{_place(x, x, place)}][w]"
            self.lines[Section.ROW].append(
                f"{_for(loops)}for (int w = 0; w < lanes; w++) {total} = {function}({element}, {total});"
            )


def declaration(view: View) -> str:
    """The variable of a value."""
    value, rows = view.value, "[W]" if view.value.section is Section.ROW else ""
    return f"alignas(64) {value.c_type} {value.name}[{value.count}]{rows};"


def _width(view: View) -> str:
    return "W" if view.row is not None else "1"


def _elements(tail: Sequence[int]) -> Iterator[tuple[list[tuple[str, int]], tuple[Any, ...]]]:
    """Loops, and the indices in them, that visit all elements; a statement for each of a few."""
    if prod(tail) <= MAX_UNROLLED:
        for place in product(*map(range, tail)):
            yield [], place
        return
    names = [f"i{dim}" for dim in range(len(tail))]
    yield list(zip(names, tail, strict=True)), tuple(names)


def _for(loops: Sequence[tuple[str, int]]) -> str:
    return "".join(f"for (int {name} = 0; {name} < {size}; {name}++) " for name, size in loops)


def _affine(offset: int, terms: Sequence[tuple[Any, int]]) -> str:
    constant = offset + sum(place * stride for place, stride in terms if isinstance(place, int))
    parts = [f"{place} * {stride}" for place, stride in terms if not isinstance(place, int) and stride]
    return " + ".join([*parts, str(constant)])


def _place(x: View, result: View, place: Sequence[Any]) -> str:
    """The element of x's value that belongs to an element of the result, with which x is broadcast."""
    it = iter(place)
    at = [None if dim == result.row else next(it) for dim in range(len(result.shape))]
    at = at[len(at) - len(x.shape) :]
    return _affine(x.offset, [(p, x.strides[dim]) for dim, p in enumerate(at) if p is not None and x.shape[dim] > 1])


def _read(x: Any, result: View, place: Sequence[Any], c_type: str | None) -> str:
    """An operand's element as an expression."""
    if not isinstance(x, View):
        return literal(x, c_type or "double")
    text = f"{x.value.name}[{_place(x, result, place)}]" + ("[w]" if x.row is not None else "")
    return text if c_type in (None, x.value.c_type) else f"{c_type}({text})"


def _computed_in(node: Node, operator: Elementwise) -> torch.dtype:
    if not operator.compares:
        return node.value.dtype
    stand_ins = [
        torch.empty([1] * len(x.shape), dtype=x.value.dtype) if isinstance(x, View) else x
        for name in ("self", "other")
        if (x := node.arguments.get(name)) is not None
    ]
    return torch.result_type(*stand_ins) if len(stand_ins) == 2 else stand_ins[0].dtype


def _elementwise(node: Node) -> Iterator[str]:
    operator = node.operator if isinstance(node.operator, Elementwise) else ELEMENTWISE[node.operator]
    dtype, result = _computed_in(node, operator), node.view
    T = C_TYPES.get(dtype)
    if T is None:
        raise UnsupportedError(f"numbers of {dtype}")
    each = "EACH " if result.row is not None else ""
    lane = "[w]" if result.row is not None else ""
    for index, place in _elements(result.tail):
        operands: dict[str, Any] = {}
        for name, x in node.arguments.items():
            if name in operator.plain or x is None:
                operands[name] = x
            elif isinstance(x, View) or (isinstance(x, int | float) and not isinstance(x, bool)) or name == "value":
                operands[name] = _read(x, result, place, None if name in MASKS else T)
        target = f"{node.value.name}[{_place(result, result, place)}]{lane}"
        text = operator.expression(operands)
        yield f"{_for(index)}{{ typedef {T} T; {each}{target} = {text}; }}"


def _mapped(call: Call, x: View, result: View) -> str:
    """A function of the elements of a row, in one call per last dimension."""
    last = max((dim for dim in range(len(result.shape)) if dim != result.row), default=None)
    outer, size, stride = result.tail[:-1], 1, 1
    if last is not None:
        size, stride = result.shape[last], x.strides[last]
    loops = [(f"i{dim}", n) for dim, n in enumerate(outer)]
    place = (*(name for name, _ in loops), 0)[: len(result.tail)]
    source, target = _place(x, result, place), _place(result, result, place)
    source, target = f"{x.value.name} + {source}", f"{result.value.name} + {target}"
    return f"{_for(loops)}map_{call.name}({source}, {stride}, {target}, {size});"


def _reduction(node: Node) -> Iterator[str]:
    start, step, end = REDUCTIONS[node.operator]
    x, T = node.arguments["self"], node.value.c_type
    if T not in ("float", "double") and "T(__builtin_inf" in start:
        raise UnsupportedError("an extremum of integers")
    dims = node.arguments["dim"]
    dims = {dim % len(x.shape) for dim in ([dims] if isinstance(dims, int) else dims)}
    kept = [dim for dim in range(len(x.shape)) if dim not in dims and dim != x.row]
    inner = [(f"j{dim}", x.shape[dim]) for dim in sorted(dims)]
    number = prod(size for _, size in inner)
    result, each, lane = node.view, "", ""
    W = _width(result)
    if result.row is not None:
        each, lane = "EACH ", "[w]"
    for loops, place in _elements([x.shape[dim] for dim in kept]):
        at = dict(zip(kept, place, strict=True)) | {dim: f"j{dim}" for dim in dims}
        source = f"{x.value.name}[{_affine(x.offset, [(at[dim], x.strides[dim]) for dim in at])}]{lane}"
        target = (
            f"{node.value.name}[{_affine(0, [(at[d], prod(x.shape[e] for e in kept if e > d)) for d in kept])}]{lane}"
        )
        total = f"total{lane}" if lane else "total[0]"
        names = {"x": f"T({source})", "total": total, "number": number}
        yield _for(loops) + f"{{ typedef {T} T; {T} total[{W}]; {each or ''}{total} = {start};"
        yield _for(inner) + f"{each}{total} = {step.format(**names)};"
        yield f"{each}{target} = {end.format(**names)}; }}"


def _cat(node: Node) -> Iterator[str]:
    result, dim, before = node.view, node.arguments["dim"] % len(node.view.shape), 0
    each, lane = ("EACH ", "[w]") if result.row is not None else ("", "")
    for x in node.arguments["tensors"]:
        strides = [
            prod(s for d, s in enumerate(result.shape) if d > e and d != result.row) for e in range(len(x.shape))
        ]
        dims = [d for d in range(len(x.shape)) if d != x.row]
        for loops, place in _elements(x.tail):
            at = list(zip(dims, place, strict=True))
            target = _affine(before * strides[dim], [(p, strides[d]) for d, p in at])
            source = _affine(x.offset, [(p, x.strides[d]) for d, p in at])
            yield _for(loops) + f"{each}{node.value.name}[{target}]{lane} = {x.value.name}[{source}]{lane};"
        before += x.shape[dim]


def _product(node: Node) -> Iterator[str]:
    """Rows times a matrix that is the same for all of them."""
    if node.operator is PRODUCTS[0]:
        a, b, c = node.arguments["self"], node.arguments["mat2"], None
    else:
        a, b, c = node.arguments["mat1"], node.arguments["mat2"], node.arguments["self"]
    T = node.value.c_type
    if T not in ("float", "double") or a.row is None or b.value.section is not Section.SHARED:
        raise UnsupportedError("a product of matrices")
    m, k = b.shape[1], b.shape[0]
    if m * k > MAX_PRODUCT:
        raise UnsupportedError("a large matrix")
    added, shared = "nullptr, 0", c is not None and c.row is None and c.value.c_type == T
    if c is not None and shared:
        added = f"{c.value.name} + {c.offset}, {c.strides[-1] if c.shape[-1] > 1 else 0}"
    name = node.value.name
    yield (
        f"product<{T}, {k}, {m}>({a.value.name} + {a.offset}, {a.strides[1]}, {b.value.name} + {b.offset}, "
        f"{b.strides[0]}, {b.strides[1]}, {added}, {name});"
    )
    if c is not None and not shared:
        for loops, place in _elements([m]):
            yield f"{_for(loops)}EACH {name}[{_affine(0, [(place[0], 1)])}][w] += {_read(c, node.view, place, T)};"
