import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchdiffeq
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.testing import assert_close

from dise import RK4, Dopri5, ErrorEstimate, Euler, KineticEnergy, SolveError, solve
from dise.flow import AugmentedField, DiagonalNormal, Flow, FlowSampler, TransportCost, divergence
from dise.select import find_block

DOUBLE = torch.float64
TIGHT = Dopri5(rtol=1e-9, atol=1e-9)


class Linear(nn.Module):
    """dz/dt = A z, divergence tr A."""

    def __init__(self, A):
        super().__init__()
        self.A = nn.Parameter(torch.as_tensor(A, dtype=DOUBLE))

    def forward(self, t, z):
        return z @ self.A.T


class TanhNet(nn.Module):
    """dz/dt = V tanh(W z + b + c t): nonlinear and time-dependent."""

    def __init__(self, dim, *, hidden=8, gain=2.0, seed=0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        shapes = {"W": (hidden, dim), "V": (dim, hidden), "b": (hidden,), "c": (hidden,)}
        for name, shape in shapes.items():
            scale = gain / shape[-1] ** 0.5
            self.register_parameter(name, nn.Parameter(scale * torch.randn(shape, generator=draw, dtype=DOUBLE)))

    def forward(self, t, z):
        return torch.tanh(z @ self.W.T + self.b + self.c * t) @ self.V.T


class ClosedForm(TanhNet):
    """`TanhNet` with its divergence in closed form; `calls` logs each method called, with the shapes of t and z."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.calls = []

    def forward(self, t, z):
        self.calls.append(("forward", t.shape, z.shape))
        return super().forward(t, z)

    def with_divergence(self, t, z):
        self.calls.append(("with_divergence", t.shape, z.shape))
        h = torch.tanh(z @ self.W.T + self.b + self.c * t)
        return h @ self.V.T, ((1 - h**2) * (self.W * self.V.T).sum(1)).sum(-1, keepdim=True)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def standard(dim, scale=1.0):
    return DiagonalNormal(torch.zeros(dim, dtype=DOUBLE), torch.full((dim,), scale, dtype=DOUBLE))


def flow_of(f, dim, integrator=TIGHT, **options):
    return Flow(f, standard(dim), integrator, **options)


A = [[0.3, -1.0, 0.2], [0.8, -0.4, 0.0], [0.1, 0.5, -0.6]]
layouts = pytest.mark.parametrize(
    ("shape", "batched"), [((6, 3), True), ((2, 3, 3), True), ((1, 2, 3, 3), True), ((6, 3), False), ((2, 3, 3), False)]
)


# ---- densities known in closed form


@layouts
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (0.5, -1.5)])
def test_log_prob_of_a_linear_flow_is_that_of_the_transformed_gaussian(shape, batched, t0, t1):
    """z ~ N(m, S) becomes N(e^(AT) m, e^(AT) S e^(AT)ᵀ)."""
    mean, scale = noise(3, seed=1), torch.tensor([0.5, 1.0, 1.5], dtype=DOUBLE)
    flow = Flow(Linear(A), DiagonalNormal(mean, scale), TIGHT, t0=t0, t1=t1, batched=batched)
    E = torch.linalg.matrix_exp((t1 - t0) * torch.tensor(A, dtype=DOUBLE))
    expected = MultivariateNormal(E @ mean, E @ torch.diag(scale**2) @ E.T)
    x = noise(*shape)
    assert_close(flow.log_prob(x), expected.log_prob(x), rtol=0, atol=1e-7)
    assert torch.equal(flow(x), flow.log_prob(x))


def test_the_log_density_of_a_linear_flow_changes_by_its_trace():
    flow = flow_of(Linear(A), 3, t0=0.5, t1=2.5)
    _, solution = flow.solve(noise(4, 3))
    z, change = solution.y
    assert (z.shape, change.shape) == ((4, 3), (4, 1))
    assert_close(change, torch.full_like(change, -0.7 * 2.0))


def test_log_prob_of_a_nonlinear_flow():
    """dz/dt = −z³/2 takes z to x = z/√(1 + z²T), so z = x/√(1 − x²T) and dz/dx = (1 − x²T)^(−3/2)."""

    class Cubic(nn.Module):
        def forward(self, t, z):
            return -(z**3) / 2

    x, T = torch.linspace(-0.6, 0.6, 9, dtype=DOUBLE)[:, None], 2.0
    z, slope = x / (1 - T * x**2).sqrt(), (1 - T * x**2) ** -1.5
    expected = (Normal(0, 1).log_prob(z) + slope.log()).squeeze(1)
    assert_close(flow_of(Cubic(), 1, t1=T).log_prob(x), expected, rtol=0, atol=1e-7)


def test_the_density_integrates_to_1():
    flow = flow_of(TanhNet(2), 2, Dopri5(rtol=1e-6, atol=1e-6))
    axis = torch.linspace(-8, 8, 121, dtype=DOUBLE)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = flow.log_prob(grid[None]).exp().sum() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-4)


# ---- torchdiffeq


@pytest.mark.parametrize("tol", [1e-3, 1e-5, 1e-7])
def test_one_system_matches_torchdiffeq_with_an_autograd_trace(tol):
    f, x = TanhNet(3), noise(32, 3)
    calls = 0

    def augmented(t, state):
        nonlocal calls
        calls += 1
        z = state[0].detach().requires_grad_()
        dz = f(t, z)
        rows = [torch.autograd.grad(dz[:, i].sum(), z, retain_graph=True)[0][:, i] for i in range(3)]
        return dz.detach(), -sum(rows)[:, None]

    t = torch.tensor([2.0, 0.0], dtype=DOUBLE)
    # step_t ends the last step at t0, which torchdiffeq would otherwise step past
    options = {"rtol": tol, "atol": tol, "method": "dopri5", "options": {"step_t": t[1:]}}
    z, change = torchdiffeq.odeint(augmented, (x, torch.zeros(32, 1, dtype=DOUBLE)), t, **options)
    expected = Independent(Normal(torch.zeros(3, dtype=DOUBLE), 1), 1).log_prob(z[-1]) - change[-1, :, 0]

    flow = flow_of(f, 3, Dopri5(rtol=tol, atol=tol), t1=2.0, batched=False)
    with torch.no_grad():
        log_prob, solution = flow.solve(x)
    assert solution.nfe == calls
    assert_close(log_prob, expected, rtol=0, atol=1e-9)


# ---- the batch: each row has its own step sizes, which the points of a row share


@pytest.mark.parametrize("field", [TanhNet, ClosedForm])
def test_each_set_of_points_is_solved_as_one_system(field):
    flow, x = flow_of(field(2), 2, Dopri5(rtol=1e-5, atol=1e-5), t1=2.0), noise(5, 7, 2)
    x = x * torch.logspace(-1, 0.7, 5, dtype=DOUBLE)[:, None, None]  # so that sets need different numbers of steps
    together, solution = flow.solve(x)
    flow.block.options = replace(flow.block.options, batched=False)
    alone, solutions = zip(*(flow.solve(each) for each in x), strict=True)
    assert solution.nfe.tolist() == [s.nfe.item() for s in solutions]
    assert len(set(solution.nfe.tolist())) > 1
    assert_close(together, torch.stack(alone), rtol=0, atol=1e-12)


def test_layouts_agree_to_the_tolerance():
    flow, x = flow_of(TanhNet(2), 2, Dopri5(rtol=1e-7, atol=1e-7)), noise(12, 2)
    each, sets = flow.log_prob(x), flow.log_prob(x.reshape(3, 4, 2))
    with flow.block.using(flow.block.integrator, batched=False):
        shared = flow.log_prob(x)
    assert (each.shape, sets.shape, shared.shape) == ((12,), (3, 4), (12,))
    assert_close(each, shared, rtol=0, atol=1e-5)
    assert_close(sets.flatten(), shared, rtol=0, atol=1e-5)


def test_f_gets_one_time_per_row():
    f = ClosedForm(2)
    for shape, batched, time in [((4, 2), True, (4, 1)), ((4, 5, 2), True, (4, 1, 1)), ((4, 2), False, ())]:
        f.calls.clear()
        flow_of(f, 2, RK4(), batched=batched).log_prob(noise(*shape))
        assert f.calls == [("with_divergence", time, shape)] * 4


def test_finished_rows_leave_the_batch():
    f = ClosedForm(2)
    x = noise(5, 3, 2) * torch.logspace(-1, 0.7, 5, dtype=DOUBLE)[:, None, None]
    for drop_finished in (True, False):
        flow = flow_of(f, 2, Dopri5(rtol=1e-6, atol=1e-6), drop_finished=drop_finished)
        flow.solve(x)  # a first solve also checks that f does not mix samples
        f.calls.clear()
        _, solution = flow.solve(x)
        rows = sum(z[0] for _, _, z in f.calls)
        assert rows == (solution.nfe.sum() if drop_finished else 5 * solution.calls)
    assert solution.nfe.sum() < 5 * solution.calls


def test_a_single_point_can_be_one_system():
    flow = flow_of(TanhNet(2), 2, batched=False)
    x = noise(2)
    assert flow.log_prob(x).shape == ()
    assert_close(flow.log_prob(x), flow.log_prob(x[None])[0])


# ---- samples


def test_samples_of_a_linear_flow_have_its_mean_and_covariance():
    mean, scale, n = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE), torch.tensor([0.5, 1.0, 1.5], dtype=DOUBLE), 20_000
    flow = Flow(Linear(A), DiagonalNormal(mean, scale), Dopri5(rtol=1e-6, atol=1e-6), t1=1.5)
    E = torch.linalg.matrix_exp(1.5 * torch.tensor(A, dtype=DOUBLE))
    covariance = E @ torch.diag(scale**2) @ E.T
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = flow.sample((1, n))[0]
    assert not x.requires_grad
    error = covariance.diagonal().sqrt()
    assert ((x.mean(0) - E @ mean).abs() < 4 * error / n**0.5).all()
    # the variance of a product of two correlated normals is at most 2 σ²σ²
    assert ((x.T.cov() - covariance).abs() < 4 * (2 / n) ** 0.5 * error[:, None] * error).all()
    # the mean of −log p over samples estimates the entropy; −log p has variance D/2
    entropy = MultivariateNormal(E @ mean, covariance).entropy()
    assert (-flow.log_prob(x[None]).mean() - entropy).abs() < 4 * (1.5 / n) ** 0.5


def test_log_prob_of_a_sample_is_the_density_integrated_along_its_path():
    f, z = TanhNet(2), noise(6, 2)
    flow = flow_of(f, 2, t0=0.5, t1=2.0)
    start = flow.base.log_prob(z)[:, None]
    x, log_prob = solve(AugmentedField(f), (z, start), 0.5, 2.0, TIGHT).y
    assert_close(flow.transport(z, flow.t0, flow.t1), x, rtol=0, atol=1e-7)
    assert_close(flow.log_prob(x), log_prob.squeeze(1), rtol=0, atol=1e-6)
    assert_close(flow.transport(x, 2.0, 0.5), z, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("shape", "expected"), [(5, (5, 2)), ((5,), (5, 2)), ((3, 4), (3, 4, 2)), ([3, 4], (3, 4, 2))])
def test_shape_of_samples(shape, expected):
    flow = flow_of(TanhNet(2), 2)
    assert flow.sample(shape).shape == expected
    assert flow.rsample(shape).shape == expected


def test_samples_come_from_the_global_generator():
    flow = flow_of(TanhNet(2), 2)
    with torch.random.fork_rng():
        draws = []
        for draw in (flow.sample, flow.rsample):
            torch.manual_seed(3)
            draws.append(draw(4).detach())
        torch.manual_seed(3)
        z = flow.base.sample((4,))
    assert torch.equal(*draws)
    assert_close(draws[0], flow.transport(z, 0.0, 1.0).detach())


def test_sampling_needs_no_divergence():
    f = ClosedForm(2)
    flow_of(f, 2, RK4()).sample(3)
    assert f.calls == [("forward", (3, 1), (3, 2))] * 4


def test_transport_takes_one_time_per_row():
    """x(t) = e^(at) x(0), with a different t per row."""
    flow, t1 = flow_of(Linear([[0.5]]), 1), torch.tensor([1.0, -2.0, 0.0], dtype=DOUBLE)
    x = flow.transport(torch.ones(3, 1, dtype=DOUBLE), 0.0, t1)
    assert_close(x[:, 0].detach(), torch.exp(0.5 * t1), rtol=1e-7, atol=0)


def test_the_flow_until_a_time_has_the_density_at_that_time():
    f, x, t = Linear(A), noise(4, 3), 0.7
    flow = Flow(f, standard(3), TIGHT, t1=2.0, drop_finished=False, batched=False)
    part = flow.until(t)
    E = torch.linalg.matrix_exp(t * torch.tensor(A, dtype=DOUBLE))
    expected = MultivariateNormal(torch.zeros(3, dtype=DOUBLE), E @ E.T)
    assert_close(part.log_prob(x), expected.log_prob(x), rtol=0, atol=1e-7)
    assert (part.f, part.base, part.t0, part.t1) == (f, flow.base, 0.0, t)
    assert (part.block.integrator, part.block.options) == (TIGHT, flow.block.options)
    assert_close(flow.until(0.0).log_prob(x), flow.base.log_prob(x))


# ---- solve options apply to samples and to densities

SAMPLERS = {
    "rsample": lambda flow: flow.rsample(4),
    "transport": lambda flow: flow.transport(noise(4, 2), 0.0, 1.0),
    "rsample until": lambda flow: flow.until(0.5).rsample(4),
    "log_prob until": lambda flow: flow.until(0.5).log_prob(noise(4, 2)),
    "log_prob": lambda flow: flow.log_prob(noise(4, 2)),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


@every_sampler
@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_gradient_checkpoint_evaluates_f_again_in_the_backward_pass(sampler, gradient):
    f = ClosedForm(2)
    x = sampler(flow_of(f, 2, RK4(4), gradient=gradient))
    f.calls.clear()
    x.sum().backward()
    assert bool(f.calls) is (gradient == "checkpoint")


@every_sampler
def test_gradient_backsolve_solves_the_adjoint_equation(sampler):
    """Its gradients match those of "direct" to the tolerance, but not to rounding."""
    gradients = []
    for gradient in ("direct", "backsolve"):
        flow = flow_of(ClosedForm(2), 2, RK4(20), gradient=gradient)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sampler(flow).sum().backward()
        gradients.append(flow.f.W.grad)
    assert_close(*gradients, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(*gradients, rtol=1e-12, atol=0)


@every_sampler
def test_differentiate_step_sizes_changes_gradients(sampler):
    gradients = []
    for differentiate_step_sizes in (False, True):
        flow = flow_of(
            ClosedForm(2), 2, Dopri5(rtol=1e-2, atol=1e-2), differentiate_step_sizes=differentiate_step_sizes
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sampler(flow).sum().backward()
        gradients.append(flow.f.W.grad)
    assert not torch.allclose(*gradients, rtol=1e-9, atol=0)


@every_sampler
def test_compile_compiles_the_steps(sampler):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    class Field(ClosedForm):
        """`ClosedForm` without its log of calls, which cannot be compiled."""

        def forward(self, t, z):
            return self.with_divergence(t, z)[0]

        def with_divergence(self, t, z):
            h = torch.tanh(z @ self.W.T + self.b + self.c * t)
            return h @ self.V.T, ((1 - h**2) * (self.W * self.V.T).sum(1)).sum(-1, keepdim=True)

    flow = flow_of(Field(2), 2, RK4(), compile={"backend": backend})
    with torch.no_grad():
        sampler(flow)
    assert graphs


def test_unbatched_samples_are_solved_as_one_system():
    f = ClosedForm(2)
    flow_of(f, 2, RK4(), batched=False).sample((3, 4))
    assert f.calls == [("forward", (), (3, 4, 2))] * 4


def test_a_wrong_option_is_refused_at_construction():
    with pytest.raises(ValueError, match="gradient: expected 'direct', 'checkpoint', 'backsolve'"):
        flow_of(TanhNet(2), 2, gradient="adjoint")


def test_a_flow_needs_a_field():
    with pytest.raises(TypeError, match=r"f: expected a vector field, called as f\(t, z\), got str"):
        flow_of("field", 2)


# ---- divergence


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3), (3,)])
def test_divergence_is_the_trace_of_the_jacobian(shape):
    f, z, t = TanhNet(3), noise(*shape), torch.tensor(0.4, dtype=DOUBLE)
    jacobians = torch.stack([torch.func.jacrev(lambda p: f(t, p))(point) for point in z.reshape(-1, 3)])
    expected = jacobians.diagonal(dim1=1, dim2=2).sum(1).reshape(*shape[:-1], 1)
    assert_close(divergence(f, t, z), expected)
    assert not z.requires_grad


@pytest.mark.parametrize("disabled", [torch.no_grad, torch.inference_mode])
def test_divergence_with_gradients_disabled(disabled):
    f, z = TanhNet(3), noise(4, 3)
    expected = divergence(f, torch.tensor(0.4, dtype=DOUBLE), z)
    with disabled():
        value = divergence(f, torch.tensor(0.4, dtype=DOUBLE), 1.0 * z)
        log_prob = flow_of(f, 3).log_prob(z)
    assert_close(value, expected.detach())
    assert not value.requires_grad
    assert_close(log_prob, flow_of(f, 3).log_prob(z).detach(), rtol=0, atol=1e-12)
    assert not log_prob.requires_grad


def test_gradients_of_the_divergence():
    f, t, z = TanhNet(2), torch.tensor(0.4, dtype=DOUBLE, requires_grad=True), noise(3, 2).requires_grad_()
    parameters = dict(f.named_parameters())

    def value(t, z, *tensors):
        named = dict(zip(parameters, tensors, strict=True))
        return divergence(lambda t, z: torch.func.functional_call(f, named, (t, z)), t, z)

    assert torch.autograd.gradcheck(value, (t, z, *parameters.values()))


@pytest.mark.parametrize("gradients", [torch.enable_grad, torch.no_grad])
def test_divergence_of_fields_that_do_not_depend_on_z(gradients):
    shift = torch.ones((), dtype=DOUBLE, requires_grad=True)
    with gradients():
        for f in (lambda t, z: torch.ones(2, 3), lambda t, z: shift.expand(2, 3), lambda t, z: t * torch.ones(2, 3)):
            assert torch.equal(divergence(f, shift, noise(2, 3)).double(), torch.zeros(2, 1, dtype=DOUBLE))


def test_dz_dt_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"f: expected dz/dt of shape \[4, 3\] like z, got \[4, 2\]"):
        divergence(lambda t, z: z[:, :2], torch.zeros(()), noise(4, 3))
    with pytest.raises(ValueError, match="f: expected dz/dt of shape"):
        flow_of(nn.Bilinear(1, 3, 2).double(), 3).log_prob(noise(4, 3))


def test_with_divergence_is_preferred_and_agrees():
    x, closed, plain = noise(4, 2), ClosedForm(2), TanhNet(2)
    values = [flow_of(f, 2, Dopri5(rtol=1e-5, atol=1e-5)).solve(x) for f in (closed, plain)]
    assert {name for name, _, _ in closed.calls} == {"with_divergence"}
    assert values[0][1].nfe.tolist() == values[1][1].nfe.tolist()
    assert_close(values[0][0], values[1][0], rtol=0, atol=1e-12)


# ---- gradients


@pytest.mark.parametrize("field", [TanhNet, ClosedForm])
@pytest.mark.parametrize(("shape", "batched"), [((3, 2), True), ((2, 2, 2), True), ((3, 2), False)])
def test_gradients_of_log_prob(field, shape, batched):
    f, x = field(2, hidden=3), noise(*shape).requires_grad_()
    flow = flow_of(f, 2, RK4(2), batched=batched)
    parameters = dict(flow.named_parameters())

    def log_prob(x, *tensors):
        return torch.func.functional_call(flow, dict(zip(parameters, tensors, strict=True)), (x,))

    assert torch.autograd.gradcheck(log_prob, (x, *parameters.values()))


def test_gradients_of_samples():
    """x = z e^(aT): dx/da = T x and, with z = μ + σ ε, dx/dμ = e^(aT)."""
    mean = torch.zeros(1, dtype=DOUBLE, requires_grad=True)
    flow = Flow(Linear([[0.5]]), Independent(Normal(mean, 2.0), 1), TIGHT, t1=1.5)
    x = flow.rsample(3)
    to_a, to_mean = torch.autograd.grad(x.sum(), (flow.f.A, mean))
    assert to_a.item() == pytest.approx(1.5 * x.sum().item(), rel=1e-6)
    assert to_mean.item() == pytest.approx(3 * math.exp(0.75), rel=1e-6)


def test_log_prob_does_not_change_its_argument():
    x = noise(4, 2)
    before = x.clone()
    flow_of(TanhNet(2), 2).log_prob(x).sum().backward()
    assert torch.equal(x, before)
    assert not x.requires_grad


def test_maximum_likelihood_finds_the_scale():
    """Data of variance 1/4, base N(0, 1) and dz/dt = a z: the maximum is at a = log(1/2)."""
    f, data = Linear([[0.0]]), noise(64, 1)
    data = data / data.square().mean().sqrt() / 2
    flow = flow_of(f, 1, Dopri5(rtol=1e-5, atol=1e-5))
    optimizer = torch.optim.LBFGS(flow.parameters())

    def closure():
        optimizer.zero_grad()
        loss = -flow.log_prob(data[None]).mean()
        loss.backward()
        return loss

    for _ in range(3):
        loss = optimizer.step(closure)
    assert f.A.item() == pytest.approx(math.log(0.5), abs=1e-3)
    assert loss.item() == pytest.approx(0.5 * math.log(2 * math.pi * math.e / 4), abs=1e-3)


# ---- the flow as a module with one block


def test_the_block_is_found_and_its_integrator_exchanged_and_its_solves_recorded():
    flow, x = flow_of(TanhNet(2), 2), noise(4, 2)
    block = find_block(flow)
    assert block is flow.block
    assert (block.t0, block.t1) == (flow.t1, flow.t0) == (1.0, 0.0)
    with block.using(Euler(3)), block.recording() as records:
        log_prob = flow.log_prob(x)
    (record,) = records
    assert record.solution.nfe.tolist() == [3] * 4
    assert torch.equal(record.y0[0], x)
    assert torch.equal(record.y0[1], torch.zeros(4, 1, dtype=DOUBLE))
    expected = Flow(flow.f, flow.base, Euler(3)).log_prob(x)
    assert torch.equal(log_prob, expected)


def test_solve_passes_accumulate_on():
    regularizer = KineticEnergy()
    log_prob, solution = flow_of(TanhNet(2), 2).solve(noise(4, 2), accumulate=regularizer.accumulate)
    assert solution.accumulated.shape == log_prob.shape == (4,)
    assert ErrorEstimate()(solution, nn.Identity()) > 0


def test_a_failed_integration_raises():
    with pytest.raises(SolveError, match="MAX_STEPS"):
        flow_of(TanhNet(2), 2, Dopri5(rtol=1e-9, atol=1e-9, max_steps=1)).log_prob(noise(4, 2))


def test_the_printed_module_and_the_state_dict():
    flow = flow_of(TanhNet(2), 2)
    names = ["W", "V", "b", "c"]
    assert sorted(flow.state_dict()) == sorted(["base.loc", "base.scale", *(f"block.f.f.{name}" for name in names)])
    assert "DiagonalNormal(loc=[0.0, 0.0], scale=[1.0, 1.0])" in str(flow)
    other = Flow(TanhNet(2), MultivariateNormal(torch.zeros(2), torch.eye(2)), RK4())
    assert "base=MultivariateNormal" in str(other)
    assert flow.dim == other.dim == 2


@pytest.mark.parametrize("wrong", [lambda values: values[..., None], lambda values: values.sum()])
def test_a_base_whose_densities_would_broadcast_is_refused(wrong):
    base = standard(2)
    base.log_prob = lambda z, right=base.log_prob: wrong(right(z))
    flow = Flow(TanhNet(2), base, RK4())
    for call in (lambda: flow.log_prob(noise(3, 2)), lambda: flow.sample(3, with_log_prob=True)):
        with pytest.raises(ValueError, match=r"base: expected log-densities of shape \(3,\), one per point, got"):
            call()


def test_a_base_that_is_a_module_moves_with_the_flow():
    flow = flow_of(TanhNet(2), 2)
    assert flow.float().base.sample((3,)).dtype == torch.float32
    assert flow.log_prob(torch.zeros(3, 2)).dtype == torch.float32
    assert flow.to("meta").base.loc.device.type == "meta"


# ---- the base


def test_diagonal_normal_matches_torch_distributions():
    loc, scale, x = noise(3), noise(3, seed=1).exp(), noise(2, 4, 3, seed=2)
    ours, torchs = DiagonalNormal(loc, scale), Independent(Normal(loc, scale), 1)
    assert ours.event_shape == torchs.event_shape
    assert_close(ours.log_prob(x), torchs.log_prob(x))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = ours.sample((2, 4))
        torch.manual_seed(0)
        assert_close(drawn, torchs.rsample((2, 4)))
        assert ours.sample().shape == (3,)


@pytest.mark.parametrize(
    ("loc", "scale", "message"),
    [
        (torch.zeros(2), torch.ones(3), r"loc, scale: expected two tensors \[D\], got \[2\] and \[3\]"),
        (torch.zeros(()), torch.ones(()), r"loc, scale: expected two tensors \[D\], got \[\] and \[\]"),
        (torch.zeros(2), torch.tensor([1.0, 0.0]), r"scale: expected positive, finite numbers, got 0 at \[1\]"),
        (torch.zeros(1), torch.tensor([torch.nan]), "scale: expected positive, finite numbers, got nan"),
        (torch.zeros(2, 2), torch.tensor([[1.0, torch.inf], [1.0, 1.0]]), r"scale: .* got inf at \[0, 1\]"),
        (torch.tensor([0.0, -torch.inf]), torch.ones(2), r"loc: expected finite numbers, got -inf at \[1\]"),
        (torch.zeros(2), torch.ones(2, dtype=torch.float64), "one dtype on one device, got torch.float32 on cpu and "),
        (torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64), "expected floating-point tensors"),
    ],
)
def test_wrong_arguments_of_diagonal_normal_are_named(loc, scale, message):
    with pytest.raises(ValueError, match=message):
        DiagonalNormal(loc, scale)


@pytest.mark.parametrize(
    "base", [Normal(0.0, 1.0), Normal(torch.zeros(2), 1.0), MultivariateNormal(torch.zeros(3, 2), torch.eye(2))]
)
def test_a_base_of_another_event_shape_is_refused(base):
    with pytest.raises(ValueError, match=r"base: expected a distribution with event_shape \(D,\)"):
        Flow(TanhNet(2), base, RK4())


# ---- bad points


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[0.0, 0.0]], TypeError, r"x: expected float32 or float64 points \[B, ..., 2\], got list"),
        (torch.zeros(3, 2, dtype=torch.int64), TypeError, "x: expected float32 or float64 .* got torch.int64"),
        (torch.zeros(3, 2, dtype=torch.float16), TypeError, "x: expected float32 or float64 .* got torch.float16"),
        (torch.zeros(3, 3), ValueError, r"x: expected points \[B, ..., 2\], got shape \[3, 3\]"),
        (torch.zeros(2), ValueError, r"x: expected points \[B, ..., 2\], got shape \[2\]"),
        (torch.zeros(()), ValueError, r"x: expected points \[B, ..., 2\], got shape \[\]"),
    ],
)
def test_bad_points_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        flow_of(TanhNet(2), 2).log_prob(x)


def test_bad_points_are_refused_by_every_method():
    flow = flow_of(TanhNet(2), 2)
    with pytest.raises(ValueError, match=r"z: expected points \[B, ..., 2\], got shape \[3, 1\]"):
        flow.transport(torch.zeros(3, 1), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"z: expected points \[B, ..., 2\], got shape \[2\]"):
        flow.sample(())
    flow.block.options = replace(flow.block.options, batched=False)
    with pytest.raises(ValueError, match=r"x: expected points \[..., 2\], got shape \[3, 1\]"):
        flow.log_prob(torch.zeros(3, 1))


@pytest.mark.parametrize("shape", [-1, (2, -1), 1.5, "3", None, (1.5,), True, (2, False)])
@pytest.mark.parametrize("method", ["sample", "rsample"])
def test_a_bad_shape_of_a_sample_is_refused(method, shape):
    with pytest.raises((TypeError, ValueError), match=r"shape: expected .* got"):
        getattr(flow_of(TanhNet(2), 2), method)(shape)


@pytest.mark.parametrize("shape", [np.int64(3), (np.int64(3),), torch.Size([3])])
def test_a_shape_of_another_library_makes_as_many_points(shape):
    assert flow_of(TanhNet(2), 2).sample(shape).shape == (3, 2)


@pytest.mark.parametrize("number", [(2, 3), True, -1, 1.5])
def test_a_sampler_takes_a_number_of_points(number):
    with pytest.raises(ValueError, match="number: expected a whole number of at least 0, got"):
        FlowSampler(flow_of(TanhNet(2), 2)).sample(number)


def test_an_empty_batch_has_no_densities():
    assert flow_of(TanhNet(2), 2).log_prob(torch.zeros(0, 2)).shape == (0,)


# ---- transport cost


def transport_cost(flow, x):
    cost = TransportCost(flow.dim)
    return cost(flow.solve(x, accumulate=cost.accumulate)[1], flow.f)


@layouts
@pytest.mark.parametrize("integrator", [Euler(3), RK4(2), Dopri5()], ids=str)
def test_transport_cost_of_a_constant_field(shape, batched, integrator):
    """‖(1, 2, 3)‖² · |T|."""

    class Constant(nn.Module):
        def forward(self, t, z):
            return torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE).expand_as(z)

    flow = flow_of(Constant(), 3, integrator, t0=0.5, t1=3.0, batched=batched)
    assert transport_cost(flow, noise(*shape)).item() == pytest.approx(14 * 2.5)


@layouts
def test_transport_cost_of_a_linear_field(shape, batched):
    """∫ ‖diag(λ) x e^(λ(t−T))‖² dt = Σ λ x² (1 − e^(−2λT)) / 2, mean over points, without the log-density."""
    rates, x = torch.tensor([0.5, -1.0, 2.0], dtype=DOUBLE), noise(*shape)
    flow = flow_of(Linear(torch.diag(rates)), 3, batched=batched)
    expected = (rates * x.square() * -torch.expm1(-2 * rates) / 2).sum(-1).mean()
    assert_close(transport_cost(flow, x), expected, rtol=1e-6, atol=0)


def test_transport_cost_is_the_kinetic_energy_of_points_alone():
    f, x, integrator = TanhNet(2), noise(4, 2), RK4(40)
    points = solve(f, x, 1.0, 0.0, integrator, accumulate=KineticEnergy.accumulate)
    assert_close(transport_cost(flow_of(f, 2, integrator), x), KineticEnergy()(points, f))


def test_gradient_of_transport_cost():
    """d/dc ∫ ‖c·(1, 1)‖² dt = 4 c T."""

    class Push(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Parameter(torch.tensor(3.0, dtype=DOUBLE))

        def forward(self, t, z):
            return self.c * torch.ones_like(z)

    flow = flow_of(Push(), 2, Dopri5(), t1=2.0)
    transport_cost(flow, noise(5, 2)).backward()
    assert flow.f.c.grad.item() == pytest.approx(24)


def test_transport_cost_needs_no_evaluation_of_f():
    flow, x = flow_of(TanhNet(2), 2), noise(4, 2)
    _, plain = flow.solve(x)
    _, counted = flow.solve(x, accumulate=TransportCost(2).accumulate)
    assert plain.nfe.tolist() == counted.nfe.tolist()


def test_wrong_uses_of_transport_cost_are_named():
    for dim in (0, 1.0, True, "2"):
        with pytest.raises(ValueError, match="dim: expected a whole number of at least 1"):
            TransportCost(dim)
    with pytest.raises(ValueError, match=r"dim: expected the D of points .* are 3 numbers per row, got 3"):
        flow_of(TanhNet(2), 2).solve(noise(4, 2), accumulate=TransportCost(3).accumulate)
    _, solution = flow_of(TanhNet(2), 2).solve(noise(4, 2))
    for missing in (solution, None):
        with pytest.raises(
            ValueError, match="solution: TransportCost needs a solve made with accumulate=TransportCost"
        ):
            TransportCost(2)(missing, nn.Identity())
