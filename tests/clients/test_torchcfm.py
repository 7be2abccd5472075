"""`NeuralODE.trajectory` against torchdyn's, with torchcfm's models."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import dise
from dise.clients.torchcfm import NeuralODE

torchdyn = pytest.importorskip("torchdyn.core")
wrapped = pytest.importorskip("torchcfm.utils")
models = pytest.importorskip("torchcfm.models.models")


def model():
    torch.manual_seed(0)
    return wrapped.torch_wrapper(models.MLP(dim=2, w=16, time_varying=True)).double()


def points(n=6):
    return torch.randn(n, 2, dtype=torch.float64)


SPAN = torch.linspace(0, 1, 9, dtype=torch.float64)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "dopri5", "tsit5"])
def test_trajectories_are_torchdyns(solver):
    x = points()
    options = {"solver": solver, "sensitivity": "adjoint", "atol": 1e-7, "rtol": 1e-7}
    with torch.no_grad():
        ours = NeuralODE(model(), **options).trajectory(x, SPAN)
        expected = torchdyn.NeuralODE(model(), **options).trajectory(x, SPAN)
    assert ours.shape == (9, 6, 2)
    assert_close(ours, expected, rtol=0, atol=1e-4 if solver in ("dopri5", "tsit5") else 1e-9)


def test_rk4_is_torchdyns_where_the_field_has_no_time():
    """torchdyn 1.0.6 evaluates its later stages at the times of the earlier ones."""
    x, matrix = points(), torch.randn(2, 2, dtype=torch.float64)

    def field(t, x, args=None):
        return torch.tanh(x @ matrix)

    ours, theirs = NeuralODE(field, "rk4"), torchdyn.NeuralODE(field, "rk4")
    assert_close(ours.trajectory(x, SPAN), theirs.trajectory(x, SPAN), rtol=0, atol=1e-6)


def test_a_row_alone_is_the_row_in_the_batch():
    x, node = points(), NeuralODE(model(), solver="dopri5")
    with torch.no_grad():
        whole = node.trajectory(x, SPAN)
        for i in range(6):
            assert_close(node.trajectory(x[i : i + 1], SPAN)[:, 0], whole[:, i], rtol=0, atol=1e-9)


def test_the_unet_takes_a_time_per_row():
    unet = pytest.importorskip("torchcfm.models.unet.unet")
    torch.manual_seed(0)
    net = unet.UNetModelWrapper(dim=(1, 28, 28), num_channels=32, num_res_blocks=1, num_heads=1).eval()
    for parameter in net.parameters():  # its last layer starts at 0
        nn.init.normal_(parameter, std=0.05)
    x = torch.randn(2, 1, 28, 28)
    options = {"solver": "dopri5", "atol": 1e-4, "rtol": 1e-4}
    with torch.no_grad():
        ours = NeuralODE(net, **options).trajectory(x, torch.tensor([0.0, 1.0]))
        expected = torchdyn.NeuralODE(net, **options).trajectory(x, torch.tensor([0.0, 1.0]))
    assert_close(ours, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("sensitivity", ["autograd", "adjoint"])
def test_gradients(sensitivity):
    x, ends = points(), SPAN[[0, -1]]
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))  # torchcfm's units have no second derivative
    net = wrapped.torch_wrapper(net).double()

    def gradient(node):
        return torch.autograd.grad(node.trajectory(x, ends)[-1].square().sum(), list(net.parameters()))

    ours = gradient(NeuralODE(net, "dopri5", atol=1e-8, rtol=1e-8, sensitivity=sensitivity))
    theirs = gradient(torchdyn.NeuralODE(net, "dopri5", atol=1e-8, rtol=1e-8))
    for actual, expected in zip(ours, theirs, strict=True):
        assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_forward_any_integrator_and_the_way_back():
    x = points()
    exact = NeuralODE(model(), "dopri8", atol=1e-10, rtol=1e-10).trajectory(x, SPAN)
    times, states = NeuralODE(model(), integrator=dise.Adams(rtol=1e-6, atol=1e-6))(x)
    assert_close(states, exact[[0, -1]], rtol=0, atol=1e-4)
    assert times.tolist() == [0, 1]
    table = NeuralODE(model(), integrator=dise.Multistep.adams(60, 3))
    assert_close(table.trajectory(x, SPAN[[0, -1]])[1], exact[-1], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="t_span: a Multistep method has the two ends only"):
        table.trajectory(x, SPAN)
    back = NeuralODE(model(), "dopri5", atol=1e-8, rtol=1e-8).trajectory(exact[-1], SPAN.flip(0))
    assert_close(back.flip(0), exact, rtol=0, atol=1e-4)
    whole = NeuralODE(model(), "dopri5", atol=1e-8, rtol=1e-8, batched=False).trajectory(x, SPAN)
    assert_close(whole, exact, rtol=0, atol=1e-5)


def test_fields_without_time_and_plain_functions():
    x = points()
    for field in (lambda x: -x, lambda t, x: -x, nn.Linear(2, 2, bias=False).double()):
        if isinstance(field, nn.Linear):
            with torch.no_grad():
                field.weight.copy_(-torch.eye(2))
        y = NeuralODE(field, "dopri5", atol=1e-9, rtol=1e-9).trajectory(x, SPAN)
        assert_close(y[-1], x * torch.tensor(-1.0, dtype=x.dtype).exp(), rtol=0, atol=1e-7)


def test_bad_arguments():
    with pytest.raises(ValueError, match="solver: expected one of dopri5"):
        NeuralODE(model(), "dopri6")
    with pytest.raises(ValueError, match="sensitivity: expected one of autograd, adjoint"):
        NeuralODE(model(), sensitivity="both")
    with pytest.raises(TypeError, match="vector_field: expected a function or module"):
        NeuralODE(2)
    with pytest.raises(TypeError, match="x: expected a tensor of real numbers"):
        NeuralODE(model()).trajectory([1.0], SPAN)
    with pytest.raises(ValueError, match="t_span: expected at least two times"):
        NeuralODE(model()).trajectory(points(), torch.tensor([0.0]))
    with pytest.raises(ValueError, match="model: expected one that takes a time per row"):
        NeuralODE(lambda t, x: t * x).trajectory(points(), SPAN)
