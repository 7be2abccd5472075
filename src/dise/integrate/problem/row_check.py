"""A check that f treats each sample on its own, made once per f, where a solve first calls f without all samples."""

from collections.abc import Callable
from types import MethodType
from typing import Any, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from dise.integrate.problem.forward_context import module_tensors, training_modes

# for each f that has passed: its method, and the modes of the modules that it reaches, at that time
_CHECKED: WeakKeyDictionary[Any, set[tuple[object, ...]]] = WeakKeyDictionary()

WHAT_TO_DO = (
    "Finished samples leave the batch, which would change the results of the others. Pass drop_finished=False, so that "
    "f always gets all samples, or batched=False, if they are one system; or put its modules in evaluation mode"
)


def checked(f: Callable[..., object], args: tuple[object, ...]) -> bool:
    """Whether f has passed before, in these modes of its modules. An f that is made for one solve has not."""
    owner, mode = _owner(f), _mode(f, args)
    return mode in _CHECKED.get(owner, ()) if _referable(owner) else False


def remember(f: Callable[..., object], args: tuple[object, ...]) -> None:
    """Remember that f has passed, if it can be referenced weakly."""
    owner = _owner(f)
    if _referable(owner):
        _CHECKED.setdefault(owner, set()).add(_mode(f, args))


def check_rows(value: Tensor, part: Callable[[], Tensor], whole: Callable[[], Tensor], name: str, eps: float) -> None:
    """Raise a ValueError if f mixes the samples of a batch.

    An f that draws random numbers, or remembers earlier calls, cannot be judged: it passes. The random numbers that
    follow stay the same.

    Args:
        value: [n, F] f's values for a part of the batch.
        part: returns them again.
        whole: returns f's values for the same samples, evaluated with all others.
        name: which samples these are, for the error message.
        eps: relative rounding error of f's operations, at least.
    """
    devices = [value.device] if value.is_cuda else []
    # torch's checkpoint counts the tensors that f keeps for a backward pass, in which it does not repeat this check
    with torch.random.fork_rng(devices), saved_tensors_hooks(_same, _same):
        among_all = whole()
        if same_values(value, among_all, eps) or not same_values(value, part(), eps):
            return
    off = float((value - among_all).abs().detach().nan_to_num(nan=torch.inf).max())
    raise ValueError(
        f"f: its values for {name} change by up to {off:.3g} if it gets these without the others, so it mixes the "
        f"samples of a batch (batch normalization in training mode, a batch mean). {WHAT_TO_DO}"
    )


def same_values(part: Tensor, whole: Tensor, eps: float = 0.0) -> bool:
    """Whether values agree up to rounding, which depends on the number of rows: by the root of the machine epsilon.

    Matrix products and convolutions of float32 on a GPU may have the precision of TF32.

    Args:
        part, whole: the values.
        eps: the machine epsilon, if it is larger than that of their dtype.
    """
    part, whole = part.detach(), whole.detach()
    eps = max(eps, torch.finfo(whole.dtype).eps)
    if whole.is_cuda and eps > torch.finfo(torch.float64).eps:
        eps = max(eps, 2.0**-10)
    finite = whole[whole.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return cast(bool, torch.allclose(part, whole, rtol=0, atol=eps**0.5 * scale, equal_nan=True))


def precision(f: Callable[..., object], args: tuple[object, ...], dtype: torch.dtype, device: torch.device) -> float:
    """The largest machine epsilon of the dtypes in which f may calculate: its own, its modules' or autocast's."""
    dtypes = {dtype, *(x.dtype for x in module_tensors((f, *args)) if x.is_floating_point())}
    if torch.is_autocast_enabled(device.type):
        dtypes.add(torch.get_autocast_dtype(device.type))
    if torch.get_float32_matmul_precision() == "medium":
        dtypes.add(torch.bfloat16)
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def _owner(f: Callable[..., object]) -> object:
    return f.__self__ if isinstance(f, MethodType) else f


def _mode(f: Callable[..., object], args: tuple[object, ...]) -> tuple[object, ...]:
    return f.__func__ if isinstance(f, MethodType) else None, *training_modes((f, *args))


def _referable(owner: object) -> bool:
    try:
        hash(owner), ref(owner)
    except TypeError:
        return False
    return True


def _same(x: Tensor) -> Tensor:
    return x
