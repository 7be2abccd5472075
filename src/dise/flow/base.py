"""Base distributions of flows."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from dise.integrate.argument_types import checked_arguments


class BaseDistribution(Protocol):
    """The methods that a flow's base distribution needs; every `torch.distributions.Distribution` has them."""

    @property
    def event_shape(self) -> torch.Size:
        """(D,), or the shape of a point with more dimensions, such as (C, H, W)."""
        ...

    def log_prob(self, value: Tensor, /) -> Tensor:
        """[..., *event_shape] → [...], in nats."""
        ...

    def sample(self, sample_shape: torch.Size, /) -> Tensor:
        """[*sample_shape, *event_shape], without gradients."""
        ...

    def rsample(self, sample_shape: torch.Size, /) -> Tensor:
        """[*sample_shape, *event_shape], with gradients to the distribution's parameters."""
        ...


def base_log_prob(base: BaseDistribution, z: Tensor) -> Tensor:
    """[...] log p of points [..., *event_shape] under a base, which may be no points at all."""
    if z.shape[0] == 0:  # torch.distributions cannot sum over the dimensions of no images
        return z.flatten(z.ndim - len(base.event_shape)).sum(-1)
    return log_densities("base", base.log_prob, z, len(base.event_shape))


def log_densities(name: str, log_prob: Callable[[Tensor], Tensor], points: Tensor, event_dims: int) -> Tensor:
    """[...] log p of points [..., *event_shape], a point having `event_dims` dimensions.

    Raises:
        ValueError: another shape, which would broadcast; `name` is that of the argument.
    """
    values, expected = log_prob(points), points.shape[: points.ndim - event_dims]
    if values.shape != expected:
        raise ValueError(
            f"{name}: expected log-densities of shape {tuple(expected)}, one per point, got {tuple(values.shape)}; "
            "torch.distributions.Independent(base, 1) makes a batch of D an event"
        )
    return values


@checked_arguments
class DiagonalNormal(nn.Module):
    """Normal distribution with independent components, as a module: `flow.to(...)` moves it, a checkpoint includes it.

    Args:
        loc: mean, [D] or the shape of a point with more dimensions, e.g. [C, H, W].
        scale: standard deviation in loc's shape, positive; of loc's dtype and device.

    Raises:
        ValueError: loc and scale do not have the same shape, of at least one dimension, dtype or device, loc is not
            finite, or scale is not finite and positive.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        if loc.ndim == 0 or loc.shape != scale.shape:
            raise ValueError(f"loc, scale: expected two tensors [D], got {list(loc.shape)} and {list(scale.shape)}")
        if not loc.is_floating_point() or loc.dtype != scale.dtype or loc.device != scale.device:
            got = f"{loc.dtype} on {loc.device} and {scale.dtype} on {scale.device}"
            raise ValueError(f"loc, scale: expected floating-point tensors of one dtype on one device, got {got}")
        if not loc.isfinite().all():
            raise ValueError(f"loc: expected finite numbers, got {_unusable(loc, loc.isfinite())}")
        usable = (scale > 0) & scale.isfinite()
        if not usable.all():
            raise ValueError(f"scale: expected positive, finite numbers, got {_unusable(scale, usable)}")
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of a point."""
        return self.loc.shape

    def log_prob(self, value: Tensor) -> Tensor:
        """[..., *event_shape] → [...], in nats."""
        dims = tuple(range(-self.loc.ndim, 0))
        squares = ((value - self.loc) / self.scale).square().sum(dims)
        return -squares / 2 - self.scale.log().sum() - self.loc.numel() * math.log(2 * math.pi) / 2

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """[*sample_shape, *event_shape] from torch's global generator."""
        noise = torch.randn(*sample_shape, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        return torch.addcmul(self.loc, self.scale, noise)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """[*sample_shape, *event_shape] from torch's global generator, without gradients."""
        return self.rsample(sample_shape)

    def extra_repr(self) -> str:
        """Mean and standard deviation, for the printed module."""
        if self.loc.numel() > 8:
            return f"event_shape={tuple(self.loc.shape)}"
        return f"loc={self.loc.tolist()}, scale={self.scale.tolist()}"


def check_base(base: BaseDistribution) -> None:
    """Raise a ValueError unless it is one distribution over points of at least one dimension."""
    event, batch = (tuple(getattr(base, name, ())) for name in ("event_shape", "batch_shape"))
    if not event or batch:
        raise ValueError(
            f"base: expected a distribution with event_shape (D,) and batch_shape (), got {event} and {batch}; "
            "torch.distributions.Independent(base, 1) makes a batch of D an event"
        )


def _unusable(x: Tensor, usable: Tensor) -> str:
    """The first number that is not usable, and where it is."""
    place = (~usable).nonzero()[0]
    return f"{float(x[tuple(place)]):g} at {place.tolist()}"
