"""Gaussian mixture: a wide and a narrow normal distribution around the same point."""

import torch
from torch import Tensor

from dise_experiments.flows.simulators.simulator import Simulator, uniform_prior

WIDE, NARROW = 1.0, 0.1  # standard deviations


def simulate(theta: Tensor, generator: torch.Generator) -> Tensor:
    """x [n, 2]: θ with normal noise of standard deviation 1 or 0.1, with probability ½ each."""
    narrow = torch.rand((len(theta), 1), generator=generator) < 0.5
    return theta + torch.where(narrow, NARROW, WIDE) * torch.randn(theta.shape, generator=generator)


GAUSSIAN_MIXTURE = Simulator("gaussian_mixture", uniform_prior(-10.0, 10.0, 2), 2, simulate)
