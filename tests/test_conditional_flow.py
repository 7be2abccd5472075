"""Flows with conditions, with points of any shape, and with estimated divergences, against closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import dise
from dise import (
    DiagonalNormal,
    Dopri5,
    ExactDivergence,
    Flow,
    Guided,
    HutchinsonDivergence,
    Multistep,
    NeuralODE,
    PathField,
    StraightPath,
)
from dise.flow import AugmentedField

DOUBLE = torch.float64
TIGHT = Dopri5(rtol=1e-9, atol=1e-9)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def standard(*shape):
    return DiagonalNormal(torch.zeros(shape, dtype=DOUBLE), torch.ones(shape, dtype=DOUBLE))


class Shifted(nn.Module):
    """dz/dt = rate · z + shift, so that the data are N(shift (e^rate − 1)/rate, e^(2 rate))."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros((), dtype=DOUBLE))

    def forward(self, t, z, rate, shift):
        column = (-1, *(1,) * (z.ndim - 1))
        return rate.reshape(column) * z + shift.reshape(column)


RATE, SHIFT = torch.tensor([0.5, -0.3, 1.0], dtype=DOUBLE), torch.tensor([1.0, 0.0, -2.0], dtype=DOUBLE)


def gaussian_log_prob(x, rate, shift):
    mean, scale = shift * (rate.exp() - 1) / rate, rate.exp()
    distribution = torch.distributions.Normal(mean[:, None], scale[:, None])
    return distribution.log_prob(x.flatten(1)).sum(1)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 2), (2, 3)])
@pytest.mark.parametrize("divergence", [None, ExactDivergence(chunk=2), ExactDivergence(mode="forward")], ids=str)
def test_conditional_densities_of_points_of_any_shape(shape, divergence):
    flow = Flow(Shifted(), standard(*shape), TIGHT, divergence=divergence)
    x = noise(3, *shape)
    assert_close(flow.log_prob(x, (RATE, SHIFT)), gaussian_log_prob(x, RATE, SHIFT))
    assert flow.dim == math.prod(shape)
    one = flow.at((RATE[:1], SHIFT[:1]))
    assert_close(one.log_prob(x), gaussian_log_prob(x, RATE[:1].expand(3), SHIFT[:1].expand(3)))


def test_points_that_share_a_row():
    flow = Flow(Shifted(), standard(1, 2), TIGHT)
    x = noise(3, 4, 1, 2)
    together = flow.log_prob(x, (RATE, SHIFT))
    assert together.shape == (3, 4)
    for i in range(4):
        assert_close(together[:, i], gaussian_log_prob(x[:, i], RATE, SHIFT))


def test_conditional_samples_and_their_density():
    flow = Flow(Shifted(), standard(2), TIGHT)
    torch.manual_seed(0)
    x, log_prob = flow.sample(3, (RATE, SHIFT), with_log_prob=True)
    assert_close(log_prob, gaussian_log_prob(x, RATE, SHIFT))
    torch.manual_seed(0)
    assert_close(flow.sample(3, (RATE, SHIFT)), x)
    torch.manual_seed(0)
    assert_close(flow.at((RATE, SHIFT)).sample(3), x)
    conditioned = flow.at((RATE, SHIFT))
    for draw in (conditioned.sample, conditioned.rsample):
        torch.manual_seed(0)
        pair = draw(3, with_log_prob=True)
        assert_close(pair, (x, log_prob))
    half = flow.at((RATE, SHIFT)).until(0.5)
    assert_close(half.log_prob(x), gaussian_log_prob(x, RATE * 0.5, SHIFT * 0.5))


def test_rows_with_conditions_are_independent_of_their_batch():
    flow = Flow(Shifted(), standard(2), Dopri5(rtol=1e-3, atol=1e-3))
    x = noise(3, 2)
    whole = flow.log_prob(x, (RATE, SHIFT))
    for i in range(3):
        assert_close(flow.log_prob(x[i : i + 1], (RATE[i : i + 1], SHIFT[i : i + 1]))[0], whole[i], rtol=1e-12, atol=0)


def test_gradients_reach_the_conditions():
    flow = Flow(Shifted(), standard(2), TIGHT)
    x, rate = noise(3, 2), RATE.clone().requires_grad_()
    ours = torch.autograd.grad(flow.log_prob(x, (rate, SHIFT)).sum(), rate)
    theirs = torch.autograd.grad(gaussian_log_prob(x, rate, SHIFT).sum(), rate)
    assert_close(ours, theirs)


class Net(nn.Module):
    """A nonlinear field of points of any shape with one condition."""

    def __init__(self, features):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(features + 2, 32), nn.Tanh(), nn.Linear(32, features)).double()

    def forward(self, t, z, condition):
        rows = z.flatten(1)
        further = torch.stack([t.reshape(-1).to(z).expand(len(z)), condition], 1)
        return self.layers(torch.cat([rows, further], 1)).reshape(z.shape)


def jacobian_trace(f, t, z, condition):
    each = [
        torch.autograd.functional.jacobian(lambda y, i=i: f(t, y, condition[i : i + 1]), z[i : i + 1])
        .reshape(z[i].numel(), z[i].numel())
        .trace()
        for i in range(len(z))
    ]
    return torch.stack(each)[:, None]


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("how", [ExactDivergence(), ExactDivergence(chunk=4), ExactDivergence(mode="forward")], ids=str)
def test_exact_divergences_are_the_jacobians_trace(how, enabled):
    f, z, condition = Net(6), noise(4, 2, 3), noise(4, seed=1)
    t = torch.full((4, 1, 1), 0.3, dtype=DOUBLE)
    with torch.set_grad_enabled(enabled):
        dz, change = AugmentedField(f, how, 2)(t, (z, torch.zeros(4, 1)), condition)
    assert_close(-change, jacobian_trace(f, t[:1], z, condition))
    assert_close(dz, f(t, z, condition))
    assert change.requires_grad is enabled


def trace_by_hand(dz, z):
    """[n] sums of ∂f_i/∂z_i, by a backward pass per coordinate."""
    rows = [torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(z.shape[1])]
    return torch.stack(rows).sum(0)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_backward_passes_that_torch_maps_over_wrongly_are_taken_one_by_one(batch):
    """Group normalization: with a graph torch 2.13 raises, or gives wrong derivatives where sizes happen to fit."""
    layers = nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(1, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    z = noise(batch, 4).requires_grad_()
    expected = trace_by_hand(layers(z), z)
    for how in (ExactDivergence(), ExactDivergence(chunk=3), ExactDivergence(chunk=1)):
        found = how(lambda t, z: layers(z), torch.zeros(batch, 1), z, (), 1)[1].squeeze(1)
        assert_close(found, expected)
        assert_close(*(torch.autograd.grad(x.sum(), z, retain_graph=True)[0] for x in (found, expected)))


class Square(torch.autograd.Function):
    """x², with a backward pass that reads a value, so that it cannot be mapped over."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        if not math.isfinite(gradient.sum().item()):
            raise RuntimeError("not finite")
        return 2 * gradient * x


@pytest.mark.parametrize("enabled", [True, False])
def test_backward_passes_that_cannot_be_mapped_over_are_taken_one_by_one(enabled):
    z = noise(3, 4)
    with torch.set_grad_enabled(enabled):
        found = ExactDivergence()(lambda t, z: Square.apply(z), torch.zeros(3, 1), z, (), 1)[1]
    assert_close(found.detach().squeeze(1), 2 * z.sum(1))


def test_errors_of_a_backward_pass_are_raised():
    with pytest.raises(RuntimeError, match="not finite"):
        ExactDivergence()(lambda t, z: Square.apply(z) * math.inf, torch.zeros(3, 1), noise(3, 4), (), 1)


@pytest.mark.parametrize("shape", [(2, 3), (6, 3), (40_000, 3), (5, 2, 3)])
def test_one_evaluation_of_f_per_divergence(shape, record):
    f = record(lambda t, z: torch.sin(z))
    for how in (ExactDivergence(), ExactDivergence(chunk=2), HutchinsonDivergence(5)):
        f.times.clear()
        z = noise(*shape)
        _, found = how(f, torch.zeros(()), z, how.probes(z, 1), 1)
        assert f.calls == 1
        assert_close(found.squeeze(-1), z.cos().sum(-1))  # exact for both, since the Jacobian is diagonal


@pytest.mark.parametrize(
    ("shape", "graph", "passes"),
    [((8, 6), False, 1), ((8, 3), False, 3), ((1024, 6), False, 6), ((1024, 6), True, 1), ((4, 256, 6), False, 6)],
)
def test_backward_passes_are_mapped_over_where_that_is_fast(shape, graph, passes):
    seen = []

    def f(t, z):
        dz = torch.sin(z)
        dz.register_hook(lambda gradient: seen.append(1))
        return dz

    with torch.set_grad_enabled(graph):
        _, found = ExactDivergence()(f, torch.zeros(()), noise(*shape), (), 1)
    assert len(seen) == passes
    assert_close(found.detach().squeeze(-1), noise(*shape).cos().sum(-1))


@pytest.mark.parametrize("how", [ExactDivergence(), ExactDivergence(mode="forward"), HutchinsonDivergence()], ids=str)
def test_complex_points_have_no_divergence(how):
    z = noise(2, 3).to(torch.complex128)
    with pytest.raises(TypeError, match=r"z: expected real points, got torch\.complex128"):
        how(lambda t, z: z * z, torch.zeros(()), z, how.probes(z, 1), 1)


@pytest.mark.parametrize("divergence", [None, HutchinsonDivergence(2)], ids=str)
@pytest.mark.parametrize("enabled", [True, False])
def test_derivatives_of_many_points_are_taken_in_parts(divergence, enabled, record):
    """Without gradients: what a graph keeps, it keeps anyway."""
    f, number = record(Net(3)), 9000
    field = AugmentedField(f, divergence, 1)
    t, z, condition = torch.rand(number, 1, dtype=DOUBLE), noise(number, 3), noise(number, seed=1)
    further = (condition, *field.probes(z))
    with torch.set_grad_enabled(enabled):
        dz, change = field(t, (z, torch.zeros(number, 1)), *further)
    assert f.calls == (1 if enabled else 4)
    assert_close(dz, Net(3)(t, z, condition))
    some = slice(4321, 4326)
    alone = AugmentedField(Net(3), divergence, 1)(t[some], (z[some], torch.zeros(5, 1)), *(x[some] for x in further))
    assert_close((dz[some], change[some]), alone)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(distribution):
    f, z, condition = Net(3), noise(2, 3), noise(2, seed=1)
    how = HutchinsonDivergence(4000, distribution, torch.Generator().manual_seed(0))
    field = AugmentedField(f, how, 1)
    (directions,) = field.probes(z)
    assert directions.shape == (2, 4000, 3)
    t = torch.full((2, 1), 0.3, dtype=DOUBLE)
    _, change = field(t, (z, torch.zeros(2, 1)), condition, directions)
    exact = jacobian_trace(f, t[:1], z, condition)
    each = torch.stack([field(t, (z, None), condition, directions[:, i : i + 1])[1] for i in range(200)])
    error = each.std(0) / 4000**0.5
    assert ((-change - exact).abs() < 4 * error).all()


def test_probes_are_drawn_once_per_solve_from_the_generator():
    """With the same draws the solve integrates the same function: equal values, and far from an average's."""
    x, condition = noise(5, 3), noise(5, seed=1)

    def density(seed, number=1):
        how = HutchinsonDivergence(number, generator=torch.Generator().manual_seed(seed))
        return Flow(Net(3), standard(3), TIGHT, divergence=how).log_prob(x, condition)

    assert torch.equal(density(0), density(0))
    assert not torch.allclose(density(0), density(1))
    exact = Flow(Net(3), standard(3), TIGHT).log_prob(x, condition)
    averaged = torch.stack([density(seed, 8) for seed in range(12)])
    assert ((averaged.mean(0) - exact).abs() < 4 * averaged.std(0) / 12**0.5).all()


def test_one_direction_of_a_diagonal_field_is_exact():
    """With ε of ±1, εᵀ J ε is the trace if J is diagonal."""
    flow = Flow(Shifted(), standard(4), TIGHT, divergence=HutchinsonDivergence())
    x = noise(3, 4)
    assert_close(flow.log_prob(x, (RATE, SHIFT)), gaussian_log_prob(x, RATE, SHIFT))


def test_training_by_an_estimate_reaches_the_parameters():
    flow = Flow(Net(3), standard(3), dise.RK4(4), divergence=HutchinsonDivergence())
    flow.log_prob(noise(5, 3), noise(5, seed=1)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in flow.parameters())


def mixture(t, x):
    """x̂ for data ±2 with deviation ½ in each of D coordinates along a straight path."""
    t = t.to(x)
    variance = t**2 / 4 + (1 - t) ** 2
    mean = 2 * torch.tanh(2 * t * x / variance)
    return mean + t / 4 / variance * (x - t * mean)


@pytest.mark.parametrize("dim", [2, 16])
def test_the_density_of_a_mixture_by_its_exact_field(dim):
    flow = Flow(PathField(mixture, StraightPath(), "data"), standard(dim), TIGHT, t1=1 - 1e-9)
    x = torch.where(noise(6, dim) > 0, 2.0, -2.0) + noise(6, dim, seed=1) / 2
    parts = [torch.distributions.Normal(center, 0.5).log_prob(x) for center in (-2.0, 2.0)]
    expected = (torch.logaddexp(*parts) - math.log(2)).sum(1)
    with torch.no_grad():
        assert_close(flow.log_prob(x), expected, rtol=0, atol=1e-5)


def test_a_guided_flow_has_a_density_too():
    class Field(nn.Module):
        def forward(self, t, z, rate):
            return rate[:, None] * z

    guided = Guided(Field(), 3.0, null=(0.0,))  # rate · 3 in effect
    flow = Flow(guided, standard(2), TIGHT)
    x = noise(3, 2)
    assert_close(flow.log_prob(x, RATE), gaussian_log_prob(x, 3 * RATE, 0 * SHIFT))


def test_multistep_methods_sample_and_score():
    flow = Flow(Shifted(), standard(2), Multistep.adams(200, 3))
    x, log_prob = flow.sample(3, (RATE, SHIFT), with_log_prob=True)
    assert_close(log_prob, gaussian_log_prob(x, RATE, SHIFT), rtol=1e-4, atol=1e-4)


def test_a_block_passes_its_arguments_on():
    block = NeuralODE(Shifted(), TIGHT)
    y0 = noise(3, 2)
    expected = block.solve(y0, args=(), sample_args=(RATE, SHIFT)).y
    assert torch.equal(block(y0, sample_args=(RATE, SHIFT)), expected)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda f: f.log_prob(noise(3, 2), (RATE, SHIFT[:2])),
            ValueError,
            r"condition: expected 3 rows or one for all",
        ),
        (lambda f: f.log_prob(noise(3, 2), 1.0), TypeError, "condition: expected a tensor or a tuple of tensors"),
        (lambda f: f.log_prob(noise(3, 3), (RATE, SHIFT)), ValueError, r"x: expected points \[B, ..., 2\]"),
        (lambda f: HutchinsonDivergence(0), ValueError, "number: expected a whole number"),
        (lambda f: HutchinsonDivergence(1, "normal"), ValueError, "distribution: expected 'rademacher' or"),
        (lambda f: ExactDivergence(chunk=0), ValueError, "chunk: expected a whole number"),
        (lambda f: ExactDivergence(mode="both"), ValueError, "mode: expected 'reverse' or 'forward'"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(Flow(Shifted(), standard(2), TIGHT))


def test_candidates_of_a_conditional_block_are_run():
    """k1 of a block with conditions is f at the start under these conditions."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = NeuralODE(Shifted(), TIGHT)

        def forward(self, x):
            return self.block(x[:, :2], sample_args=(x[:, 2], x[:, 3]))

    x = torch.cat([noise(3, 2), RATE[:, None], SHIFT[:, None]], 1)
    outcomes = dise.run_candidates(Model().eval(), [(x, torch.zeros(3))], [dise.Euler(1), dise.Euler(2)])
    assert_close(outcomes.k1, Shifted()(None, x[:, :2], RATE, SHIFT).detach())
    assert_close(outcomes.output[:, 0], (x[:, :2] + outcomes.k1))
