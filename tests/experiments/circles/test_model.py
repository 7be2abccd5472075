import math

import pytest
import torch
import torchdiffeq
from torch import nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from dise import RK4, Dopri5, Euler, solve
from dise.flow import AugmentedField, divergence
from dise.select import count_macs
from dise_experiments.circles.data import circles
from dise_experiments.circles.model import HyperNetworkField, hypernetwork_flow


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(build, seed=0, *, gain=1.0):
    """What `build` makes with seeded weights; a gain above 1 makes a field that needs more steps."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build()
    with torch.no_grad():
        for parameter in list(module.parameters())[-2:]:
            parameter.mul_(gain)
    return module


@pytest.fixture
def field():
    return seeded(HyperNetworkField, gain=3.0).double()


@pytest.fixture
def flow():
    return seeded(hypernetwork_flow, gain=3.0).double()


class Reference(nn.Module):
    """torchdiffeq's example, written out hidden unit by hidden unit, with the weights of a `HyperNetworkField`."""

    def __init__(self, field):
        super().__init__()
        self.layers, self.calls = field.hypernetwork, 0

    def dz(self, t, z):
        params = self.layers(t.reshape(1, 1)).flatten()
        W, U, G = params[:384].reshape(3, 64, 2)
        B = params[384:]
        U = U * torch.sigmoid(G)
        return sum(U[i] * torch.tanh(z @ W[i] + B[i])[:, None] for i in range(64)) / 64

    def forward(self, t, state):
        self.calls += 1
        with torch.enable_grad():
            z = state[0].requires_grad_()
            dz = self.dz(t, z)
            trace = sum(torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2))
        return dz, -trace[:, None]


# ---- size


def test_parameters(flow):
    hidden, outputs = 32 + 32 + 32 * 32 + 32, 3 * 64 * 2 + 64
    assert sum(p.numel() for p in flow.parameters()) == hidden + 32 * outputs + outputs == 15_904
    assert sum(p.numel() for p in HyperNetworkField().parameters()) == 15_904


def test_the_flow_is_torchdiffeqs_examples(flow):
    assert (flow.t0, flow.t1, flow.dim) == (0.0, 10.0, 2)
    assert flow.block.integrator == Dopri5(rtol=1e-5, atol=1e-5)
    x = noise(5, 2)
    expected = MultivariateNormal(torch.zeros(2).double(), 0.1 * torch.eye(2).double())
    assert_close(flow.base.log_prob(x), expected.log_prob(x), rtol=0, atol=1e-6)


# ---- the field


@pytest.mark.parametrize("t", [0.0, 0.7, 10.0])
def test_the_field_written_out(field, t):
    z, t = noise(6, 2), torch.tensor(t, dtype=torch.float64)
    expected, trace = Reference(field)(t, (z.clone(), None))
    dz, div = field.with_divergence(t, z)
    assert_close(dz, expected)
    assert_close(div, -trace)
    assert torch.equal(field(t, z), dz)


@pytest.mark.parametrize("shape", [(5, 2), (5, 7, 2), (5, 3, 4, 2)])
def test_every_row_sees_its_own_time(field, shape):
    t, z = torch.linspace(0, 10, 5, dtype=torch.float64), noise(*shape)
    each = [field.with_divergence(t[i], z[i]) for i in range(5)]
    dz, div = field.with_divergence(t.reshape(-1, *(1 for _ in shape[1:])), z)
    assert_close(dz, torch.stack([part[0] for part in each]))
    assert_close(div, torch.stack([part[1] for part in each]))
    assert (dz.shape, div.shape) == (shape, (*shape[:-1], 1))
    assert not torch.allclose(dz[0], field(t[1], z[0]))


@pytest.mark.parametrize("shape", [(5, 2), (5, 7, 2)])
def test_the_divergence_is_the_autograd_trace(field, shape):
    t, z = torch.linspace(0, 10, 5, dtype=torch.float64).reshape(-1, *(1 for _ in shape[1:])), noise(*shape)
    dz, div = field.with_divergence(t, z)
    assert_close(div, divergence(field, t, z))
    assert_close(dz, field(t, z))


def test_gradients_of_the_field(field):
    t, z = torch.tensor([[0.2], [5.0]], dtype=torch.float64, requires_grad=True), noise(2, 2).requires_grad_()
    assert torch.autograd.gradcheck(field.with_divergence, (t, z))
    # to 15,904 weights, autograd of the autograd trace is the reference
    weights, probe = list(field.parameters()), noise(2, 3, seed=1)
    ours = torch.cat(field.with_divergence(t, z), dim=1)
    expected = torch.cat([Reference(field).dz(t[0], z[:1]), Reference(field).dz(t[1], z[1:])])
    expected = torch.cat([expected, divergence(field, t, z)], dim=1)
    gradients = [torch.autograd.grad((probe * value).sum(), weights) for value in (ours, expected)]
    for got, gradient in zip(*gradients, strict=True):
        assert_close(got, gradient)


# ---- what an evaluation costs


@pytest.mark.parametrize(
    ("shape", "batched", "times"), [((6, 2), True, 6), ((6, 9, 2), True, 6), ((6, 2), False, 1), ((6, 9, 2), False, 1)]
)
def test_the_hypernetwork_runs_once_for_each_time(flow, shape, batched, times):
    outputs = []
    flow.f.hypernetwork.register_forward_hook(lambda module, args, output: outputs.append(tuple(output.shape)))
    with flow.block.using(RK4(), batched=batched):
        flow.log_prob(noise(*shape))
        flow.sample(shape[:-1])
    assert outputs == [(times, 448)] * 8


def test_multiply_adds_of_an_evaluation():
    field, t, z = HyperNetworkField(), torch.zeros(4, 1, 1), torch.zeros(4, 50, 2)
    hypernetwork = 32 + 32 * 32 + 32 * 448
    assert count_macs(lambda: field(t, z)) == 4 * hypernetwork + 4 * 50 * (2 * 64 + 64 * 2)
    assert count_macs(lambda: field.with_divergence(t, z)) == 4 * hypernetwork + 4 * 50 * (2 * 64 + 64 * 2 + 64)


class Kernels(TorchDispatchMode):
    """Counts the operations that compute something; the others only look at memory in another way."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("t", "z"), [((), (512, 2)), ((16, 1, 1), (16, 32, 2)), ((512, 1), (512, 2))])
def test_an_evaluation_is_few_kernels(t, z):
    """A small batch takes as long as its kernels take to launch. With an autograd trace they are 25 and 46."""
    field, t, z = HyperNetworkField(), torch.zeros(t), noise(*z, dtype=torch.float32).requires_grad_()
    with Kernels() as points:
        field(t, z)
    with Kernels() as densities:
        dz, div = field.with_divergence(t, z)
    outputs, ones = (dz, div), (torch.ones_like(dz), torch.ones_like(div))
    with Kernels() as backward:
        torch.autograd.grad(outputs, [z, *field.parameters()], ones)
    assert points.count <= 11
    assert densities.count <= 17
    assert backward.count <= 36


# ---- the flow


@pytest.mark.parametrize(
    ("dtype", "gain", "seed"), [(torch.float64, 3.0, 0), (torch.float64, 3.0, 3), (torch.float32, 1.0, 3)]
)
def test_densities_and_nfe_are_torchdiffeqs(dtype, gain, seed):
    """Its example's set-up: one step size for all points, the trace by autograd.

    In float32 rounding decides the steps that are nearly rejected, of which a field of gain 1 has none.
    """
    flow = seeded(hypernetwork_flow, seed, gain=gain).to(dtype)
    x = circles(64, torch.Generator().manual_seed(0)).to(dtype)
    reference, t = Reference(flow.f), torch.tensor([10.0, 0.0], dtype=dtype)
    with torch.no_grad(), flow.block.using(flow.block.integrator, batched=False):
        # step_t ends the last step at t0, which torchdiffeq would else overstep
        start = x.clone(), torch.zeros(64, 1, dtype=dtype)
        options = {"rtol": 1e-5, "atol": 1e-5, "method": "dopri5", "options": {"step_t": t[1:].double()}}
        z, change = torchdiffeq.odeint(reference, start, t, **options)
        base = MultivariateNormal(torch.zeros(2, dtype=dtype), 0.1 * torch.eye(2, dtype=dtype))
        expected = base.log_prob(z[-1]) - change[-1, :, 0]
        log_prob, solution = flow.solve(x)
    assert solution.nfe == reference.calls >= 44
    assert_close(log_prob, expected, rtol=0, atol=1e-6 if dtype == torch.float64 else 1e-3)
    assert -log_prob.mean().item() == pytest.approx(-expected.mean().item(), abs=1e-5)


def test_gradients_of_the_loss_are_torchdiffeqs(flow):
    """With steps of one size, so that both go through the same operations."""
    x, t = circles(16, torch.Generator().manual_seed(0)).double(), torch.linspace(10, 0, 21, dtype=torch.float64)
    reference = Reference(flow.f)
    z, change = torchdiffeq.odeint(reference, (x.clone(), torch.zeros(16, 1).double()), t, method="euler")
    loss = -(flow.base.log_prob(z[-1]) - change[-1, :, 0]).mean()
    expected = torch.autograd.grad(loss, list(flow.parameters()))
    with flow.block.using(Euler(20)):
        ours = -flow.log_prob(x[None]).mean()
    assert_close(ours, loss)
    for got, gradient in zip(torch.autograd.grad(ours, list(flow.parameters())), expected, strict=True):
        assert_close(got, gradient)


def test_batches_evaluated_at_once_are_those_evaluated_alone(flow):
    """16 batches of 32 points, each with one step size."""
    x = circles(512, torch.Generator().manual_seed(0)).double().reshape(16, 32, 2)
    with torch.no_grad():
        log_prob, solution = flow.solve(x)
        with flow.block.using(flow.block.integrator, batched=False):
            alone, solutions = zip(*(flow.solve(batch) for batch in x), strict=True)
    assert solution.nfe.tolist() == [s.nfe.item() for s in solutions]
    assert_close(log_prob, torch.stack(alone), rtol=0, atol=1e-9)


def test_the_density_integrates_to_1(flow):
    flow.float()
    axis = torch.linspace(-6, 6, 121)
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(axis, axis)[None]).exp()
    assert density.sum().item() * 0.1**2 == pytest.approx(1, abs=1e-3)


def test_samples_have_the_flows_density(flow):
    z = noise(10, 2) * math.sqrt(0.1)
    tight = Dopri5(rtol=1e-9, atol=1e-9)
    start = flow.base.log_prob(z)[:, None]
    x, log_prob = solve(AugmentedField(flow.f), (z, start), 0.0, 10.0, tight).y
    with flow.block.using(tight):
        assert_close(flow.transport(z, 0.0, 10.0), x, rtol=0, atol=1e-6)
        assert_close(flow.log_prob(x), log_prob.squeeze(1), rtol=0, atol=1e-5)


def test_training_raises_the_likelihood_of_the_circles():
    flow, generator = seeded(hypernetwork_flow), torch.Generator().manual_seed(0)
    optimizer, losses = torch.optim.Adam(flow.parameters(), lr=5e-3), []
    for _ in range(25):
        loss = -flow.log_prob(circles(128, generator)[None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # the normal distribution with the circles' variance, 0.316 in each coordinate, has 2.84 + log 0.316 = 1.69 nats
    assert losses[0] > 2.2
    assert losses[-1] < 1.7
