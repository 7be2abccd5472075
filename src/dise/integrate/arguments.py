"""Checks of the user's arguments: errors name the argument, what came and what was expected."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dise.integrate.clock import clock_dtype, given_dtype, is_exact
from dise.integrate.problem.breaks import Breaks
from dise.integrate.problem.state import Layout, shapes
from dise.integrate.tracing import has_values
from dise.integrate.value import check_whole, is_number

_STATE_DTYPES = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64}
)


def check_options(flags: Mapping[str, object], functions: Mapping[str, object]) -> None:
    """Raise a TypeError unless flags are bool and functions can be called or, except for f, are None."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name}: expected True or False, got {flag!r}")
    for name, function in functions.items():
        if not callable(function) and (function is not None or name == "f"):
            described = "a function of (t, y)" if name == "f" else "a function"
            raise TypeError(f"{name}: expected {described}, got {type(function).__name__}")


def as_sequence(name: str, values: object) -> tuple[Any, ...]:
    """A tuple or list of f's further arguments. A tensor is refused: its rows would become the arguments."""
    if not isinstance(values, tuple | list):
        raise TypeError(f"{name}: expected a tuple or list of f's further arguments, got {type(values).__name__}")
    return tuple(values)


def check_state(name: str, state: object, *, batched: bool) -> None:
    """Raise a TypeError or ValueError unless it is a state: floating-point tensors of one dtype, device and B."""
    if (
        isinstance(state, Tensor)
        and state.dtype in _STATE_DTYPES
        and state.layout is torch.strided
        and not state.is_meta
        and (state.ndim or not batched)
    ):
        return
    parts = tuple(state.values()) if isinstance(state, dict) else state if isinstance(state, tuple) else (state,)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(f"{name}: expected a tensor, or a tuple or dict of tensors, got {shapes(state)}")
    if isinstance(state, dict) and not all(isinstance(key, str) for key in state):
        raise TypeError(f"{name}: expected a dict whose keys are strings, got {list(state)}")
    first = parts[0]
    if all(part.is_meta for part in parts):
        raise TypeError(f"{name}: expected tensors with data, got device meta")
    for part in parts:
        if not (part.is_floating_point() or part.is_complex()) or part.dtype.itemsize < 2:
            raise TypeError(f"{name}: expected a floating-point or complex dtype, got {part.dtype}")
        if part.layout is not torch.strided:
            raise TypeError(f"{name}: expected dense tensors, got layout {part.layout}; take y.to_dense()")
        if (part.dtype, part.device) != (first.dtype, first.device):
            raise TypeError(
                f"{name}: expected tensors of one dtype and device, got "
                f"{first.dtype} on {first.device} and {part.dtype} on {part.device}"
            )
        if batched and (part.ndim == 0 or first.ndim == 0 or part.shape[0] != first.shape[0]):
            raise ValueError(
                f"{name}: expected tensors [B, ...] with the same number of samples B first (batched=False takes "
                f"any shape), got {shapes(state)}"
            )


def check_sample_args(sample_args: Sequence[Tensor], y0: Tensor, *, batched: bool) -> tuple[Tensor, ...]:
    """sample_args, each [B, ...] like the packed state y0 [n, F].

    Raises:
        TypeError, ValueError: not tensors of B rows on y0's device.
    """
    for i, arg in enumerate(as_sequence("sample_args", sample_args)):
        if not isinstance(arg, Tensor) or (batched and (arg.ndim == 0 or arg.shape[0] != y0.shape[0])):
            raise ValueError(f"sample_args[{i}]: expected a tensor [B, ...] with B={y0.shape[0]}, got {shapes(arg)}")
        if arg.device != y0.device:
            raise TypeError(f"sample_args[{i}]: expected a tensor on {y0.device} like y0, got it on {arg.device}")
    return tuple(sample_args)


def check_time(name: str, t: object) -> None:
    """Raise a TypeError or ValueError unless it is a real number or a tensor of them."""
    if isinstance(t, Tensor):
        if t.dtype.is_complex or t.dtype == torch.bool:
            raise TypeError(f"{name}: expected real times, got {t.dtype}")
    elif not isinstance(t, int | float) or not is_number(t):
        raise TypeError(f"{name}: expected a number or a tensor, got {type(t).__name__}")
    elif math.isnan(t):
        raise ValueError(f"{name}: expected finite times, got {t}")


def as_times(name: str, t: float | Tensor, y0: Tensor, *, batched: bool, endless: bool = False) -> Tensor:
    """[n] times in the clock's dtype, on the device of the packed state y0 [n, F].

    Raises:
        TypeError, ValueError: not real times, one or n of them; or infinite ones, unless `endless`.
    """
    check_time(name, t)
    if isinstance(t, Tensor) and t.is_meta:
        raise TypeError(f"{name}: expected times with data, got device meta")
    if not isinstance(t, Tensor):
        if not (endless or math.isfinite(t)):
            raise ValueError(f"{name}: expected finite times, got {t}")
        return torch.full(y0.shape[:1], t, dtype=clock_dtype(y0.device), device=y0.device)
    time = t.to(y0.device, clock_dtype(y0.device))
    if time.ndim > 0 and (not batched or time.shape != y0.shape[:1]):
        expected = (
            f"a number or a tensor of shape ({y0.shape[0]},)" if batched else "a number (batched=False has one time)"
        )
        raise ValueError(f"{name}: expected {expected}, got shape {tuple(time.shape)}")
    if has_values(t) and not (~time.isnan() if endless else time.isfinite()).all():
        raise ValueError(f"{name}: expected finite times, got {t}")
    return time.expand(y0.shape[0])


def _exact_dtype(t: float | Tensor) -> torch.dtype:
    return t.dtype if isinstance(t, Tensor) else torch.int64 if isinstance(t, int) else torch.float64


@dataclass(frozen=True)
class Span:
    """The samples' spans, and how precisely their ends were given.

    Args:
        t0, t1: [n] ends in the clock's dtype.
        dtypes: in which they were given.
    """

    t0: Tensor
    t1: Tensor
    dtypes: tuple[torch.dtype, torch.dtype]

    @classmethod
    def of(cls, t0: float | Tensor, t1: float | Tensor, y0: Tensor, *, batched: bool, endless: bool) -> "Span":
        """The spans of the packed state y0 [n, F]; only `endless` ones may have an infinite t1.

        Raises:
            TypeError, ValueError: not times, or times that differ but not on the clock.
        """
        start = as_times("t0", t0, y0, batched=batched)
        end = as_times("t1", t1, y0, batched=batched, endless=endless)
        if not (is_exact(t0, start.dtype) and is_exact(t1, end.dtype)) and has_values(start) and has_values(end):
            # on the CPU, since the device may not have the dtype
            differ = torch.ne(*(torch.as_tensor(t, dtype=_exact_dtype(t), device="cpu") for t in (t0, t1)))
            if bool((differ & (start == end).cpu()).any()):
                raise ValueError(
                    f"t0, t1: they differ, but not in {start.dtype}, in which time is measured; shift them"
                )
        return cls(start, end, (given_dtype(t0), given_dtype(t1)))

    def meant(self, name: str, times: Tensor, given: torch.dtype) -> Tensor:
        """Times [n, T] in the clock's dtype, where those that mean an end of the span are that end.

        The last of `torch.linspace(0, 0.7, 5)` is not 0.7 in float64. Times are therefore compared with the ends in the
        coarser of both dtypes: a time that equals an end there is that end.

        Raises:
            ValueError: in the coarser dtype both ends are equal.
        """
        for end, other, dtype in zip((self.t0, self.t1), (self.t1, self.t0), self.dtypes, strict=True):
            coarse = max(given, dtype, key=lambda kind: torch.finfo(kind).eps)
            if coarse is times.dtype:
                continue
            at_end = times.detach().to(coarse) == end[:, None].detach().to(coarse)
            if bool((at_end & (end.to(coarse) == other.to(coarse))[:, None] & (end != other)[:, None]).any()):
                raise ValueError(f"{name}: {coarse} cannot tell the ends of the span apart; give all times in float64")
            shift = torch.where(at_end, end[:, None] - times, 0).detach()
            if times.stride(0) == 0 and bool((shift == shift[:1]).all()):  # times of all samples stay one row in memory
                times = (times[:1] + shift[:1]).expand(len(times), -1)
            else:
                times = times + shift
        return times


def check_saving(save_at: object, save_every: object, save: object, save_mask: object) -> None:
    """Raise a ValueError unless the arguments of `dise.solve` that say what to save, and where, go together."""
    if save_every is not None:
        check_whole("save_every", save_every)
        if save_at is not None:
            raise ValueError("save_every: values are saved at save_at already; give one of the two")
    if save_mask is not None and save_at is None:
        raise ValueError("save_mask: it marks save points as padding, but save_at was not given")
    if save is not None and save_at is None and save_every is None:
        raise ValueError("save: it says what to save, but neither save_at nor save_every was given")


def as_save_points(save_at: object, save_mask: object, span: Span, *, batched: bool) -> tuple[Tensor, Tensor] | None:
    """Save points as times [n, T] and a mask [n, T]; None if there are none.

    Args:
        save_at, save_mask: see `dise.solve`.
        span: of the samples.
        batched: see `dise.solve`.

    Raises:
        TypeError, ValueError: not times within the samples' spans.
    """
    if save_at is None:
        return None
    times = _for_each("save_at", _as_real("save_at", save_at, span.t0), len(span.t0), batched=batched)
    times = span.meant("save_at", times, given_dtype(save_at))
    mask = _as_mask("save_mask", save_mask, "save_at", times, batched=batched)
    _check_within("save_at", times, mask, span)
    return times, mask


def as_breaks(jumps: tuple[object, object], steps: tuple[object, object], span: Span, layout: Layout) -> Breaks | None:
    """Break points of the spans; None if there are none.

    Args:
        jumps, steps: the pairs of arguments (jump_at, jump_mask) and (step_at, step_mask) of `dise.solve`.
        span: of the samples.
        layout: of the state.

    Raises:
        TypeError, ValueError: not times, or jumps between which f's dtype has no number.
    """
    parts = []
    for kind, (given, given_mask) in {"jump": jumps, "step": steps}.items():
        if given is None:
            if given_mask is not None:
                raise ValueError(f"{kind}_mask: it marks padding, but {kind}_at was not given")
            continue
        times = _for_each(f"{kind}_at", _as_real(f"{kind}_at", given, span.t0), len(span.t0), batched=layout.batched)
        mask = _as_mask(f"{kind}_mask", given_mask, f"{kind}_at", times, batched=layout.batched)
        if has_values(times) and bool((times.isnan() & mask).any()):
            raise ValueError(f"{kind}_at: expected times, got nan; padding is False in {kind}_mask")
        times = torch.where(mask, span.meant(f"{kind}_at", times, given_dtype(given)), torch.nan)
        parts.append((times, torch.full_like(mask, kind == "jump")))
    if not parts:
        return None
    times, marks = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
    breaks = Breaks.of(times, marks, span.t0, span.t1, layout.time_dtype)
    if has_values(times) and bool(breaks.unresolved.any()):
        sample = int(breaks.unresolved.nonzero()[0])
        raise ValueError(
            f"jump_at: {layout.time_dtype}, in which f receives t, has no number between two jumps of sample {sample}"
        )
    return breaks


def as_query_times(t: object, span: Span, *, batched: bool) -> tuple[Tensor, bool]:
    """Times [n, T] of `Solution.evaluate`, and whether `t` is a single number (then T = 1).

    Raises:
        TypeError, ValueError: not times within the samples' spans.
    """
    times = _as_real("t", t, span.t0)
    single = times.ndim == 0
    times = _for_each("t", times.reshape(1) if single else times, len(span.t0), batched=batched)
    times = span.meant("t", times, given_dtype(t))
    _check_within("t", times, torch.ones_like(times, dtype=torch.bool), span)
    return times, single


def _as_real(name: str, times: object, like: Tensor) -> Tensor:
    """A tensor of real times, in the dtype and on the device of `like`."""
    try:
        values = times if isinstance(times, Tensor) else torch.as_tensor(times, dtype=like.dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{name}: expected times, numbers or a tensor, got {type(times).__name__}") from error
    if values.dtype.is_complex or values.dtype == torch.bool:
        raise TypeError(f"{name}: expected real times, got {values.dtype}")
    if values.is_meta:
        raise TypeError(f"{name}: expected times with data, got device meta")
    return values.to(like)


def _as_mask(name: str, mask: object, of: str, times: Tensor, *, batched: bool) -> Tensor:
    """[n, T] bool, True everywhere if no mask was given for the times [n, T] of the argument `of`."""
    if mask is None:
        return torch.ones_like(times, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name}: expected a tensor of bool, got {got}")
    marks = _for_each(name, mask.to(times.device), len(times), batched=batched)
    if marks.shape != times.shape:
        raise ValueError(f"{name}: expected the shape of {of}, got {tuple(mask.shape)}")
    return marks


def _for_each(name: str, values: Tensor, number: int, *, batched: bool) -> Tensor:
    """[n, T] from [T] or [n, T]."""
    if values.ndim == 1:
        return values.expand(number, -1)
    if batched and values.ndim == 2 and len(values) == number:
        return values
    expected = f"[T], or [B, T] with B={number}" if batched else "[T] (batched=False has one time)"
    raise ValueError(f"{name}: expected shape {expected}, got {tuple(values.shape)}")


def _check_within(name: str, times: Tensor, mask: Tensor, span: Span) -> None:
    """Raise a ValueError unless times [n, T] lie within each sample's span where the mask [n, T] is True."""
    ends = torch.stack([span.t0, span.t1])
    low, high = ends.amin(0)[:, None], ends.amax(0)[:, None]
    outside = (mask & ~((times >= low) & (times <= high))).nonzero()
    if len(outside):
        i, j = outside[0].tolist()
        bounds = f"[{float(low[i, 0]):g}, {float(high[i, 0]):g}]"
        raise ValueError(f"{name}: expected times within the span, {bounds} of sample {i}, got {float(times[i, j]):g}")
