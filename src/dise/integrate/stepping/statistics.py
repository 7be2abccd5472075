"""Running statistics of the accepted steps: sums or extrema of a function of a step, without keeping the steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dise.integrate.clock import real_dtype
from dise.integrate.problem.field import BoundField
from dise.integrate.runge_kutta.step import Step
from dise.integrate.tracing import replaced

REDUCTIONS = {"sum": 0.0, "max": -torch.inf, "min": torch.inf}  # and the value of each without a step
REDUCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}


@dataclass(frozen=True)
class Statistic:
    """A statistic of the accepted steps of each sample, for `solve`'s `accumulate`.

    Args:
        function: of an attempted `Step` of n samples → real numbers [n, ...] (n = 1 with batched=False). It is also
            called with a step of length 0 at the start, for the shape. With an attribute `calls_field = True` it is
            called as function(step, field), where field(t [n], y [n, F]) → dy/dt is f in the solver's layout; these
            evaluations of f are not in the solution's `nfe`.
        reduce: "sum", "max" or "min" over the accepted steps.

    Raises:
        TypeError: function cannot be called.
        ValueError: another way to reduce.
    """

    function: Callable[..., Tensor]
    reduce: Literal["sum", "max", "min"] = "sum"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"accumulate: expected a function of a step, got {type(self.function).__name__}")
        if self.reduce not in REDUCTIONS:
            raise ValueError(f"reduce: expected 'sum', 'max' or 'min', got {self.reduce!r}")


StepFunction = Callable[..., Tensor]
Accumulate = StepFunction | Statistic | Mapping[str, StepFunction | Statistic]


class Accumulators:
    """The statistics of one solve, as columns of one tensor: [n, A], or [n] for a function of a step → [n].

    Args:
        accumulate: see `dise.solve`.
    """

    def __init__(self, accumulate: Accumulate) -> None:
        self._names = tuple(accumulate) if isinstance(accumulate, Mapping) else None
        parts: list[Any] = list(accumulate.values()) if isinstance(accumulate, Mapping) else [accumulate]
        self._plain = not isinstance(accumulate, Statistic | Mapping)
        self.parts = tuple(part if isinstance(part, Statistic) else Statistic(part) for part in parts)
        self.calls_field = any(getattr(part.function, "calls_field", False) for part in self.parts)
        self._shapes: tuple[torch.Size, ...] = ()

    def start(self, step: Step, field: BoundField | None) -> Tensor:
        """The columns before the first step; `step` has length 0 and is there."""
        if self._plain:
            return torch.zeros_like(step.t, dtype=real_dtype(step.y))
        with torch.no_grad():
            values = self._values(step, field)
        self._shapes = tuple(value.shape[1:] for value in values)
        blanks = zip(values, self.parts, strict=True)
        return torch.cat([torch.full_like(_flat(value), REDUCTIONS[part.reduce]) for value, part in blanks], 1)

    def after(self, columns: Tensor, step: Step, field: BoundField | None) -> Tensor:
        """The columns after a step, as if it were accepted for all samples."""
        values = self._values(step, field)
        if self._plain:
            return columns + values[0]
        flat = [_flat(value) for value in values]
        before = columns.split([value.shape[1] for value in flat], dim=1)
        pairs = zip(self.parts, before, flat, strict=True)
        return torch.cat([REDUCE[part.reduce](old, new) for part, old, new in pairs], 1)

    def result(self, columns: Tensor, *, batched: bool) -> Any:
        """The columns as `Solution.accumulated`."""
        if self._plain:
            return columns if batched else columns[0]
        parts = columns.split([shape.numel() for shape in self._shapes], dim=1)
        shaped = [
            part.unflatten(1, shape) if shape else part[:, 0] for part, shape in zip(parts, self._shapes, strict=True)
        ]
        shaped = shaped if batched else [part[0] for part in shaped]
        return shaped[0] if self._names is None else dict(zip(self._names, shaped, strict=True))

    def _values(self, step: Step, field: BoundField | None) -> list[Tensor]:
        """The functions' values for a step, whose times they receive in y's real dtype.

        Raises:
            ValueError: one is no tensor of real numbers with a row, or a number, per sample.
        """
        dtype = real_dtype(step.y)
        step = replaced(step, t=step.t.to(dtype), dt=step.dt.to(dtype))
        number, values = step.t.shape[0], []
        for part in self.parts:
            further = (field,) if getattr(part.function, "calls_field", False) else ()
            value: object = part.function(step, *further)
            right = isinstance(value, Tensor) and not value.is_complex() and value.shape[:1] == (number,)
            if not isinstance(value, Tensor) or not right or (self._plain and value.ndim != 1):
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                expected = f"({number},), one value per sample" if self._plain else f"({number}, ...), of real numbers"
                raise ValueError(f"accumulate: expected a tensor of shape {expected}, got {got}")
            values.append(value.to(dtype))
        return values


def _flat(value: Tensor) -> Tensor:
    """[n, A] from [n, ...]."""
    return value.reshape(value.shape[0], -1)
