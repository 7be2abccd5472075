import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import DiagonalNormal, Dopri5, Dopri8, Euler, Flow
from dise_experiments.flows.cases import Case
from dise_experiments.flows.measure.densities import density_errors
from dise_experiments.flows.measure.errors import outcome, summary, tight_draws
from dise_experiments.flows.measure.solvers import Solver


class Linear(nn.Module):
    """dx/dt = x + condition, whose solution at 1 is e x + (e − 1) condition."""

    def __init__(self, conditional=False):
        super().__init__()
        self.conditional = conditional
        self.weight = nn.Parameter(torch.ones(()))  # what `double` casts

    def forward(self, t, x, *condition):
        return self.weight * x + (condition[0] if self.conditional else 0)


@pytest.fixture(params=[False, True], ids=["without", "with condition"])
def case(request):
    flow = Flow(Linear(request.param), DiagonalNormal(torch.zeros(2), torch.ones(2)), Dopri5(rtol=1e-6, atol=1e-6))
    return Case("moons", flow, (lambda number: torch.randn(number, 2)) if request.param else None)


def exact(draws):
    x = math.e * draws.starts.double()
    return x + (math.e - 1) * draws.conditions[0].double() if draws.conditions else x


def test_tight_ends_are_exact_in_double_precision(case):
    draws = tight_draws(case, 10, batch=4, seed=0)
    assert (draws.starts.dtype, draws.ends.dtype) == (torch.float32, torch.float64)
    assert_close(draws.ends, exact(draws), rtol=1e-7, atol=1e-7)


def test_draws_depend_on_the_seed_alone(case):
    first, second, third = (tight_draws(case, 10, batch=batch, seed=seed) for batch, seed in ((4, 0), (10, 0), (4, 1)))
    assert torch.equal(first.starts, second.starts)
    assert all(torch.equal(a, b) for a, b in zip(first.conditions, second.conditions, strict=True))
    assert not torch.equal(first.starts, third.starts)


def test_the_error_is_the_distance_per_coordinate(case):
    draws = tight_draws(case, 10, batch=4, seed=0)
    found = outcome(case, Euler(2), draws, batch=3)
    x = draws.starts.double()
    for _ in range(2):
        x = x + 0.5 * (x + (draws.conditions[0] if draws.conditions else 0))
    assert_close(found.error, (x - exact(draws)).square().mean(1).sqrt(), rtol=1e-4, atol=1e-5)
    assert found.nfe.tolist() == [2] * 10


def test_a_failed_draw_has_an_infinite_error(case):
    draws = tight_draws(case, 10, batch=4, seed=0)
    found = outcome(case, Dopri8(rtol=1e-5, atol=1e-5, max_steps=1), draws, batch=4)
    assert found.error.isinf().any()
    row = summary(case, Solver("few steps", "Dopri8", Euler()), found, 0.1)
    assert row["error"]["q99"] == math.inf
    assert row["within"] == float((found.error <= 0.1).double().mean())


def test_a_row_counts_decisions_and_calls(case):
    guided = Case(case.task, case.flow, case.condition, guidance=2.0)
    draws = tight_draws(case, 10, batch=4, seed=0)
    row = summary(
        guided, Solver("policy", "policy", Euler(3), decisions=0.5), outcome(case, Euler(3), draws, batch=4), 1
    )
    assert row["nfe"] == {"mean": 3.5, "max": 3}
    assert row["model_calls"] == {"mean": 7.0, "max": 6}


def test_density_errors_are_those_of_the_closed_form(case):
    draws = tight_draws(case, 10, batch=4, seed=0)
    solvers = [Solver("Euler", "Euler", Euler(2)), Solver("forwards", "DPM++2M", Euler(2), density=False)]
    rows = density_errors(case, solvers, draws)
    assert list(rows) == ["Euler"]
    # backwards from the data, x ← x − (x + c) / 2 twice, and the divergence 2 at every step
    x = draws.ends.float()
    z = x
    for _ in range(2):
        z = z - 0.5 * (z + (draws.conditions[0] if draws.conditions else 0))
    noise = draws.starts.double()
    base = case.flow.base
    error = (base.log_prob(z).double() - base.log_prob(noise).double()).abs()  # the change, −2, is exact
    ranked = error.sort().values
    assert rows["Euler"]["error"]["median"] == pytest.approx(float(ranked[4]), rel=1e-3)
    assert rows["Euler"]["nfe"] == {"mean": 2.0, "max": 2}
