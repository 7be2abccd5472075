import math

import pytest
import torch
from torch import nn

from dise import (
    L1,
    L2,
    RK4,
    Dopri5,
    ErrorEstimate,
    Euler,
    KineticEnergy,
    NeuralODE,
    NoRegularizer,
    RandomEndTime,
    Regularizer,
    StiffnessEstimate,
    UnscaledErrorEstimate,
    WeightedErrorEstimate,
    solve,
)

ALL = [
    NoRegularizer(),
    L1(),
    L2(),
    KineticEnergy(),
    ErrorEstimate(),
    UnscaledErrorEstimate(),
    WeightedErrorEstimate(),
    StiffnessEstimate(),
    RandomEndTime(0.1),
]
every_regularizer = pytest.mark.parametrize("regularizer", ALL, ids=lambda r: type(r).__name__)


@pytest.fixture
def y0(starts):
    return starts(4, 3)


# ---- the interface


@every_regularizer
def test_a_regularizer_returns_a_differentiable_scalar(tanh_field, y0, regularizer):
    f = tanh_field(3)
    solution = NeuralODE(f, Dopri5()).solve(y0, accumulate=regularizer.accumulate)
    value = regularizer(solution, f)
    assert value.shape == ()
    assert value >= 0
    (solution.y.sum() + value).backward()
    assert all(p.grad.isfinite().all() for p in f.parameters())


@every_regularizer
def test_a_regularizer_needs_no_evaluation_of_f_and_leaves_the_solution_unchanged(tanh_field, y0, record, regularizer):
    plain, counted = record(tanh_field(3)), record(tanh_field(3))
    expected = solve(plain, y0, 0.0, 1.0, Dopri5())
    solution = solve(counted, y0, 0.0, 1.0, Dopri5(), accumulate=regularizer.accumulate)
    regularizer(solution, plain.f)
    assert counted.rows == plain.rows
    assert torch.equal(solution.y, expected.y)


@every_regularizer
def test_the_norm_of_no_parameters_is_0(regularizer):
    class Decay(nn.Module):
        def forward(self, t, y):
            return -y

    solution = solve(Decay(), torch.ones(2, 1), 0.0, 1.0, Dopri5(), accumulate=regularizer.accumulate)
    value = regularizer(solution, Decay())
    assert value.isfinite()
    if regularizer.accumulate is None and not isinstance(regularizer, ErrorEstimate):
        assert value == 0


@pytest.mark.parametrize("regularizer", [KineticEnergy(), UnscaledErrorEstimate()], ids=lambda r: type(r).__name__)
def test_a_missing_accumulate_is_named(regularizer):
    name = type(regularizer).__name__
    solution = solve(lambda t, y: -y, torch.ones(2, 1), 0.0, 1.0, Dopri5())
    for missing in (solution, None):
        with pytest.raises(ValueError, match=f"solution: {name} needs a solve made with accumulate={name}"):
            regularizer(missing, nn.Identity())


def test_the_base_class_is_abstract():
    with pytest.raises(NotImplementedError):
        Regularizer()(None, nn.Identity())


# ---- norms of parameters


@pytest.fixture
def linear():
    f = nn.Linear(2, 2)
    with torch.no_grad():
        f.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
        f.bias.copy_(torch.tensor([-0.5, 4.0]))
    return f


def test_l1_and_l2_are_sums_over_all_parameters(linear):
    assert L1()(None, linear) == 10.5
    assert L2()(None, linear) == 30.25
    assert NoRegularizer()(None, linear) == 0


def test_gradients_of_l1_and_l2(linear):
    (l1,) = torch.autograd.grad(L1()(None, linear), linear.bias)
    (l2,) = torch.autograd.grad(L2()(None, linear), linear.bias)
    assert l1.tolist() == [-1, 1]
    assert l2.tolist() == [-1, 8]


# ---- kinetic energy


def kinetic_energy(f, y0, t0, t1, integrator):
    return KineticEnergy()(solve(f, y0, t0, t1, integrator, accumulate=KineticEnergy.accumulate), nn.Identity())


@pytest.mark.parametrize("integrator", [Euler(3), RK4(2), Dopri5()], ids=str)
@pytest.mark.parametrize("t1", [2.5, -2.5])
def test_kinetic_energy_of_a_constant_field(integrator, t1):
    """‖(3, 4)‖² · |T|, forwards and backwards."""
    value = kinetic_energy(lambda t, y: torch.tensor([[3.0, 4.0]]).expand_as(y), torch.zeros(5, 2), 0.0, t1, integrator)
    assert value.item() == pytest.approx(25 * 2.5)


@pytest.mark.parametrize(("integrator", "accuracy"), [(RK4(30), 1e-5), (Dopri5(rtol=1e-9, atol=1e-9), 1e-7)])
def test_kinetic_energy_of_a_linear_field(integrator, accuracy):
    """∫ (λ y0 e^(λt))² dt = λ y0² (e^(2λT) − 1) / 2, mean over samples with different spans."""
    y0, t1 = torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
    expected = sum(0.7 * y**2 * math.expm1(1.4 * t) / 2 for y, t in [(1, 1), (2, 0.5)]) / 2
    value = kinetic_energy(lambda t, y: 0.7 * y, y0, 0.0, t1, integrator)
    assert value.item() == pytest.approx(expected, rel=accuracy)


def test_gradient_of_kinetic_energy():
    """d/dc ∫ c² dt = 2 c T."""
    c = torch.tensor(3.0, requires_grad=True)
    kinetic_energy(lambda t, y: c * torch.ones_like(y), torch.zeros(2, 1), 0.0, 2.0, Dopri5()).backward()
    assert c.grad.item() == pytest.approx(12)


# ---- error estimate


def test_error_estimate_is_the_mean_of_solution_error(tanh_field, y0):
    solution = solve(tanh_field(3), y0, 0.0, 1.0, Dopri5())
    assert ErrorEstimate()(solution, nn.Identity()) == solution.error.mean()


def test_error_estimate_is_the_sum_over_accepted_steps(tanh_field, y0):
    """The summand is the RMS over features of err / (atol + rtol max(|y|, |y_next|)); accepted means at most 1."""
    ratios = []

    def note(step):
        scale = 1e-5 + 1e-4 * torch.maximum(step.y.abs(), step.y_next.abs())
        ratios.extend((step.error() / scale).square().mean(1).sqrt().tolist())
        return step.dt

    integrator = Dopri5(rtol=1e-4, atol=1e-5, first_step="span")
    solution = solve(tanh_field(3), y0, 0.0, 1.0, integrator, accumulate=note)
    accepted = [ratio for ratio in ratios if ratio <= 1]
    assert len(accepted) < len(ratios)
    assert ErrorEstimate()(solution, nn.Identity()).item() == pytest.approx(sum(accepted) / 4)


def test_unscaled_error_estimate_is_the_norm_of_the_error(tanh_field, y0):
    """In one accepted step with rtol = 0 the scaled estimate is ‖err‖₂ / (√F atol)."""
    integrator = Dopri5(rtol=0, atol=100.0, first_step="span")
    solution = solve(tanh_field(3), y0, 0.0, 1.0, integrator, accumulate=UnscaledErrorEstimate.accumulate)
    raw = UnscaledErrorEstimate()(solution, nn.Identity()).item()
    assert raw == pytest.approx(solution.error.mean().item() * 3**0.5 * 100)


@pytest.mark.parametrize("t1", [1.0, torch.tensor([1.0, 0.0, 2.0])], ids=["", "beside an empty span"])
@pytest.mark.parametrize("integrator", [Euler(2), RK4()], ids=str)
def test_a_method_without_error_estimate_is_refused(integrator, t1):
    solution = solve(lambda t, y: -y, torch.ones(3, 1), 0.0, t1, integrator)
    assert solution.error[0].isnan()
    with pytest.raises(ValueError, match="solution: its integrator embeds no error estimate"):
        ErrorEstimate()(solution, nn.Identity())


def test_a_method_without_error_estimate_cannot_accumulate_one():
    with pytest.raises(ValueError, match="no embedded error estimate"):
        solve(lambda t, y: -y, torch.ones(3, 1), 0.0, 1.0, Euler(), accumulate=UnscaledErrorEstimate.accumulate)


def test_error_estimate_needs_a_solution():
    with pytest.raises(ValueError, match="solution: ErrorEstimate needs the solve's Solution"):
        ErrorEstimate()(None, nn.Identity())


@pytest.mark.parametrize("regularizer", [ErrorEstimate(), UnscaledErrorEstimate()], ids=lambda r: type(r).__name__)
def test_training_with_an_error_estimate_lowers_nfe(tanh_field, y0, regularizer):
    """The loss also keeps y(1) near its initial value; otherwise the field could simply vanish."""
    block = NeuralODE(tanh_field(3), Dopri5(rtol=1e-5, atol=1e-5))
    before = block.solve(y0)
    target, weight = before.y.detach(), 1.0 if isinstance(regularizer, ErrorEstimate) else 1e5
    optimizer = torch.optim.Adam(block.parameters(), lr=0.05)
    for _ in range(40):
        solution = block.solve(y0, accumulate=regularizer.accumulate)
        loss = (solution.y - target).square().mean() + weight * regularizer(solution, block.f)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = block.solve(y0)
    assert after.error.mean() < before.error.mean() / 2
    assert after.nfe.sum() < before.nfe.sum()
