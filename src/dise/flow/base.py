"""Base distributions of flows."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class BaseDistribution(Protocol):
    """The methods that a flow's base distribution needs; every `torch.distributions.Distribution` has them."""

    @property
    def event_shape(self) -> torch.Size:
        """(D,)."""
        ...

    def log_prob(self, value: Tensor, /) -> Tensor:
        """[..., D] → [...], in nats."""
        ...

    def sample(self, sample_shape: torch.Size, /) -> Tensor:
        """[*sample_shape, D], without gradients."""
        ...

    def rsample(self, sample_shape: torch.Size, /) -> Tensor:
        """[*sample_shape, D], with gradients to the distribution's parameters."""
        ...


class DiagonalNormal(nn.Module):
    """Normal distribution with independent components, as a module: `flow.to(...)` moves it, a checkpoint includes it.

    Args:
        loc: [D] mean.
        scale: [D] standard deviation, positive; of loc's dtype and device.

    Raises:
        ValueError: loc and scale do not have the same shape [D], or scale is not positive.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        if loc.ndim != 1 or loc.shape != scale.shape:
            raise ValueError(f"loc, scale: expected two tensors [D], got {list(loc.shape)} and {list(scale.shape)}")
        if not (scale > 0).all():
            raise ValueError(f"scale: expected positive numbers, got {scale.tolist()}")
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    @property
    def event_shape(self) -> torch.Size:
        """(D,)."""
        return self.loc.shape

    def log_prob(self, value: Tensor) -> Tensor:
        """[..., D] → [...], in nats."""
        squares = ((value - self.loc) / self.scale).square().sum(-1)
        return -squares / 2 - self.scale.log().sum() - len(self.loc) * math.log(2 * math.pi) / 2

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """[*sample_shape, D] from torch's global generator."""
        noise = torch.randn(*sample_shape, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        return torch.addcmul(self.loc, self.scale, noise)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """[*sample_shape, D] from torch's global generator, without gradients."""
        return self.rsample(sample_shape)

    def extra_repr(self) -> str:
        """Mean and standard deviation, for the printed module."""
        return f"loc={self.loc.tolist()}, scale={self.scale.tolist()}"


def check_base(base: BaseDistribution) -> None:
    """Raise a ValueError unless it is one distribution over points of D dimensions."""
    event, batch = (tuple(getattr(base, name, ())) for name in ("event_shape", "batch_shape"))
    if len(event) != 1 or batch:
        raise ValueError(
            f"base: expected a distribution with event_shape (D,) and batch_shape (), got {event} and {batch}; "
            "torch.distributions.Independent(base, 1) makes a batch of D an event"
        )
