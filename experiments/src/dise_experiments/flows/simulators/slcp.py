"""Simple likelihood, complex posterior: four points of a normal distribution in the plane."""

import torch
from torch import Tensor

from dise_experiments.flows.simulators.simulator import Simulator, uniform_prior

POINTS = 4


def simulate(theta: Tensor, generator: torch.Generator) -> Tensor:
    """x [n, 8]: four points with mean (θ₁, θ₂), standard deviations θ₃², θ₄² and correlation tanh θ₅.

    The benchmark adds 1e-6 to both variances.
    """
    mean, (first, second) = theta[:, None, :2], theta[:, 2:4].square().T
    covariance = theta[:, 4].tanh() * first * second
    # Cholesky's factor of the covariance matrix
    a = (first.square() + 1e-6).sqrt()
    b = covariance / a
    c = (second.square() + 1e-6 - b.square()).clamp(min=0).sqrt()
    u, v = torch.randn((2, len(theta), POINTS), generator=generator)
    points = torch.stack([a[:, None] * u, b[:, None] * u + c[:, None] * v], dim=2)
    return (mean + points).flatten(1)


SLCP = Simulator("slcp", uniform_prior(-3.0, 3.0, 5), 8, simulate)
