"""Means over a batch that several processes share out."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, distributed

_share: ContextVar[float | None] = ContextVar("share", default=None)


@contextmanager
def sharing(share: float | None) -> Iterator[None]:
    """Within it, this process has this share of the batch's rows; None: there are no other processes."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean over all rows of the batch, given that over this process's; the same without `sharing`.

    For losses that are no mean over rows but a function of one. Its gradient is that of DDP's convention: the gradients
    of all processes' losses, which DDP then averages.
    """
    share = _share.get()
    return value if share is None else _Sum.apply(value * share)


class _Sum(torch.autograd.Function):
    """The sum over processes, of values and of gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(value: Tensor) -> Tensor:
    total = value.contiguous().clone()
    distributed.all_reduce(total)
    return total
