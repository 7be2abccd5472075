"""Regularizers made of what the solver knows of its steps, against closed forms; and a random end."""

import math

import pytest
import torch
from torch import nn

from dise import (
    RK4,
    Dopri5,
    Dopri8,
    ErrorEstimate,
    Euler,
    HeunEuler,
    KineticEnergy,
    NeuralODE,
    RandomEndTime,
    StiffnessEstimate,
    Tsit5,
    UnscaledErrorEstimate,
    WeightedErrorEstimate,
    solve,
)

DOUBLE = torch.float64


# ---- a sum over the batch


@pytest.mark.parametrize("regularizer", [ErrorEstimate, UnscaledErrorEstimate, KineticEnergy, WeightedErrorEstimate])
def test_a_sum_is_the_mean_times_the_batch(tanh_field, starts, regularizer):
    f, y0 = tanh_field(3), starts(4, 3)
    solution = solve(f, y0, 0.0, 1.0, Dopri5(), accumulate=regularizer().accumulate)
    assert regularizer(reduce="sum")(solution, f).item() == pytest.approx(4 * regularizer()(solution, f).item())
    assert str(regularizer(reduce="sum")) == f"{regularizer.__name__}(reduce='sum')"


def test_another_way_to_reduce_is_named():
    with pytest.raises(ValueError, match="reduce: expected 'mean' or 'sum', got 'max'"):
        ErrorEstimate(reduce="max")


# ---- error times length


def test_weighted_error_estimate_of_one_step():
    """h' = h by HeunEuler in one step of length −½: err = dt²/2 h."""
    y0 = torch.tensor([[1.0], [-2.0]], dtype=DOUBLE)
    integrator = HeunEuler(rtol=1e3, atol=1e3, first_step="span")
    solution = solve(lambda t, y: y, y0, 0.0, -0.5, integrator, accumulate=WeightedErrorEstimate.accumulate)
    assert solution.n_steps.tolist() == [1, 1]
    assert WeightedErrorEstimate()(solution, nn.Identity()).item() == pytest.approx(1.5 * 0.125 * 0.5)


# ---- stiffness


def stiffness_solve(f, integrator):
    y0 = torch.ones(2, 2, dtype=DOUBLE)
    return solve(f, y0, 0.0, 1.0, integrator, accumulate=StiffnessEstimate.accumulate)


@pytest.mark.parametrize("integrator", [Dopri5(), Tsit5(), Dopri8(), RK4(3)], ids=str)
def test_stiffness_of_a_linear_field_is_its_rate(integrator):
    """f(x) − f(y) = λ (x − y): each step's estimate is |λ|."""
    solution = solve(
        lambda t, y: -3 * y,
        torch.ones(2, 2, dtype=DOUBLE),
        0.0,
        1.0,
        integrator,
        accumulate=StiffnessEstimate.accumulate,
    )
    mean = (solution.accumulated / solution.n_accepted).mean().item()
    assert mean == pytest.approx(3, rel=1e-4)


def test_the_gradient_of_a_stiffness_estimate():
    rate = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    solution = solve(
        lambda t, y: -rate * y,
        torch.ones(1, 2, dtype=DOUBLE),
        0.0,
        1.0,
        RK4(4),
        accumulate=StiffnessEstimate.accumulate,
    )
    StiffnessEstimate()(solution, nn.Identity()).backward()
    assert rate.grad.item() == pytest.approx(4)


def test_states_that_agree_are_not_stiff():
    c = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    solution = solve(
        lambda t, y: 0 * c * y, torch.ones(1, 2), 0.0, 1.0, Dopri5(), accumulate=StiffnessEstimate.accumulate
    )
    value = StiffnessEstimate()(solution, nn.Identity())
    value.backward()
    assert value == 0
    assert c.grad.isfinite().all()


def test_a_method_without_two_stages_at_one_time_is_refused():
    with pytest.raises(ValueError, match="integrator: StiffnessEstimate needs a method with two stages at one time"):
        stiffness_solve(lambda t, y: -y, Euler())


# ---- a random end


def test_random_ends_are_uniform_around_the_end():
    generator = torch.Generator().manual_seed(0)
    steer = RandomEndTime(0.5, generator=generator)
    ends = torch.tensor([steer.end(0.0, 2.0) for _ in range(2000)])
    assert 1.5 <= ends.min() < 1.51
    assert 2.49 < ends.max() <= 2.5
    assert ends.std().item() == pytest.approx(1 / math.sqrt(12), rel=0.05)


def test_each_sample_may_have_its_own_random_end(tanh_field, starts):
    torch.manual_seed(0)
    block, steer = NeuralODE(tanh_field(3), Dopri5()), RandomEndTime(0.25)
    ends = steer.end(block.t0, block.t1, 4)
    solution = block.solve(starts(4, 3), t1=ends)
    assert solution.t.tolist() == pytest.approx(ends.tolist())
    assert len(set(ends.tolist())) == 4
    assert steer(solution, block.f) == 0


def test_ends_of_backward_spans_and_tensors_of_times():
    assert -1.2 <= RandomEndTime(0.2).end(0.0, -1.0) <= -0.8
    ends = RandomEndTime(0.1).end(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]), 3)
    assert ((ends - torch.tensor([1.0, 2.0, 3.0])).abs() <= 0.1).all()


@pytest.mark.parametrize("width", [0, -1.0, float("inf"), float("nan")])
def test_wrong_widths_are_named(width):
    with pytest.raises(ValueError, match="width: expected a positive number"):
        RandomEndTime(width)


def test_a_width_beyond_the_span_is_refused():
    with pytest.raises(ValueError, match="width: expected less than the span, 1, got 1"):
        RandomEndTime(1.0).end(0.0, 1.0)
