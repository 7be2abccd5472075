"""Tensors of a traced graph: values in memory, and views of them."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

C_TYPES = {torch.float32: "float", torch.float64: "double", torch.int64: "long", torch.int32: "int", torch.bool: "bool"}


class UnsupportedError(Exception):
    """A graph has something for which no code is written here."""


class Section(IntEnum):
    """Where a value is computed."""

    SHARED = 0  # once, before the rows
    ROW = 1  # for each row
    SUM = 2  # once, after the rows: sums over them, and what is made of these


@dataclass(frozen=True)
class Value:
    """Memory of one tensor: `count` elements, per row in `Section.ROW`."""

    number: int
    dtype: torch.dtype
    count: int
    section: Section

    @property
    def name(self) -> str:
        """Its variable."""
        return f"v{self.number}"

    @property
    def c_type(self) -> str:
        """Its type in C++."""
        return C_TYPES[self.dtype]


@dataclass(frozen=True)
class View:
    """A tensor: which elements of a value it has.

    Attributes:
        value: the memory.
        shape: the tensor's.
        strides: per dimension, in elements of the value; 0 in the dimension of the rows.
        offset: of the first element.
        row: the dimension of the rows, if it has one.
    """

    value: Value
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    row: int | None

    @property
    def tail(self) -> tuple[int, ...]:
        """The sizes of the other dimensions."""
        return tuple(size for dim, size in enumerate(self.shape) if dim != self.row)


def fresh_index(x: Tensor, row: int | None, count: int) -> Tensor:
    """For each element of the storage of x: row · count + the position in the row, in the order of the dimensions."""
    index = torch.full((x.untyped_storage().nbytes() // x.element_size(),), -1)
    rows = 1 if row is None else x.shape[row]
    order = torch.arange(rows * count).reshape(rows, *[size for dim, size in enumerate(x.shape) if dim != row])
    order = order[0] if row is None else order.movedim(0, row)
    index.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(order)
    return index


def view_of(x: Tensor, value: Value, index: Tensor, rows: int) -> View:
    """x as a view of the value in whose storage it lies."""
    places = index.as_strided(x.shape, x.stride(), x.storage_offset())
    if places.numel() == 0:
        raise UnsupportedError("a tensor without elements")
    row = None
    if value.section is Section.ROW:
        row, places = _row_dimension(places, value.count, rows)
    first = int(places.flatten()[0])
    strides = [0 if size == 1 else int(places.select(dim, 1).flatten()[0]) - first for dim, size in enumerate(x.shape)]
    if row is not None and strides[row] != 0:
        raise UnsupportedError("a view of other elements in each row")
    expected = torch.full_like(places, first)
    for dim, (size, stride) in enumerate(zip(x.shape, strides, strict=True)):
        shape = [1] * x.ndim
        shape[dim] = size
        expected = expected + (torch.arange(size) * stride).reshape(shape)
    if not torch.equal(expected, places):
        raise UnsupportedError("a view without strides")
    return View(value, tuple(x.shape), tuple(strides), first, row)


def _row_dimension(places: Tensor, count: int, rows: int) -> tuple[int, Tensor]:
    """The dimension along which the row changes, and the positions within the row."""
    which = torch.div(places, count, rounding_mode="floor")
    for dim, size in enumerate(places.shape):
        shape = [1] * places.ndim
        shape[dim] = rows
        if size == rows and bool((which == torch.arange(rows).reshape(shape)).all()):
            return dim, places % count
    raise UnsupportedError("a view of some of the rows, or across rows")


def literal(value: Any, c_type: str) -> str:
    """A Python number in C++."""
    number = float(value)
    if number != number:
        text = '__builtin_nan("")'
    elif number in (float("inf"), float("-inf")):
        text = "__builtin_inf()" if number > 0 else "-__builtin_inf()"
    else:
        text = repr(number) if isinstance(value, float) else f"{int(value)}L"
    return f"(({c_type})({text}))"
