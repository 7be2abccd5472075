"""Bernoulli GLM: spikes of a neuron that a filtered stimulus and an offset excite, summarized by what suffices."""

import numpy as np
import torch
from torch import Tensor

from dise_experiments.flows.simulators.simulator import Prior, Simulator, normal_prior

BINS, LAGS = 100, 9  # of time, and of the filter


def stimulus() -> Tensor:
    """[100] white noise, the benchmark's: NumPy's generator with seed 42, whose stream is frozen (NEP 19)."""
    return torch.from_numpy(np.random.RandomState(42).randn(BINS)).float()


def design_matrix() -> Tensor:
    """V [100, 10]: a column of ones, and the stimulus delayed by 0 to 8 bins."""
    noise = stimulus()
    delayed = [torch.cat([torch.zeros(lag), noise[: BINS - lag]]) for lag in range(LAGS)]
    return torch.stack([torch.ones(BINS), *delayed], dim=1)


def simulate(theta: Tensor, generator: torch.Generator) -> Tensor:
    """x = Vᵀ y [n, 10] of spikes y [n, 100], independent with probability σ(V θ): the number of spikes, and the
    correlation of spikes and delayed stimulus.
    """
    V = design_matrix()
    spikes = torch.rand((len(theta), BINS), generator=generator) < (theta @ V.T).sigmoid()
    return spikes.float() @ V


def prior() -> Prior:
    """Normal: an offset of variance 2, and a filter that is smooth, with the precision FᵀF."""
    D = torch.eye(LAGS, dtype=torch.float64) - torch.diag(torch.ones(LAGS - 1, dtype=torch.float64), -1)
    F = D @ D + torch.diag((torch.arange(LAGS, dtype=torch.float64) / LAGS).sqrt())
    factor = torch.block_diag(torch.tensor([[2**0.5]], dtype=torch.float64), torch.linalg.inv(F))
    return normal_prior(torch.zeros(LAGS + 1), factor.float())


BERNOULLI_GLM = Simulator("bernoulli_glm", prior(), LAGS + 1, simulate)
