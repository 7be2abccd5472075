"""Regularizers that evaluate derivatives of f along the path, against closed forms and finite differences."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import (
    RK4,
    Adams,
    DiagonalNormal,
    Dopri5,
    Dynamic,
    Euler,
    Flow,
    HutchinsonDivergence,
    JacobianNorm,
    KineticEnergy,
    PointRegularizer,
    Statistic,
    TaylorSpeed,
    TransportCost,
    solve,
)

DOUBLE = torch.float64
TIGHT = Dopri5(rtol=1e-8, atol=1e-8)
ROTATION = torch.tensor([[0.0, -3.0], [3.0, 0.0]], dtype=DOUBLE)  # ‖h‖ is constant, ‖h⁽ᵏ⁾‖ = 3ᵏ ‖h‖


def value_of(regularizer, f, y0, t1, integrator=TIGHT, **options):
    solution = solve(f, y0, 0.0, t1, integrator, accumulate=regularizer.accumulate, **options)
    return regularizer(solution, nn.Identity())


@pytest.mark.parametrize("t1", [2.0, -2.0])
@pytest.mark.parametrize("integrator", [TIGHT, RK4(64), Euler(2), Adams(rtol=1e-8, atol=1e-8)], ids=str)
def test_jacobian_norm_of_a_linear_field(integrator, t1):
    """‖A‖_F² |T|, whatever the path."""
    a = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=DOUBLE)
    value = value_of(JacobianNorm(None), lambda t, y: y @ a.T, torch.ones(3, 2, dtype=DOUBLE), t1, integrator)
    assert value.item() == pytest.approx(a.square().sum().item() * 2)


def test_probes_estimate_the_jacobian_norm_without_bias():
    """One row per sample, 4,000 samples: the mean of an estimate whose standard deviation is below 2 ‖A‖²."""
    torch.manual_seed(0)
    a = torch.randn(4, 4, dtype=DOUBLE)
    value = value_of(JacobianNorm(), lambda t, y: y @ a.T, torch.zeros(4000, 4, dtype=DOUBLE), 1.0, Euler(1))
    assert value.item() == pytest.approx(a.square().sum().item(), rel=0.1)


@pytest.mark.parametrize("order", [2, 3])
def test_taylor_speed_of_a_rotation(order):
    y0 = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=DOUBLE)
    value = value_of(TaylorSpeed(order), lambda t, y: y @ ROTATION.T, y0, torch.tensor([1.0, 0.5], dtype=DOUBLE))
    assert value.item() == pytest.approx(9**order * (1 * 1.0 + 4 * 0.5) / 2, rel=1e-6)


@pytest.mark.parametrize("order", [2, 3])
def test_taylor_speed_sees_the_time_derivative(order):
    """h' = cos t: ∫₀² sin² t dt = 1 − sin(4)/4 for order 2, ∫₀² cos² t dt = 1 + sin(4)/4 for order 3."""
    expected = 1 - math.sin(4) / 4 if order == 2 else 1 + math.sin(4) / 4
    value = value_of(TaylorSpeed(order), lambda t, y: torch.cos(t) * torch.ones_like(y), torch.zeros(1, 1), 2.0)
    assert value.item() == pytest.approx(expected, rel=1e-4)


class Tanh(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 2).to(DOUBLE)

    def forward(self, t, y, *further):
        return torch.tanh(self.layer(torch.cat([y, t.expand(*y.shape[:-1], 1)], -1))) * (further[0] if further else 1)


@pytest.mark.parametrize("regularizer", [JacobianNorm(None), TaylorSpeed(2), TaylorSpeed(3)], ids=str)
@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_gradients_by_finite_differences(regularizer, gradient):
    f, y0, direction = Tanh(), torch.tensor([[0.3, -0.2], [1.0, 0.5]], dtype=DOUBLE), 1e-6

    def value():
        return value_of(regularizer, f, y0, 1.0, RK4(8), gradient=gradient)

    value().backward()
    along = sum(p.grad.sum().item() for p in f.parameters())
    values = []
    for sign in (1, -2):
        with torch.no_grad():
            for p in f.parameters():
                p += sign * direction
            values.append(value().item())
    assert along == pytest.approx((values[0] - values[1]) / (2 * direction), rel=1e-5)


@pytest.mark.parametrize("regularizer", [JacobianNorm(None), TaylorSpeed(2)], ids=str)
def test_samples_have_their_own_arguments_spans_and_integrators(regularizer):
    f, y0 = Tanh(), torch.randn(4, 2, dtype=DOUBLE)
    factor, t1 = torch.tensor([[1.0], [2.0], [-1.0], [0.5]], dtype=DOUBLE), torch.tensor([1.0, 2.0, 0.0, 0.5])
    policy = Dynamic([RK4(4), TIGHT], lambda h0, k1: torch.stack([h0[:, 0], -h0[:, 0]], 1))
    for integrator in (TIGHT, policy):

        def solved(rows, integrator=integrator):
            options = {"sample_args": (factor[rows],), "accumulate": regularizer.accumulate}
            return solve(f, y0[rows], 0.0, t1[rows], integrator, **options).accumulated

        together = solved(slice(None))
        assert_close(together, torch.cat([solved(slice(i, i + 1)) for i in range(4)]), rtol=1e-9, atol=1e-9)
        assert together[2] == 0


def test_a_state_of_several_tensors_is_one_vector():
    y0 = {"q": torch.tensor([[1.0]], dtype=DOUBLE), "p": torch.tensor([[0.5]], dtype=DOUBLE)}
    value = value_of(JacobianNorm(None), lambda t, y: {"q": y["p"], "p": -4 * y["q"]}, y0, 3.0)
    assert value.item() == pytest.approx(17 * 3)


def test_one_system():
    value = value_of(JacobianNorm(None), lambda t, y: 2 * y, torch.ones(2, 3), 1.0, batched=False)
    assert value.item() == pytest.approx(4 * 6)


def test_evaluations_of_a_statistic_are_no_steps_and_work_without_gradients():
    y0 = torch.randn(4, 2, dtype=DOUBLE)
    with torch.no_grad():
        plain = solve(Tanh(), y0, 0.0, 1.0, TIGHT)
        both = {"speed": TaylorSpeed().accumulate, "largest": Statistic(TaylorSpeed().accumulate, "max")}
        counted = solve(Tanh(), y0, 0.0, 1.0, TIGHT, accumulate=both)
    assert torch.equal(plain.y, counted.y)
    assert torch.equal(plain.nfe, counted.nfe)
    assert (counted.accumulated["speed"] >= counted.accumulated["largest"]).all()


def test_where_f_cannot_be_evaluated_is_said():
    y0, speed = torch.randn(4, 2, dtype=DOUBLE), TaylorSpeed().accumulate
    with pytest.raises(ValueError, match="accumulate: a statistic evaluates f, whose derivatives cannot be compiled"):
        solve(Tanh(), y0, 0.0, 1.0, TIGHT, accumulate=speed, compile=True)
    policy = Dynamic([RK4(4), TIGHT], lambda h0, k1: h0)
    with pytest.raises(ValueError, match=r"accumulate: .* a part of the batch with Dynamic; drop_finished=False"):
        solve(Tanh(), y0, 0.0, 1.0, policy, accumulate=speed, drop_finished=False)


@pytest.mark.parametrize("probes", [0, 1.0, True, -1])
def test_wrong_numbers_of_probes_are_named(probes):
    with pytest.raises(ValueError, match="probes: expected a whole number of at least 1"):
        JacobianNorm(probes)


@pytest.mark.parametrize("order", [1, 4, True, "2"])
def test_wrong_orders_are_named(order):
    with pytest.raises(ValueError, match="order: expected 2 or 3"):
        TaylorSpeed(order)


# ---- of a flow's points


def flow_of(f, **options):
    base = DiagonalNormal(torch.zeros(2, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE))
    return Flow(f, base, TIGHT, **options)


def of_points(flow, x, regularizer):
    _, solution = flow.solve(x, accumulate=regularizer.accumulate)
    return regularizer(solution, flow.f)


@pytest.mark.parametrize("divergence", [None, HutchinsonDivergence(1)], ids=["exact", "probes"])
@pytest.mark.parametrize("regularizer", [JacobianNorm(None), TaylorSpeed(2), KineticEnergy()], ids=str)
def test_regularizers_of_a_flow_are_those_of_its_points(regularizer, divergence):
    f, x = Tanh(), torch.randn(5, 2, dtype=DOUBLE)
    plain = solve(f, x, 1.0, 0.0, TIGHT, accumulate=regularizer.accumulate).accumulated.mean()
    value = of_points(flow_of(f, divergence=divergence), x, PointRegularizer(regularizer, 2))
    assert_close(value, plain, rtol=1e-6, atol=1e-8)


def test_points_that_share_a_row_are_averaged():
    a, x = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=DOUBLE), torch.randn(3, 7, 2, dtype=DOUBLE)

    class Linear(nn.Module):
        def forward(self, t, z):
            return z @ a.T

    value = of_points(flow_of(Linear()), x, PointRegularizer(JacobianNorm(None), 2))
    assert value.item() == pytest.approx(a.square().sum().item())


def test_wrong_uses_of_a_points_regularizer_are_named():
    with pytest.raises(TypeError, match="regularizer: expected one that the solver accumulates"):
        PointRegularizer("jacobian", 2)
    speed = PointRegularizer(TaylorSpeed(), 2).accumulate
    with pytest.raises(TypeError, match="f: expected the field of a flow's densities, got function"):
        solve(lambda t, y: -y, torch.randn(1, 3), 0.0, 1.0, TIGHT, accumulate=speed)


def test_the_sum_of_a_transport_cost_is_its_mean_times_the_batch():
    x = torch.randn(5, 2, dtype=DOUBLE)
    mean, total = (of_points(flow_of(Tanh()), x, TransportCost(2, reduce=reduce)) for reduce in ("mean", "sum"))
    assert_close(total, 5 * mean)
