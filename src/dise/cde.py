"""Controlled differential equations, dy = f(t, y) dX(t): a state driven by a path through observations.

    path = dise.cde.linear_path(values)  # or natural_path, hermite_path
    dise.cde.solve(f, y0, path, dise.Dopri5()).y

Source: Kidger, Morrill, Foster, Lyons, Neural Controlled Differential Equations for Irregular Time Series, 2020.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dise.integrate import Integrator, Solution
from dise.integrate import solve as solve_ode
from dise.integrate.value import check_callable


@dataclass(frozen=True, eq=False)
class ControlPath:
    """Paths of B samples through K observations of C channels: a polynomial in t − t_k between two of them.

    Args:
        times: [B, K] increasing times of the observations.
        coefficients: [B, K − 1, D, C] of the powers 0 to D − 1.
        smooth: whether the derivative is continuous; a solve's steps end where it is not.
    """

    times: Tensor
    coefficients: Tensor
    smooth: bool

    def value(self, t: Tensor) -> Tensor:
        """[B, C] X(t) at times t [B, 1]; beyond the ends the first and the last polynomial go on."""
        return _polynomial(self.times, self.coefficients, t)

    def derivative(self, t: Tensor) -> Tensor:
        """[B, C] dX/dt at times t [B, 1]."""
        return _polynomial(self.times, _derived(self.coefficients), t)


def linear_path(values: Tensor, times: Tensor | None = None) -> ControlPath:
    """The path that is linear between observations; its derivative jumps at them.

    Args:
        values: [B, K, C] observations, without NaN; with K ≥ 2.
        times: [K] or [B, K], increasing; default: 0, 1, …, K − 1.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described.
    """
    times, steps = _checked(values, times)
    slopes = values.diff(dim=1) / steps
    return ControlPath(times, torch.stack([values[:, :-1], slopes], 2), smooth=False)


def hermite_path(values: Tensor, times: Tensor | None = None) -> ControlPath:
    """The cubic Hermite path whose derivative at an observation is the slope of the line from the one before.

    It can be followed while observations come in. Arguments and errors as in `linear_path`.

    Source: Morrill, Kidger, Yang, Lyons, Neural Controlled Differential Equations for Online Prediction Tasks, 2021.
    """
    times, steps = _checked(values, times)
    slopes = values.diff(dim=1) / steps
    return ControlPath(times, _cubic(values, torch.cat([slopes[:, :1], slopes], 1), steps), smooth=True)


def natural_path(values: Tensor, times: Tensor | None = None) -> ControlPath:
    """The natural cubic spline, with two continuous derivatives. Arguments and errors as in `linear_path`."""
    times, steps = _checked(values, times)
    inverse = steps[..., 0].reciprocal()
    slopes = 3 * values.diff(dim=1) * inverse[..., None] ** 2
    pad = torch.nn.functional.pad
    diagonal = 2 * (pad(inverse, (0, 1)) + pad(inverse, (1, 0)))
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(inverse, 1) + torch.diag_embed(inverse, -1)
    sides = pad(slopes, (0, 0, 0, 1)) + pad(slopes, (0, 0, 1, 0))
    return ControlPath(times, _cubic(values, torch.linalg.solve(matrix, sides), steps), smooth=True)


def solve(
    f: Callable[..., Tensor],
    y0: Tensor,
    path: ControlPath,
    integrator: Integrator,
    *,
    t0: float | Tensor | None = None,
    t1: float | Tensor | None = None,
    args: Sequence[Any] = (),
    sample_args: Sequence[Tensor] = (),
    **options: Any,
) -> Solution:
    """Solve dy = f(t, y) dX(t), y(t0) = y0, for every sample along its own path and over its own span.

    Args:
        f: called as f(t, y, *args, *sample_args) with t [n, 1] and y [n, H]; returns [n, H, C].
        y0: [B, H].
        path: X, with B samples and C channels.
        integrator: see `dise.solve`. Where the derivative of the path jumps, steps end (`jump_at`).
        t0, t1: start and end, numbers or [B]; default: the path's first and last times.
        args, sample_args, options: see `dise.solve`.

    Raises:
        TypeError, ValueError, SolveError: see `dise.solve`; also if path has not as many samples as y0.
    """
    if not isinstance(path, ControlPath):
        raise TypeError(f"path: expected what dise.cde.linear_path and its like return, got {type(path).__name__}")
    if not isinstance(y0, Tensor) or y0.ndim != 2 or len(y0) != len(path.times):
        got = tuple(y0.shape) if isinstance(y0, Tensor) else type(y0).__name__
        raise ValueError(f"y0: expected a tensor [B, H] with B={len(path.times)} as the path has, got {got}")
    check_callable("f", f)
    given = len(args) + len(sample_args)
    if not path.smooth:
        options.setdefault("jump_at", path.times)

    def field(t: Tensor, y: Tensor, *further: Any) -> Tensor:
        value = f(t, y, *further[:given])
        times, derived = further[given:]
        change = _polynomial(times, derived, t)
        if value.shape != (*y.shape, change.shape[1]):
            raise ValueError(f"f: expected shape {(*y.shape, change.shape[1])}, [n, H, C], got {tuple(value.shape)}")
        return (value @ change.to(value.dtype)[..., None])[..., 0]

    return solve_ode(
        field,
        y0,
        path.times[:, 0] if t0 is None else t0,
        path.times[:, -1] if t1 is None else t1,
        integrator,
        args=args,
        sample_args=(*sample_args, path.times, _derived(path.coefficients)),
        **options,
    )


def _checked(values: Tensor, times: Tensor | None) -> tuple[Tensor, Tensor]:
    """[B, K] times, and the differences [B, K − 1, 1] between them in the dtype of the values."""
    if not isinstance(values, Tensor) or values.ndim != 3 or values.shape[1] < 2 or not values.is_floating_point():
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"values: expected real observations [B, K, C] with K ≥ 2, got {got}")
    if not bool(values.isfinite().all()):
        raise ValueError("values: expected finite observations; fill missing ones first")
    number, length = values.shape[:2]
    times = torch.arange(length, dtype=values.dtype, device=values.device) if times is None else times
    if not isinstance(times, Tensor) or times.shape not in ((length,), (number, length)):
        got = tuple(times.shape) if isinstance(times, Tensor) else type(times).__name__
        raise ValueError(f"times: expected a tensor of shape ({length},) or ({number}, {length}), got {got}")
    steps = times.diff()
    if not bool((steps > 0).all()):
        raise ValueError("times: expected increasing times")
    return times.expand(number, length), steps.to(values).expand(number, length - 1)[..., None]


def _cubic(values: Tensor, slopes: Tensor, steps: Tensor) -> Tensor:
    """[B, K − 1, 4, C] coefficients of the cubics with these values and slopes [B, K, C] at the observations."""
    mean = values.diff(dim=1) / steps
    start, end = slopes[:, :-1], slopes[:, 1:]
    return torch.stack(
        [values[:, :-1], start, (3 * mean - 2 * start - end) / steps, (start + end - 2 * mean) / steps**2], 2
    )


def _derived(coefficients: Tensor) -> Tensor:
    """[B, K − 1, D − 1, C] coefficients of the derivative."""
    powers = torch.arange(1, coefficients.shape[2], dtype=coefficients.dtype, device=coefficients.device)
    return coefficients[:, :, 1:] * powers[:, None]


def _polynomial(times: Tensor, coefficients: Tensor, t: Tensor) -> Tensor:
    """[n, C] values at t [n, 1] of the polynomials of n samples; at an observation those of the piece after it."""
    times = times.to(t.dtype)
    piece = torch.searchsorted(times[:, 1:-1].contiguous(), t.detach().contiguous(), right=True)[:, 0]
    rows = torch.arange(len(times), device=times.device)
    since = (t[:, 0] - times[rows, piece]).to(coefficients.dtype)[:, None]
    total, *lower = coefficients[rows, piece].flip(1).unbind(1)
    for coefficient in lower:
        total = coefficient + since * total
    return total
