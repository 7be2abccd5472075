"""Evaluations that a cascade's candidates share belong to the right samples and times."""

import math

import pytest
import torch
from torch.testing import assert_close

from dise import RK4, Bosh3, Cascade, Dopri5, Euler, Midpoint, Status, resume, solve

SPAN = {"first_step": "span"}
NAN = math.nan
CASCADES = {
    "adaptive first": (Bosh3(rtol=1e-9, atol=1e-9, max_steps=1, **SPAN), RK4(1)),
    "adaptive last": (Midpoint(1), Bosh3(rtol=1e-6, atol=1e-6, **SPAN)),
    "three": (Bosh3(rtol=1e-9, atol=1e-9, max_steps=1, **SPAN), Euler(2), RK4(1)),
    "adaptive in the middle": (Euler(2), Bosh3(rtol=1e-9, atol=1e-9, max_steps=1, **SPAN), RK4(1)),
}


def field(t, y, rate):
    return -rate * y + torch.sin(5 * t)


def never(y):
    return torch.zeros(len(y), dtype=torch.bool)


def solved(rates, cascade):
    y0 = torch.ones(len(rates), 1, dtype=torch.float64)
    rates = torch.tensor(rates, dtype=torch.float64)[:, None]
    return solve(field, y0, 0.0, 1.0, cascade, sample_args=(rates,), throw=False)


@pytest.mark.parametrize("candidates", CASCADES.values(), ids=CASCADES)
@pytest.mark.parametrize("accept", [never, lambda y: y[:, 0] > 0.3], ids=["none", "some"])
@pytest.mark.parametrize("position", range(4))
def test_a_sample_that_fails_at_its_start_leaves_the_others_as_alone(candidates, accept, position):
    cascade, rates = Cascade(candidates, accept), [1.0, 2.0, 3.0]
    rates.insert(position, NAN)
    batch = solved(rates, cascade)
    for i, rate in enumerate(rates):
        alone = solved([rate], cascade)
        assert_close(batch.y[i], alone.y[0], rtol=1e-13, atol=0, equal_nan=True)
        for name in ("nfe", "choice", "status", "n_steps"):
            assert getattr(batch, name)[i] == getattr(alone, name)[0], name
    assert batch.status[position] == Status.NON_FINITE


@pytest.mark.parametrize("last", [Midpoint(1), RK4(1)], ids=str)
def test_a_resumed_first_step_is_not_the_span(last):
    """The solve before leaves a step size behind that is shorter than the second span."""

    def f(t, y):
        return torch.cos(3 * t) * y + torch.sin(5 * t)

    first = solve(f, torch.ones(3, 1, dtype=torch.float64), 0.0, 0.5, Dopri5(rtol=1e-6, atol=1e-6))
    cascade = Cascade((Bosh3(rtol=1e-2, atol=1e-2, max_steps=1, **SPAN), last), never)
    resumed = resume(first, f, 1.5, cascade)
    assert_close(resumed.y, solve(f, first.y, first.t, 1.5, last).y, rtol=1e-13, atol=0)


def test_a_smallest_step_longer_than_the_span_is_the_span():
    f, y0 = lambda t, y: -y + torch.sin(5 * t), torch.ones(3, 1, dtype=torch.float64)
    probe = Bosh3(rtol=1e-9, atol=1e-9, max_steps=1, dt_min=1.5, **SPAN)
    solution = solve(f, y0, 0.0, 1.0, Cascade((probe, RK4(1)), never))
    assert_close(solution.y, solve(f, y0, 0.0, 1.0, RK4(1)).y, rtol=1e-13, atol=0)
