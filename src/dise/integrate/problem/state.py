"""States: the user's tensors, and the single [n, F] tensor that the solver works on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dise.integrate.clock import real_dtype

State = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


def leaves(state: State) -> tuple[Tensor, ...]:
    """A state's tensors."""
    if isinstance(state, Tensor):
        return (state,)
    return tuple(state.values()) if isinstance(state, dict) else state


def mapped(function: Callable[[Tensor], Tensor], state: State) -> State:
    """A state of the function's values for the state's tensors."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        return {name: function(x) for name, x in state.items()}
    return tuple(function(x) for x in state)


@dataclass(frozen=True)
class Layout:
    """Mapping between the user's state and the solver's [n, F] tensor.

    A batch of B samples is n = B rows. With batched=False the whole state is one system: n = 1.

    States in half precision are summed in float32, because dt·k soon falls below the resolution of y; f receives and
    returns the state's own dtype.
    """

    shapes: tuple[torch.Size, ...]  # shape of each tensor, without the batch dimension if batched
    is_tuple: bool
    batched: bool
    names: tuple[str, ...] | None = None  # keys of a dict
    dtype: torch.dtype = torch.float32  # of the user's state
    # derived from the fields above, and stored because every evaluation of f reads them
    sizes: tuple[int, ...] = field(init=False, compare=False)  # number of features of each tensor
    working_dtype: torch.dtype = field(init=False, compare=False)  # of the solver's tensor
    time_dtype: torch.dtype = field(init=False, compare=False)  # of the times that f receives
    single: bool = field(init=False, compare=False)  # whether the user's state is one tensor [n, ...]
    plain: bool = field(init=False, compare=False)  # whether it is [n, F] already
    time_shape: tuple[int, ...] = field(init=False, compare=False)  # of the times that f receives, -1 for n

    def __post_init__(self) -> None:
        half = self.dtype in (torch.float16, torch.bfloat16)
        single = not self.is_tuple and self.names is None and self.batched
        object.__setattr__(self, "sizes", tuple(shape.numel() for shape in self.shapes))
        object.__setattr__(self, "working_dtype", torch.float32 if half else self.dtype)
        object.__setattr__(self, "time_dtype", real_dtype(self.dtype))
        object.__setattr__(self, "single", single)
        object.__setattr__(self, "plain", single and len(self.shapes[0]) == 1)
        object.__setattr__(self, "time_shape", (-1, *(1 for _ in self.shapes[0])) if self.batched else ())

    @property
    def first(self) -> "Layout":
        """That of a state of the first tensor alone."""
        return Layout(self.shapes[:1], False, self.batched, None, self.dtype)

    @property
    def last(self) -> "Layout":
        """That of a state of the last tensor alone."""
        return Layout(self.shapes[-1:], False, self.batched, None, self.dtype)

    @classmethod
    def of(cls, y: State, *, batched: bool) -> "Layout":
        """Layout of a state whose tensors are [B, ...]."""
        if isinstance(y, Tensor) and not torch.compiler.is_compiling():
            try:
                return _layout_of_tensor(y.shape[1:] if batched else y.shape, batched, y.dtype)
            except TypeError:  # sizes of a traced tensor cannot be hashed
                pass
        parts = leaves(y)
        shapes = tuple(leaf.shape[1:] if batched else leaf.shape for leaf in parts)
        return cls(shapes, isinstance(y, tuple), batched, tuple(y) if isinstance(y, dict) else None, parts[0].dtype)

    def pack(self, y: State) -> Tensor:
        """User's state → [n, F], in the working dtype."""
        if self.single and isinstance(y, Tensor):
            rows = y if self.plain else y.reshape(y.shape[0], self.sizes[0])
            return rows if y.dtype is self.working_dtype else rows.to(self.working_dtype)
        parts = tuple(y[name] for name in self.names) if isinstance(y, dict) and self.names else leaves(y)
        columns = [
            leaf.reshape(leaf.shape[0] if self.batched else 1, size)
            for leaf, size in zip(parts, self.sizes, strict=True)
        ]
        return (columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)).to(self.working_dtype)

    def unpack(self, y: Tensor) -> State:
        """[n, F] → user's state of n samples."""
        y = y if y.dtype is self.dtype else y.to(self.dtype)
        if self.single:
            return y if self.plain else y.reshape(y.shape[0], *self.shapes[0])
        return self._structured(y, y.shape[:1] if self.batched else ())

    def unpack_saved(self, y: Tensor) -> State:
        """[n, T, F] → user's state of n samples at T times: [n, T, ...]; [T, ...] if not batched."""
        return self._structured(y.to(self.dtype), tuple(y.shape[:2] if self.batched else y.shape[1:2]))

    def shaped(self, x: Tensor) -> State:
        """[n, F] of any dtype → the state's structure and shapes, [n, ...] always: [1, ...] if not batched."""
        return self._structured(x, x.shape[:1])

    def _structured(self, x: Tensor, batch: tuple[int, ...]) -> State:
        parts = x.split(self.sizes, dim=-1) if len(self.sizes) > 1 else (x,)
        shaped = tuple(part.reshape((*batch, *shape)) for part, shape in zip(parts, self.shapes, strict=True))
        if self.names is not None:
            return dict(zip(self.names, shaped, strict=True))
        return shaped if self.is_tuple else shaped[0]

    def time(self, t: Tensor) -> Tensor:
        """[n] → [n, 1, …, 1] with a 1 per feature dimension of the (first) tensor, [] if not batched; in f's dtype."""
        t = t if t.dtype is self.time_dtype else t.to(self.time_dtype)
        return t.unsqueeze(1) if self.plain else t.reshape(self.time_shape)

    def norm(self, x: Tensor) -> Tensor:
        """[n, F] → [n] root mean square of moduli over features; the largest over the tensors of a tuple or dict."""
        if len(self.sizes) == 1:
            return _root_mean_square(x)
        return torch.stack([_root_mean_square(part) for part in x.split(self.sizes, dim=1)]).amax(0)


@lru_cache(maxsize=256)  # every solve of a block needs one, in less time than an evaluation of f on one sample
def _layout_of_tensor(shape: torch.Size, batched: bool, dtype: torch.dtype) -> Layout:
    return Layout((shape,), False, batched, None, dtype)


def _root_mean_square(x: Tensor) -> Tensor:
    """[n, F] → [n]. vector_norm has gradient 0 at 0, sqrt(mean(x²)) has NaN."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=1) / max(x.shape[1], 1) ** 0.5
    return norm


def same_structure(value: Any, state: Any) -> bool:
    """Whether a value has the structure of a state, with tensors of the same shapes."""
    if isinstance(state, Tensor):
        return isinstance(value, Tensor) and value.shape == state.shape
    if type(value) is not type(state) or len(value) != len(state):
        return False
    if isinstance(state, dict):
        return all(name in value and same_structure(value[name], part) for name, part in state.items())
    return all(same_structure(one, part) for one, part in zip(value, state, strict=True))


def shapes(value: object) -> object:
    """Shapes of a state's tensors, for error messages; the type's name of anything else."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, tuple):
        return [shapes(part) for part in value]
    if isinstance(value, dict):
        return {name: shapes(part) for name, part in value.items()}
    return type(value).__name__
