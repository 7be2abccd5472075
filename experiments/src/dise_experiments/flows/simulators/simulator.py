"""What a task of simulation-based inference consists of."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Simulate = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Prior:
    """A distribution of parameters θ [D].

    Attributes:
        draw: (n, generator) → θ float32 [n, D].
        location, scale: [D]; (θ − location) / scale has mean 0 and variance 1.
    """

    draw: Callable[[int, torch.Generator], Tensor]
    location: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Simulator:
    """A prior over parameters θ and a simulator of data x given θ.

    Attributes:
        name: of the benchmark's task, and of its folder.
        prior: of the parameters.
        data: number of coordinates of x, C.
        simulate: (θ [n, D], generator) → x float32 [n, C], each row from its own θ.
    """

    name: str
    prior: Prior
    data: int
    simulate: Simulate

    def joint(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n pairs: standardized θ [n, D] from the prior, and data x [n, C]."""
        theta = self.prior.draw(n, generator)
        return self.standardized(theta), self.simulate(theta, generator)

    def standardized(self, theta: Tensor) -> Tensor:
        """Parameters [..., D] in units of the prior's standard deviation."""
        return (theta - self.prior.location) / self.prior.scale


def uniform_prior(low: float, high: float, size: int) -> Prior:
    """Independent uniform parameters between low and high."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        return low + (high - low) * torch.rand((n, size), generator=generator)

    return Prior(draw, torch.full((size,), (low + high) / 2), torch.full((size,), (high - low) / 12**0.5))


def normal_prior(mean: Tensor, factor: Tensor) -> Prior:
    """A normal prior with a mean [D] and a covariance `factor` · `factor`ᵀ of factor [D, D]."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        return mean + torch.randn((n, len(mean)), generator=generator) @ factor.T

    return Prior(draw, mean, factor.norm(dim=1))


def log_normal_prior(mean: Tensor, deviation: Tensor) -> Prior:
    """Independent parameters whose logarithms are normal with these means and standard deviations [D]."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        return (mean + deviation * torch.randn((n, len(mean)), generator=generator)).exp()

    location = (mean + deviation.square() / 2).exp()
    return Prior(draw, location, location * deviation.square().expm1().sqrt())
