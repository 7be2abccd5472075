"""The solver's clock: times are float64 whatever the state's dtype, and f receives them in the state's."""

from functools import lru_cache

import torch
from torch import Tensor

_REAL = {torch.complex128: torch.float64, torch.complex64: torch.float32, torch.complex32: torch.float16}
_WITHOUT_FLOAT64 = frozenset({"mps"})  # types of devices


def clock_dtype(device: torch.device) -> torch.dtype:
    """The dtype of times on a device: float64, or float32 where the device has no float64.

    The length of a step is the difference of its rounded ends, so rounding errors do not add up in either dtype.
    """
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


@lru_cache(maxsize=256)
def shared_times(t: float, number: int, device: torch.device) -> Tensor:
    """[number] equal times, in one tensor for all solves: for those that neither change it nor give it away."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in later training
        return torch.full((number,), t, dtype=clock_dtype(device), device=device)


def real_dtype(x: Tensor | torch.dtype) -> torch.dtype:
    """The dtype of the real parts of a tensor, or of a dtype; torch.compile cannot trace `dtype.to_real`."""
    dtype = x.dtype if isinstance(x, Tensor) else x
    return _REAL.get(dtype, dtype)


def given_dtype(t: object) -> torch.dtype:
    """The dtype in which times were given: float64 for numbers, lists and whole numbers."""
    return t.dtype if isinstance(t, Tensor) and t.is_floating_point() else torch.float64


def is_exact(t: float | Tensor, clock: torch.dtype) -> bool:
    """Whether the clock holds times as they were given, without rounding."""
    if isinstance(t, Tensor):
        return t.dtype.itemsize <= (clock.itemsize if t.is_floating_point() else clock.itemsize // 2)
    return clock is torch.float64 and (isinstance(t, float) or abs(t) <= 2**53)


def next_after(t: Tensor, towards: Tensor) -> Tensor:
    """The next number of t's dtype after t towards another one; in half precision the one after it may be returned."""
    if t.dtype in (torch.float32, torch.float64):
        return torch.nextafter(t, towards)
    kind = torch.finfo(t.dtype)  # torch.nextafter has no half precision
    return t + torch.copysign((t.abs() * kind.eps).clamp(min=kind.smallest_normal), towards - t)
