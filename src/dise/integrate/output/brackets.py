"""The exact place of a crossing within a step, and its gradient."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.output.interpolation import PiecewisePolynomial
from dise.integrate.tracing import is_differentiated

PARTS_NUMEL = 2**13  # numbers in the states at which a search evaluates at once; more of them cost more than calls


class Bracket(NamedTuple):
    """X intervals of θ, each with a crossing."""

    low: Tensor  # [X]
    high: Tensor  # [X]
    side: Tensor  # [X] sign at `low`

    def narrowed(self, value: Callable[[Tensor], Tensor], pieces: PiecewisePolynomial) -> "Bracket":
        """The first crossing of each, enclosed up to rounding.

        Args:
            value: [M, X] values at θ [M, X].
            pieces: the steps [X].
        """
        bits = -math.log2(torch.finfo(pieces.y.dtype).eps) + 1
        power = min(8, max(2, int(math.log2(max(1, PARTS_NUMEL // max(1, pieces.y.numel()))))))
        low, high = self.low, self.high
        number = torch.arange(2**power - 1, dtype=torch.int32, device=low.device)[:, None]  # argmax, int64 are slower
        fractions = (number + 1).to(low.dtype) / 2**power
        for _ in range(math.ceil(bits / power)):
            inside = low + (high - low) * fractions
            past = value(inside) * self.side <= 0
            first = torch.where(past, number, len(number)).amin(0, keepdim=True).long()
            ends = torch.cat([low[None], inside, high[None]])
            low, high = ends.gather(0, first)[0], ends.gather(0, first + 1)[0]
        return Bracket(low, high, self.side)


def refined(theta: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """θ [X] with its gradient; the value does not change.

    By the implicit function theorem, g(θ(p), p) = 0 gives θ' = −g_p / g_θ: a Newton step from the constant θ has this
    derivative. A second Newton step makes second derivatives right too.
    """
    if not (torch.is_grad_enabled() and value(theta).requires_grad):
        return _refined_forwards(theta, value) if is_differentiated(theta) else theta
    theta = theta.clone().requires_grad_()
    for _ in range(2):
        g = value(theta)
        (slope,) = torch.autograd.grad(g.sum(), theta, create_graph=True, materialize_grads=True)
        theta = theta - (g - g.detach()) / _not_zero(slope)
    return theta


def _refined_forwards(theta: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """θ [X] with its first derivative in forward mode."""
    g = value(theta)
    if not g.is_floating_point():
        return theta
    return theta - (g - g.detach()) / _not_zero(torch.func.grad(lambda theta: value(theta).sum())(theta))


def _not_zero(slope: Tensor) -> Tensor:
    """The slope; where it is 0 the time has no gradient, and 0/0 would make the time itself NaN."""
    return torch.where(slope == 0, torch.finfo(slope.dtype).tiny, slope)
