"""Paths from noise to data, x_t = α(t) x + σ(t) ε: what a diffusion or flow-matching model was trained on.

Each is a `dise.integrate.multistep.paths.Path`. Times run between the path's `span`, from noise to data.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dise.integrate.value import Value, check_above, is_number


@dataclass(frozen=True)
class _UnitPath(Value):
    """A path whose times run between 0 and 1, with the data at either end."""

    data_at: float = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.data_at) or self.data_at not in (0, 1):
            raise ValueError(f"data_at: expected 0 or 1, got {self.data_at!r}")

    @property
    def span(self) -> tuple[float, float]:
        """Times of noise and of data."""
        return 1.0 - self.data_at, float(self.data_at)


@dataclass(frozen=True)
class StraightPath(_UnitPath):
    """x_t = s x + (1 − s) ε with s = t or 1 − t: rectified flow and conditional flow matching.

    Args:
        data_at: time of the data, 1 (flow matching, torchcfm) or 0 (Stable Diffusion 3, Flux, sbi); noise is at the
            other end.

    Raises:
        ValueError: data_at is neither 0 nor 1.

    Sources: Liu et al., 2022 (arXiv:2209.03003); Lipman et al., 2022 (arXiv:2210.02747).
    """

    data_at: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        """Factor of the data."""
        return t if self.data_at else 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """Factor of the noise."""
        return 1 - t if self.data_at else t

    def alpha_slope(self, t: Tensor) -> Tensor:
        """dα/dt."""
        return torch.full_like(t, 1 if self.data_at else -1)

    def sigma_slope(self, t: Tensor) -> Tensor:
        """dσ/dt."""
        return torch.full_like(t, -1 if self.data_at else 1)


@dataclass(frozen=True)
class VariancePreservingPath(Value):
    """α = exp(−½ ∫ β), σ² = 1 − α² with β linear in t: DDPM's path in continuous time; noise is at 1, data at 0.

    Args:
        beta_min, beta_max: β at 0 and at 1.
        data_time: time near 0 at which solves end, since the velocity is unbounded at 0.

    Raises:
        ValueError: an argument (named in the message) is out of its range.

    Source: Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, 2021, Eq. 32–33.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    data_time: float = 1e-3

    def __post_init__(self) -> None:
        check_above("beta_min", self.beta_min, 0)
        check_above("beta_max", self.beta_max, self.beta_min)
        check_above("data_time", self.data_time, 0, 1)

    @property
    def span(self) -> tuple[float, float]:
        """Times of noise and of data."""
        return 1.0, self.data_time

    def alpha(self, t: Tensor) -> Tensor:
        """Factor of the data."""
        return torch.exp(-self._integral(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        """Factor of the noise."""
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def alpha_slope(self, t: Tensor) -> Tensor:
        """dα/dt."""
        return -self._beta(t) / 2 * self.alpha(t)

    def sigma_slope(self, t: Tensor) -> Tensor:
        """dσ/dt."""
        return self._beta(t) / 2 * self.alpha(t) ** 2 / self.sigma(t)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: Tensor) -> Tensor:
        """∫ β from 0 to t."""
        return t * self.beta_min + t * t / 2 * (self.beta_max - self.beta_min)


@dataclass(frozen=True)
class VarianceExplodingPath(Value):
    """x_t = x + t ε: the noise level is the time itself, as in EDM; noise is at sigma_max, data at sigma_min.

    Args:
        sigma_min, sigma_max: noise levels at which solves end and start.

    Raises:
        ValueError: an argument (named in the message) is out of its range.

    Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, section 3.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check_above("sigma_min", self.sigma_min, 0)
        check_above("sigma_max", self.sigma_max, self.sigma_min)

    @property
    def span(self) -> tuple[float, float]:
        """Times of noise and of data."""
        return self.sigma_max, self.sigma_min

    def alpha(self, t: Tensor) -> Tensor:
        """Factor of the data."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Factor of the noise."""
        return t

    def alpha_slope(self, t: Tensor) -> Tensor:
        """dα/dt."""
        return torch.zeros_like(t)

    def sigma_slope(self, t: Tensor) -> Tensor:
        """dσ/dt."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class CosinePath(_UnitPath):
    """α = cos(πt/2), σ = sin(πt/2), or the reverse: the cosine schedule, also called trigonometric flow.

    Args:
        data_at: time of the data, 0 or 1; noise is at the other end.

    Raises:
        ValueError: data_at is neither 0 nor 1.

    Sources: Nichol, Dhariwal, 2021 (arXiv:2102.09672); Albergo et al., 2023 (arXiv:2303.08797).
    """

    data_at: float = 0.0

    def alpha(self, t: Tensor) -> Tensor:
        """Factor of the data."""
        return torch.sin(math.pi / 2 * self._signal(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Factor of the noise."""
        return torch.sin(math.pi / 2 * (1 - self._signal(t)))

    def alpha_slope(self, t: Tensor) -> Tensor:
        """dα/dt."""
        return self._sign * math.pi / 2 * torch.cos(math.pi / 2 * self._signal(t))

    def sigma_slope(self, t: Tensor) -> Tensor:
        """dσ/dt."""
        return -self._sign * math.pi / 2 * torch.cos(math.pi / 2 * (1 - self._signal(t)))

    def _signal(self, t: Tensor) -> Tensor:
        """Time from noise, 0, to data, 1."""
        return t if self.data_at else 1 - t

    @property
    def _sign(self) -> float:
        return 1.0 if self.data_at else -1.0
