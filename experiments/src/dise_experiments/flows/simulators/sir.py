"""SIR: an epidemic, observed by tests of 1,000 people on ten days; solved with parameters per sample."""

import math

import torch
from torch import Tensor

import dise
from dise_experiments.flows.simulators.simulator import Simulator, log_normal_prior

POPULATION, TESTS = 1e6, 1000.0
DAYS, OBSERVED_DAYS = 160.0, [17.0 * i for i in range(10)]


def infected(theta: Tensor) -> Tensor:
    """Share of the population that is infected on the observed days [n, 10], of β and γ [n, 2]; one person starts."""
    start = torch.tensor([POPULATION - 1, 1.0], dtype=torch.float64).expand(len(theta), 2)
    # the number of people gives the tolerances: a thousandth of a person
    method = dise.Dopri5(rtol=1e-6, atol=1e-3)
    solution = dise.solve(_spread, start, 0.0, DAYS, method, sample_args=(theta.double(),), save_at=OBSERVED_DAYS)
    assert isinstance(solution.saved, Tensor)  # noqa: S101
    return (solution.saved[..., 1] / POPULATION).clamp(0, 1).float()


def simulate(theta: Tensor, generator: torch.Generator) -> Tensor:
    """x [n, 10]: number of positive tests on each day, binomial."""
    share = infected(theta)
    return torch.binomial(torch.full_like(share, TESTS), share, generator=generator)


def _spread(t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """Derivatives of the susceptible and the infected [n, 2]; the recovered are the others."""
    (susceptible, infected), (beta, gamma) = y.unbind(1), theta.unbind(1)
    new = beta * susceptible * infected / POPULATION
    return torch.stack([-new, new - gamma * infected], dim=1)


SIR = Simulator(
    "sir",
    log_normal_prior(torch.tensor([math.log(0.4), math.log(0.125)]), torch.tensor([0.5, 0.2])),
    len(OBSERVED_DAYS),
    simulate,
)
