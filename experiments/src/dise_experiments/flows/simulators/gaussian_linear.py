"""Gaussian linear: a normal prior or a uniform one, and normal noise; the former's posterior is in closed form."""

import torch
from torch import Tensor

from dise_experiments.flows.simulators.simulator import Simulator, normal_prior, uniform_prior

SIZE, VARIANCE = 10, 0.1  # of prior and noise


def simulate(theta: Tensor, generator: torch.Generator) -> Tensor:
    """x [n, 10]: θ with normal noise of variance 0.1."""
    return theta + VARIANCE**0.5 * torch.randn(theta.shape, generator=generator)


GAUSSIAN_LINEAR = Simulator(
    "gaussian_linear", normal_prior(torch.zeros(SIZE), VARIANCE**0.5 * torch.eye(SIZE)), SIZE, simulate
)
GAUSSIAN_LINEAR_UNIFORM = Simulator("gaussian_linear_uniform", uniform_prior(-1.0, 1.0, SIZE), SIZE, simulate)
