"""Classifier-free guidance: a vector field that mixes conditional and unconditional values of a network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dise.integrate.tracing import has_values
from dise.integrate.value import is_number

Rule = Literal["mix", "push"]


@dataclass
class ModelCalls:
    """What a guided field asked of its network; an evaluation of the guided field is one or two model calls.

    Attributes:
        calls: batch calls of the network.
        rows: rows of all these calls. Divided by the number of samples: model calls per sample.
    """

    calls: int = 0
    rows: int = 0


class Guided(nn.Module):
    """A conditional vector field with classifier-free guidance.

    With the values v_c under the condition and v_u under the null condition,

        rule "mix"    v_u + scale · (v_c − v_u)          diffusers, Stable Diffusion: scale 1 is no guidance
        rule "push"   v_c + scale · (v_c − v_u)          flow_matching, F5-TTS: scale 0 is no guidance

    Both values come from one call of f on twice the rows. Where guidance is off, outside its interval, f is called on
    the given rows alone.

    Args:
        f: vector field f(t, y, *conditions), with conditions [n, ...] per sample from `sample_args`.
        scale: of the guidance.
        null: the null condition: one value per condition of f, a number or a tensor of one sample's shape.
        rule: how values are combined.
        interval: times, low and high, within which guidance is on; None: always.

    Guide a velocity, or a `PathField`: mixing predictions and mixing velocities is the same for all of its predictions.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described.

    Sources: Ho, Salimans, Classifier-Free Diffusion Guidance, 2022 (arXiv:2207.12598); Kynkäänniemi et al., Applying
    Guidance in a Limited Interval, 2024 (arXiv:2404.07724).
    """

    def __init__(
        self,
        f: nn.Module,
        scale: float,
        *,
        null: Sequence[float | Tensor],
        rule: Rule = "mix",
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(f, nn.Module):
            raise TypeError(f"f: expected a module, got {type(f).__name__}")
        if not is_number(scale):
            raise TypeError(f"scale: expected a number, got {scale!r}")
        if not isinstance(null, tuple | list) or not null:
            raise TypeError(f"null: expected a tuple with a value per condition of f, got {null!r}")
        if rule not in ("mix", "push"):
            raise ValueError(f"rule: expected 'mix' or 'push', got {rule!r}")
        if interval is not None and not (len(interval) == 2 and interval[0] < interval[1]):
            raise ValueError(f"interval: expected a lower and a higher time, got {interval!r}")
        self.f, self.scale, self.rule, self.interval = f, float(scale), rule, interval
        self.strength = self.scale - (rule == "mix")  # both rules are v_c + strength · (v_c − v_u)
        self.number = len(null)
        for i, value in enumerate(null):
            try:
                self.register_buffer(f"null_{i}", torch.as_tensor(value))
            except (RuntimeError, TypeError, ValueError) as error:
                raise TypeError(f"null: expected a number or a tensor per condition of f, got {value!r}") from error
        self._counts: ModelCalls | None = None

    def forward(self, t: Tensor, y: Tensor, *conditions: Tensor) -> Tensor:
        """dy/dt [n, ...] at times t [n, 1, …, 1] ([] for a whole batch) and states y [n, ...]."""
        if len(conditions) != self.number:
            raise ValueError(
                f"null: expected a value per condition, of which f has {len(conditions)}, got {self.number}"
            )
        rows, strength = self._guided_rows(t, y)
        if self.strength == 0 or (rows is not None and len(rows) == 0):
            return self._call(t, y, conditions)
        chosen = slice(None) if rows is None else rows
        nulls = (getattr(self, f"null_{i}") for i in range(self.number))
        both = [
            torch.cat([condition, _like(condition, null).expand_as(condition[chosen])])
            for condition, null in zip(conditions, nulls, strict=True)
        ]
        times = t if t.ndim == 0 else torch.cat([t, t[chosen]])
        values = self._call(times, torch.cat([y, y[chosen]]), both)
        conditional, unconditional = values[: len(y)], values[len(y) :]
        push = strength * (conditional[chosen] - unconditional)
        return conditional + push if rows is None else conditional.index_add(0, rows, push)

    def _guided_rows(self, t: Tensor, y: Tensor) -> tuple[Tensor | None, float | Tensor]:
        """The rows with guidance, None for all; and its strength, 0 for rows without."""
        if self.interval is None:
            return None, self.strength
        on = (t >= self.interval[0]) & (t <= self.interval[1])
        if torch.compiler.is_compiling() or not has_values(t):
            # the rows cannot be read while a graph is traced: compute both values for all
            return None, self.strength * on
        rows = on.reshape(-1).expand(len(y)).nonzero().flatten()
        return (None if len(rows) == len(y) else rows), self.strength

    def _call(self, t: Tensor, y: Tensor, conditions: Sequence[Tensor]) -> Tensor:
        if self._counts is not None:
            self._counts.calls += 1
            self._counts.rows += len(y)
        return self.f(t, y, *conditions)

    @contextmanager
    def counting(self) -> Iterator[ModelCalls]:
        """A context that counts the calls of f."""
        outer, self._counts = self._counts, ModelCalls()
        try:
            yield self._counts
        finally:
            self._counts = outer

    def extra_repr(self) -> str:
        """Scale, rule and interval, for the printed module."""
        return f"scale={self.scale}, rule={self.rule!r}, interval={self.interval}"


def _like(condition: Tensor, null: Tensor) -> Tensor:
    """A null condition in the condition's dtype.

    Raises:
        ValueError: the dtype does not have the value, such as 0.5 among labels.
    """
    value = null.to(condition)
    whole = null.is_floating_point() and not condition.is_floating_point()
    if whole and has_values(null) and not torch.equal(value.to(null), null):
        raise ValueError(f"null: expected a value of the condition's {condition.dtype}, got {null.tolist()}")
    return value
