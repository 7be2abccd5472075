"""Functions of time and state that users pass beside f: what to save, events, changes of state."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dise.integrate.problem.field import note_call
from dise.integrate.problem.state import Layout

Values = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


class FunctionCaller(NamedTuple):
    """Calls functions (t, y, *args, *sample_args) for some samples of a solve.

    Args:
        layout: of the state.
        args, sample_args: f's further arguments, of the whole batch.
    """

    layout: Layout
    args: tuple[Any, ...]
    sample_args: tuple[Tensor, ...]

    def __call__(self, function: Callable[..., Any], sample: Tensor, t: Tensor, y: Tensor) -> Any:
        """The function's value for the samples [n], which may repeat, at times [n] and states [n, F].

        With batched=False the n calls are made one by one, and their values are a list.
        """
        try:
            return self._called(function, sample, t, y)
        except Exception as error:
            note_call(error, "the function of event or save", t, y, self.layout, f"{len(t)} samples")
            raise

    def _called(self, function: Callable[..., Any], sample: Tensor, t: Tensor, y: Tensor) -> Any:
        if self.layout.batched:
            rows = tuple(arg[sample] for arg in self.sample_args)
            return function(self.layout.time(t), self.layout.unpack(y), *self.args, *rows)
        return [
            function(self.layout.time(time), self.layout.unpack(state), *self.args, *self.sample_args)
            for time, state in zip(t.split(1), y.split(1), strict=True)
        ]

    def values(self, name: str, function: Callable[..., Values], sample: Tensor, t: Tensor, y: Tensor) -> Values:
        """As a call, with values [n, ...] stacked if the layout has no batch.

        Args:
            name: of the function, for error messages.

        Raises:
            TypeError, ValueError: it returned something else than tensors [n, ...], or a tuple or dict of them.
        """
        value = self(function, sample, t, y)
        if not self.layout.batched:
            value = _joined(name, value)
        parts = _parts(value)
        if parts is None:
            raise TypeError(
                f"{name}: expected a tensor, or a tuple or dict of tensors, from its function, got "
                f"{type(value).__name__}"
            )
        for part in parts:
            if part.ndim == 0 or len(part) != len(t):
                got = tuple(part.shape)
                raise ValueError(
                    f"{name}: expected tensors [n, ...] from its function, with n={len(t)} here, got {got}"
                )
        return cast(Values, value)


def rebuilt(like: Values, parts: list[Tensor]) -> Values:
    """Tensors in the structure of other values."""
    if isinstance(like, dict):
        return dict(zip(like, parts, strict=True))
    return tuple(parts) if isinstance(like, tuple) else parts[0]


def _joined(name: str, values: list[Any]) -> Any:
    columns = [_parts(value) for value in values]
    if any(column is None for column in columns):
        return values[0]
    return rebuilt(values[0], [torch.stack(parts) for parts in zip(*columns, strict=True)])


def _parts(value: Any) -> tuple[Tensor, ...] | None:
    """The tensors of a function's value; None if it is something else."""
    parts = tuple(value.values()) if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
    return parts if all(isinstance(part, Tensor) for part in parts) else None
