"""Batches of data: inputs of a model, with their targets where there are any."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

BATCH = 100  # samples per batch of a tensor that is given whole


class Input(Protocol):
    """Input of a model: a tensor [B, ...], or an object of B samples with `len`, `device` and `to` like a tensor's."""

    @property
    def device(self) -> torch.device:
        """Device of the input."""
        ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str, /) -> Self:
        """The same input on another device."""
        ...


Data = Tensor | Iterable[Any]  # batches x or (x, target), or one tensor x or pair (x, target) of all samples


def as_batches(name: str, data: Data) -> Iterator[tuple[Input, Any]]:
    """Batches (x, target) of data in any of its forms; the target is None where there is none.

    Args:
        name: of the argument, for errors.
        data: batches x, (x,) or (x, target), as a `DataLoader` gives them; or one tensor x or pair (x, target) of all
            samples, which is split into batches of 100.

    Raises:
        ValueError: no batches, data of another form, or a number of targets other than that of the inputs.
    """
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise ValueError(f"{name}: expected batches, got the {type(data).__name__} itself; give a DataLoader of it")
    if isinstance(data, Tensor):
        data = [data] if data.ndim == 0 else data.split(BATCH)
    elif _is_pair(name, data):
        x, target = _as_batch(name, data)
        data = zip(cast(Tensor, x).split(BATCH), target.split(BATCH), strict=True)
    elif not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise ValueError(f"{name}: expected batches x or (x, target), got {type(data).__name__}")
    empty = True
    for batch in data:
        yield _as_batch(name, batch)
        empty = False
    if empty:
        raise ValueError(f"{name}: expected batches x or (x, target), got none")


def _is_pair(name: str, data: object) -> bool:
    """Whether data are inputs and targets of all samples, not two batches of inputs.

    Raises:
        ValueError: they may be either.
    """
    if type(data) not in (tuple, list) or not isinstance(data, tuple | list) or len(data) != 2:
        return False
    first, second = data
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    if first.shape[1:] != second.shape[1:] or first.dtype != second.dtype:
        return True
    if isinstance(data, list) or first.shape != second.shape:
        return False
    raise ValueError(
        f"{name}: two tensors of the same shape {tuple(first.shape)} may be two batches, or inputs and their targets; "
        "give a list of batches, [x1, x2] or [(x, target)]"
    )


def _as_batch(name: str, batch: object) -> tuple[Input, Any]:
    """The inputs and targets of one batch."""
    parts: tuple[Any, ...] = tuple(batch) if type(batch) in (tuple, list) else (batch,)  # type: ignore[arg-type]
    if len(parts) not in (1, 2):
        raise ValueError(f"{name}: expected batches x or (x, target), got one of {len(parts)} parts")
    x, target = parts if len(parts) == 2 else (parts[0], None)
    if not all(hasattr(x, attribute) for attribute in ("to", "device", "__len__")):
        raise ValueError(f"{name}: expected batches x or (x, target) of tensors, got {type(x).__name__} as x")
    if isinstance(x, Tensor) and x.ndim == 0:
        raise ValueError(f"{name}: expected batches [B, ...] of samples, got a number")
    if isinstance(target, Tensor) and (target.ndim == 0 or len(target) != len(x)):
        raise ValueError(
            f"{name}: expected a target per sample, got {len(x)} inputs and targets of shape {tuple(target.shape)}"
        )
    return x, target
