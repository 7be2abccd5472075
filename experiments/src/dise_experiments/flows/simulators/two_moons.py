"""Two moons: a posterior with two crescents, with structure on a large and on a small scale."""

import math

import torch
from torch import Tensor

from dise_experiments.flows.simulators.simulator import Simulator, uniform_prior


def simulate(theta: Tensor, generator: torch.Generator) -> Tensor:
    """x [n, 2]: a point of a thin half circle of radius 0.1, moved by |θ₁ + θ₂| and by θ₂ − θ₁, both divided by √2."""
    angle = math.pi * (torch.rand(len(theta), generator=generator) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta), generator=generator)
    first, second = theta.unbind(1)
    x = radius * angle.cos() + 0.25 - (first + second).abs() / 2**0.5
    y = radius * angle.sin() + (second - first) / 2**0.5
    return torch.stack([x, y], dim=1)


TWO_MOONS = Simulator("two_moons", uniform_prior(-1.0, 1.0, 2), 2, simulate)
