import pytest
import torch
import torchdiffeq
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from dise import RK4, Dopri5, NeuralODE, solve
from dise.select import count_macs
from dise_experiments.mnist.data import load_mnist_sample, to_input
from dise_experiments.mnist.model import ResidualBlock, VectorField, odenet, resnet, rknet


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


@pytest.fixture(scope="module")
def digits():
    return to_input(load_mnist_sample().test.images[:5])


# ---- sizes, as torchdiffeq's example prints them and as counted from the layers


@pytest.mark.parametrize(("build", "count"), [(odenet, 208_266), (rknet, 208_266), (resnet, 576_778)])
def test_parameters_of_models(build, count):
    assert parameters(build()) == count


def test_parameters_of_parts():
    model = odenet()
    # conv 1→64 of 3×3, two 64→64 of 4×4, two norms
    assert parameters(model.stem) == (9 * 64 + 64) + 2 * (16 * 64 * 64 + 64) + 2 * 128 == 132_096
    # two conv 65→64 of 3×3, three norms
    assert parameters(model.block.f) == 2 * (9 * 65 * 64 + 64) + 3 * 128 == 75_392
    assert parameters(model.head) == 128 + 64 * 10 + 10 == 778
    assert parameters(ResidualBlock()) == 2 * 9 * 64 * 64 + 2 * 128 == 73_984


def test_multiply_adds_of_an_evaluation_of_f():
    h = torch.zeros(3, 64, 6, 6)
    # two convolutions 65→64 of 3×3 at 36 places, 3 samples
    assert count_macs(lambda: VectorField()(torch.zeros(()), h)) == 3 * 2 * 65 * 64 * 9 * 36


@pytest.mark.parametrize("build", [odenet, rknet, resnet])
def test_shapes(build, digits):
    model = build()
    assert model.stem(digits).shape == (5, 64, 6, 6)
    assert model.block(model.stem(digits)).shape == (5, 64, 6, 6)
    assert model(digits).shape == (5, 10)


def test_integrators_are_the_papers():
    assert odenet().block.integrator == Dopri5(rtol=1e-3, atol=1e-3)
    assert rknet().block.integrator == RK4(steps=1)
    assert not any(isinstance(module, NeuralODE) for module in resnet().modules())
    assert len(resnet().block) == 6


# ---- what the parts compute


def test_scalar_and_per_sample_time_are_the_same():
    f = seeded(VectorField)
    h = noise(4, 64, 6, 6)
    assert_close(f(torch.full((4, 1, 1, 1), 0.3), h), f(torch.tensor(0.3), h), rtol=0, atol=1e-6)


def test_every_sample_sees_its_own_time():
    f = seeded(VectorField)
    h, t = noise(4, 64, 6, 6), torch.tensor([0.0, 0.3, 0.6, 1.0])
    each = torch.cat([f(t[i], h[i : i + 1]) for i in range(4)])
    assert_close(f(t[:, None, None, None], h), each, rtol=0, atol=1e-5)
    assert not torch.allclose(each, f(torch.tensor(0.0), h))


def test_the_field_written_out():
    # torchdiffeq's example: norm, relu, conv, norm, relu, conv, norm; a convolution sees t as its first channel
    f, h, t = seeded(VectorField), noise(2, 64, 6, 6), 0.7

    def norm(layer, x):
        return F.group_norm(x, 32, layer.weight, layer.bias)

    def conv(layer, x):
        of_time = F.conv2d(torch.ones_like(x[:, :1]), layer.weight[:, :1], padding=1)
        return F.conv2d(x, layer.weight[:, 1:], layer.bias, padding=1) + t * of_time

    expected = conv(f.conv1, F.relu(norm(f.norm1, h)))
    expected = norm(f.norm3, conv(f.conv2, F.relu(norm(f.norm2, expected))))
    assert_close(f(torch.tensor(t), h), expected, rtol=0, atol=1e-5)


def test_the_field_is_standardised_by_its_last_norm():
    # GroupNorm with weight 1 and bias 0: groups of 2 channels have mean 0 and variance 1
    groups = seeded(VectorField)(torch.tensor(0.5), noise(3, 64, 6, 6)).reshape(3, 32, -1)
    assert_close(groups.mean(2), torch.zeros(3, 32), rtol=0, atol=1e-5)
    assert_close(groups.var(2, correction=0), torch.ones(3, 32), rtol=0, atol=1e-2)


def test_a_residual_block_without_weights_is_the_identity():
    block = ResidualBlock()
    nn.init.zeros_(block.conv2.weight)
    h = noise(2, 64, 6, 6)
    assert torch.equal(block(h), h)


@pytest.mark.parametrize("build", [odenet, rknet])
def test_solve_gives_the_forward_passs_logits_and_the_solution(build, digits):
    model = seeded(build)
    logits, solution = model.solve(digits)
    assert torch.equal(logits, model(digits))
    assert solution.y.shape == (5, 64, 6, 6)
    assert model.dynamics is model.block.f


def test_solve_of_a_resnet_has_no_solution(digits):
    model = seeded(resnet)
    logits, solution = model.solve(digits)
    assert solution is None
    assert torch.equal(logits, model(digits))
    assert model.dynamics is model.block


# ---- beside torchdiffeq, and beside the method written out


class Counted(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f, self.calls = f, 0

    def forward(self, t, y):
        self.calls += 1
        return self.f(t, y)


@pytest.mark.parametrize("index", range(5))
@torch.no_grad()
def test_dopri_is_torchdiffeqs_at_batch_size_1(digits, index):
    model = seeded(odenet, seed=index)
    h0 = model.stem(digits[index : index + 1])
    ours = model.block.solve(h0)
    f = Counted(model.block.f)
    # step_t: torchdiffeq too ends a step at t1, instead of interpolating from beyond
    theirs = torchdiffeq.odeint(
        f, h0, torch.tensor([0.0, 1.0]), rtol=1e-3, atol=1e-3, method="dopri5", options={"step_t": torch.tensor([1.0])}
    )
    assert ours.nfe.tolist() == [f.calls]
    assert_close(ours.y, theirs[-1], rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_rk4_written_out(digits):
    model = seeded(rknet).double()
    f, h0 = model.block.f, model.stem(digits[:2].double()).detach()

    def gradients(h1):
        f.zero_grad()
        h1.square().sum().backward()
        return [p.grad.clone() for p in f.parameters()]

    ours = gradients(solve(f, h0, 0.0, 1.0, RK4()).y)
    zero, half, one = (torch.tensor(t, dtype=torch.float64) for t in (0.0, 0.5, 1.0))
    k1 = f(zero, h0)
    k2 = f(half, h0 + k1 / 2)
    k3 = f(half, h0 + k2 / 2)
    k4 = f(one, h0 + k3)
    assert_close(ours, gradients(h0 + (k1 + 2 * k2 + 2 * k3 + k4) / 6), rtol=1e-9, atol=1e-9)
