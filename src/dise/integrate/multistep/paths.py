"""Paths from noise to data, x_t = α(t) x + σ(t) ε with data x and noise ε: what samplers know of a diffusion model."""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Path(Protocol):
    """Coefficients of a path and their derivatives, functions of the vector field's time, elementwise."""

    @property
    def span(self) -> tuple[float, float]:
        """Times of noise and of data, between which the path is solved."""
        ...

    def alpha(self, t: Tensor) -> Tensor:
        """Factor of the data."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """Factor of the noise."""
        ...

    def alpha_slope(self, t: Tensor) -> Tensor:
        """dα/dt."""
        ...

    def sigma_slope(self, t: Tensor) -> Tensor:
        """dσ/dt."""
        ...


def at(coefficient: Callable[[Tensor], Tensor], t: float) -> float:
    """A coefficient of a path at one time, in double precision."""
    return float(coefficient(torch.tensor(t, dtype=torch.float64)))


def log_ratio(path: Path, t: float) -> float:
    """λ = log(α/σ), half of the log signal-to-noise ratio; −∞ at pure noise, ∞ at data."""
    alpha, sigma = at(path.alpha, t), at(path.sigma, t)
    if alpha <= 0:
        return -math.inf
    return math.inf if sigma <= 0 else math.log(alpha / sigma)
