"""Error tests: tolerances, norms, and the scaled error that step-size control compares with 1."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from dise.integrate.problem.state import Layout, State, leaves
from dise.integrate.runge_kutta.step import Step
from dise.integrate.value import is_number, plain

Norm = Callable[[State], Tensor]
Tolerance = Any  # a number, numbers that broadcast to a sample's state, or one of these per tensor


def rms_norm(error: State) -> Tensor:
    """[n] root mean square over all features [n, ...]; the largest over the tensors of a tuple or dict."""
    return _largest([torch.linalg.vector_norm(row, dim=1) / row.shape[1] ** 0.5 for row in _rows(error)])


def max_norm(error: State) -> Tensor:
    """[n] maximum over all features [n, ...]: every component meets the tolerance."""
    return _largest([row.amax(1) for row in _rows(error)])


def _rows(error: State) -> list[Tensor]:
    return [leaf.abs()[:, None].flatten(1) for leaf in leaves(error) if leaf.numel()]


def _largest(norms: list[Tensor]) -> Tensor:
    return torch.stack(norms).amax(0)


@dataclass(frozen=True)
class ErrorTest:
    """The scaled error estimate: norm(err / (atol + rtol·max(|y|, |y_next|))), at most 1 for an accepted step.

    Source: Hairer, Nørsett, Wanner, II.4, Eq. 4.10 and 4.11.
    """

    rtol: Tolerance  # of the form that `frozen` returns
    atol: Tolerance
    norm: Norm
    # derived from the fields above, and stored because every step reads it: whether both tolerances are numbers, and
    # atol no smaller than a number of float32 that is not subnormal
    plain: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        numbers = is_number(self.rtol) and is_number(self.atol)
        object.__setattr__(self, "plain", numbers and self.atol >= torch.finfo(torch.float32).tiny)

    def scale(self, size: Tensor, layout: Layout) -> Tensor:
        """[n, F] atol + rtol·size of magnitudes [n, F]."""
        if is_number(self.rtol) and not torch.compiler.is_compiling():  # one operation
            return torch.add(_tensor("atol", self.atol, layout, size), size, alpha=self.rtol)
        return spread("atol", self.atol, layout, size) + size * spread("rtol", self.rtol, layout, size)

    def size(self, scaled: Tensor, layout: Layout) -> Tensor:
        """[n] the norm of a state or an error [n, F] in units of the scale."""
        if self.norm is rms_norm:
            return layout.norm(scaled)  # equal, but on the solver's layout
        value = self.norm(layout.shaped(scaled.abs()))
        if isinstance(value, Tensor) and value.shape == scaled.shape[:1] and value.is_floating_point():
            return value.to(scaled.real.dtype)
        got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"norm: expected one real number per sample, shape {tuple(scaled.shape[:1])}, got {got}")

    def ratio(self, step: Step, error: Tensor, layout: Layout) -> Tensor:
        """[n] a step's error estimate [n, F], scaled."""
        size = torch.maximum(step.y.abs(), step.y_next.abs())
        if self.plain and self.norm is rms_norm and len(layout.sizes) == 1 and not torch.compiler.is_compiling():
            # scaled by the root of F too, the norm of the quotient is its root mean square
            root = max(size.shape[1], 1) ** 0.5
            scale = torch.add(_number(root * self.atol, size.dtype), size, alpha=root * self.rtol)
            return cast(Tensor, torch.linalg.vector_norm(error / scale, dim=1))
        scale = self.scale(size, layout)
        tiny = torch.finfo(scale.dtype).tiny
        if not (is_number(self.atol) and self.atol >= tiny):
            scale = scale.clamp(min=tiny)  # a component that stays 0 has error 0 even where atol is 0
        return self.size(error / scale, layout)


def frozen(name: str, value: object) -> Tolerance:
    """A tolerance that can be compared, hashed and printed: tensors become tuples, dicts tuples of pairs.

    Raises:
        ValueError: not finite numbers of at least 0, or a tensor that requires a gradient.
    """
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(f"{name}: a tolerance has no gradient, so it must not require one")
        readable = value.layout is torch.strided and not value.is_meta and not value.dtype.is_complex
        value = value.tolist() if readable else value
    value = plain(value)
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), frozen(name, part)) for key, part in value.items()))
    if isinstance(value, tuple | list):
        return tuple(part if isinstance(part, str) else frozen(name, part) for part in value)
    if isinstance(value, int | float) and is_number(value) and 0 <= value < float("inf"):
        return value
    raise ValueError(f"{name}: expected a finite number of at least 0, or a tensor of them, got {value!r}")


def check_tolerances(rtol: Tolerance, atol: Tolerance) -> None:
    """Raise a ValueError if both are 0 everywhere."""
    if not _any(rtol) and not _any(atol):
        raise ValueError("rtol, atol: at least one must be positive, got 0 and 0")


def _any(value: Tolerance) -> bool:
    return any(_any(part) for part in value) if isinstance(value, tuple) else not isinstance(value, str) and value > 0


def spread(name: str, value: Tolerance, layout: Layout, like: Tensor) -> float | Tensor:
    """A tolerance on the solver's layout: a number or [F]."""
    return value if is_number(value) else _tensor(name, value, layout, like)


def _tensor(name: str, value: Tolerance, layout: Layout, like: Tensor) -> Tensor:
    """A tolerance on the solver's layout, [] or [F]."""
    return _number(value, like.dtype) if is_number(value) else _spread(name, value, layout, like.dtype, like.device)


@lru_cache(maxsize=64)  # every step needs it
def _number(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor [], on the host, where tensors of any device can be combined with it."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in later training
        return torch.tensor(value, dtype=dtype)


def each(name: str, value: Tolerance, layout: Layout) -> tuple[Tolerance, ...]:
    """A tolerance for each of the state's tensors.

    Raises:
        ValueError: its structure is not that of the state.
    """
    if is_number(value):
        return (value,) * len(layout.shapes)
    if layout.names is not None:
        pairs = all(isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], str) for part in value)
        named = dict(value) if pairs else {}
        if named.keys() != set(layout.names):
            raise ValueError(f"{name}: expected a number or a dict with the state's keys {layout.names}, got {value}")
        return tuple(named[key] for key in layout.names)
    if layout.is_tuple:
        if len(value) != len(layout.shapes):
            raise ValueError(f"{name}: expected one for each of the state's {len(layout.shapes)} tensors, got {value}")
        return tuple(value)
    return (value,)


@lru_cache(maxsize=64)  # every step needs it, and the tensor may have to be copied to a device
def _spread(name: str, value: Tolerance, layout: Layout, dtype: torch.dtype, device: torch.device) -> Tensor:
    parts = each(name, value, layout)
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in later training
        return torch.cat([_column(name, *pair, dtype) for pair in zip(parts, layout.shapes, strict=True)]).to(device)


def _column(name: str, value: Tolerance, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    try:
        return torch.tensor(value, dtype=dtype).expand(shape).reshape(-1)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name}: expected numbers that broadcast to {tuple(shape)}, got {value}") from error
