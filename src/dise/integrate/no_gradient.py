"""Values without gradients: asking for one raises an error that says why."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Tensor | None, ...]]


def without_gradient(value: Tensor, sources: Iterable[Tensor], why: str) -> Tensor:
    """The value, whose gradient in any of the sources raises a RuntimeError that says why there is none."""
    return _Refusal.apply(value, why, *sources)  # type: ignore[no-untyped-call, no-any-return]


def differentiable_once(why: str) -> Callable[[Backward], Backward]:
    """The `backward` of an autograd function whose results have no gradients.

    torch's own `once_differentiable` raises an error only if the gradient that comes in requires one. A penalty on a
    first derivative, grad(y.sum(), x, create_graph=True), would have no gradient, without a word.

    Args:
        why: the error, where a second derivative is asked for.
    """

    def decorated(backward: Backward) -> Backward:
        @wraps(backward)
        def once(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            again = torch.is_grad_enabled()  # create_graph=True
            with torch.no_grad():
                results = backward(ctx, *gradients)
            if not again:
                return results
            sources = [x for x in (*gradients, *ctx.saved_tensors) if x is not None and x.requires_grad]
            return tuple(x if x is None else without_gradient(x, sources, why) for x in results)

        return once

    return decorated


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, why: str, *_: Tensor) -> Tensor:
        ctx.why = why
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError(ctx.why)
