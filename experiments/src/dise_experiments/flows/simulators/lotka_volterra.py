"""Lotka–Volterra: predators and prey, observed ten times; solved with parameters per sample."""

import torch
from torch import Tensor

import dise
from dise_experiments.flows.simulators.simulator import Simulator, log_normal_prior

START, DAYS, NOISE = (30.0, 1.0), 20.0, 0.1
OBSERVED = [2.1 * i for i in range(10)]


def log_populations(theta: Tensor) -> Tensor:
    """Logarithms of prey and predators [n, 10, 2] of α, β, γ, δ [n, 4]."""
    start = torch.tensor(START, dtype=torch.float64).log().expand(len(theta), 2)
    method = dise.Dopri5(rtol=1e-6, atol=1e-6)
    solution = dise.solve(_growth, start, 0.0, DAYS, method, sample_args=(theta.double(),), save_at=OBSERVED)
    assert isinstance(solution.saved, Tensor)  # noqa: S101
    return solution.saved.float()


def simulate(theta: Tensor, generator: torch.Generator) -> Tensor:
    """x [n, 20]: prey at ten times, then predators, times log-normal noise."""
    x = log_populations(theta).transpose(1, 2).flatten(1)
    return (x + NOISE * torch.randn(x.shape, generator=generator)).exp()


def _growth(t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """Derivatives of the logarithms, (α − β Y, δ X − γ): populations stay positive."""
    (prey, predators), (alpha, beta, gamma, delta) = y.exp().unbind(1), theta.unbind(1)
    return torch.stack([alpha - beta * predators, delta * prey - gamma], dim=1)


LOTKA_VOLTERRA = Simulator(
    "lotka_volterra",
    log_normal_prior(torch.tensor([-0.125, -3.0, -0.125, -3.0]), torch.full((4,), 0.5)),
    2 * len(OBSERVED),
    simulate,
)
