"""Velocity models of other libraries as vector fields that are called with a time for each row."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from dise.integrate import Bosh3, Dopri5, Dopri8, Fehlberg2, HeunEuler, Integrator, State, Tsit5
from dise.integrate.clock import real_dtype

ADAPTIVE: Mapping[str, Callable[..., Integrator]] = {
    "dopri5": Dopri5, "dopri8": Dopri8, "tsit5": Tsit5, "bosh3": Bosh3, "fehlberg2": Fehlberg2,
    "adaptive_heun": HeunEuler,
}  # fmt: skip

Call = Callable[..., Any]


class Velocity(nn.Module):
    """f(t, x, *rows) of a velocity model that is called as call(model, x, t, extras).

    Args:
        model: the velocity model; its parameters are the field's if it is a module.
        call: how to call it, with t [n], or [] for one system.
        extras: its further arguments, by name.
        rows: names of those with a row per row of x; their values come as `rows`.
    """

    def __init__(self, model: Any, call: Call, extras: Mapping[str, Any], rows: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.call, self.extras, self.rows = model, call, dict(extras), rows

    def forward(self, t: Tensor, x: Tensor, *rows: Tensor) -> Tensor:
        """dx/dt [n, ...] at times t [n, 1, …, 1] or []."""
        extras = {**self.extras, **dict(zip(self.rows, rows, strict=True))}
        velocity: Tensor = self.call(self.model, x, t.flatten() if t.ndim else t, extras)
        return velocity


def check_points(name: str, x: Any) -> None:
    """Raise a TypeError if x is not a tensor [B, ...] of real numbers."""
    if not isinstance(x, Tensor) or x.ndim == 0 or not x.is_floating_point():
        got = f"{x.dtype} of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: expected a tensor of real numbers [B, ...], got {got}")


def last(states: State) -> State:
    """The last of states [T, ...]."""
    return cast(State, states[-1] if isinstance(states, Tensor) else tuple(x[-1] for x in states))


def by_time(states: Any, *, batched: bool) -> State:
    """Saved states as [T, B, ...]."""
    if not batched:
        return cast(State, states)
    return states.transpose(0, 1) if isinstance(states, Tensor) else tuple(x.transpose(0, 1) for x in states)


@torch.no_grad()
def check_time_per_row(field: Velocity, x: Tensor, t0: Tensor, t1: Tensor, rows: tuple[Tensor, ...]) -> None:
    """Compare two rows at two times with the whole batch at each of these times.

    A model that is written for one time may broadcast several of them over the wrong dimension without an error.

    Raises:
        ValueError: the model has other values at a time per row, or on some rows alone.
    """
    if not len(x) or not x[[0, -1]].isfinite().all():  # the solve reports the latter
        return
    first, second = ((t0 + (t1 - t0) * share).to(real_dtype(x)) for share in (0.3, 0.6))
    two = [0, len(x) - 1]
    some = x[two], *(row[two] for row in rows)
    try:
        together = [field(torch.stack(times), *some) for times in ((first, second), (second, first))]
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise ValueError(f"{ADVICE}; it raised: {error}") from error
    alone = field(first, x, *rows)[two]
    eps = torch.finfo(x.dtype).eps
    scale = alone.abs().max()
    for found, row in ((together[0], 0), (together[1], 1)):
        if found.shape != alone.shape or not torch.allclose(
            found[row], alone[row], rtol=eps**0.5, atol=float(eps**0.5 * scale), equal_nan=True
        ):
            raise ValueError(ADVICE)


ADVICE = (
    "model: expected one that takes a time per row, t [n] with x [n, ...], and treats rows alike whatever stands "
    "beside them, got one with other values for two rows than for the batch at one time; pass batched=False for one "
    "time and one step size for the batch, or put the model in evaluation mode"
)
