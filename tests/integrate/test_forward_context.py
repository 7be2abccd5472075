"""Backward passes that call f again see what the forward pass saw: exchanged weights, replicas, autocast."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization
from torch.testing import assert_close

from dise import RK4, Backsolve, Dopri5, NeuralODE, solve
from dise.torchdiffeq import odeint, odeint_adjoint

TIGHT = Dopri5(rtol=1e-9, atol=1e-9)
Y0 = torch.tensor([[1.0, 0.5], [-0.3, 2.0], [0.1, 0.0]], dtype=torch.float64)
modes = pytest.mark.parametrize("mode", ["checkpoint", "backsolve"])
TIMES = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)


class Field(nn.Module):
    def __init__(self, *, frozen=False):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(2, 2).double().requires_grad_(not frozen)
        self.register_buffer("shift", torch.zeros(2, dtype=torch.float64))

    def forward(self, t, y):
        return torch.tanh(self.net(y)) - 0.1 * y + self.shift

    def velocity(self, t, y):
        return self(t, y)


def hyper(z):
    return {"net.weight": z[:4].reshape(2, 2), "net.bias": z[4:6], "shift": z[6:]}


def draw():
    return torch.randn(8, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()


# ---- exchanged weights


class Wrapped(nn.Module):
    """A model whose field is reached in another way."""

    def __init__(self, field, way):
        super().__init__()
        self.field, self.way = field, way

    def forward(self, y0, mode):
        return solve(WAYS[self.way](self.field), y0, 0.0, 1.0, TIGHT, gradient=mode).y


class Callable:
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, t, y):
        return self.inner(t, y)


def in_an_object(field):
    holder = SimpleNamespace(parts=SimpleNamespace(net=field))
    return lambda t, y: holder.parts.net(t, y)


WAYS = {
    "itself": lambda field: field,
    "a lambda": lambda field: lambda t, y: field(t, y),
    "a method": lambda field: field.velocity,
    "a partial": lambda field: partial(lambda scale, t, y: scale * field(t, y), 1.0),
    "a partial of a method": lambda field: partial(field.velocity),
    "a default": lambda field: lambda t, y, f=field: f(t, y),
    "a callable object": Callable,
    "a list": lambda field: (lambda fields: lambda t, y: fields[0](t, y))([field]),
    "an object": in_an_object,
}


@modes
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
@pytest.mark.parametrize("way", WAYS)
def test_weights_from_a_hypernetwork(way, mode, frozen):
    """All weights and a buffer of the template are another network's."""

    def gradient(mode):
        z = draw()
        weights = {f"field.{name}": value for name, value in hyper(z).items()}
        return grad(functional_call(Wrapped(Field(frozen=frozen), way), weights, (Y0, mode)).sum(), z)[0]

    assert_close(gradient(mode), gradient("direct"), rtol=1e-6, atol=1e-6)


@modes
def test_frozen_weights_that_are_exchanged(mode):
    """Nothing but y0 has a gradient, which depends on the weights of the call."""

    def gradient(mode):
        y0, weights = Y0.clone().requires_grad_(), hyper(draw().detach())
        block = NeuralODE(Field(frozen=True), TIGHT, gradient=mode)
        y = functional_call(block, {f"f.{name}": value for name, value in weights.items()}, (y0,))
        return grad(y.square().sum(), y0)[0]

    assert_close(gradient(mode), gradient("direct"), rtol=1e-6, atol=1e-6)


@modes
def test_after_the_backward_pass_modules_have_their_own_weights(mode):
    block, z = NeuralODE(Field(), TIGHT, gradient=mode), draw()
    own = dict(block.named_parameters()) | dict(block.named_buffers())
    y = functional_call(block, {f"f.{name}": value for name, value in hyper(z).items()}, (Y0,))
    y.sum().backward()
    now = dict(block.named_parameters()) | dict(block.named_buffers())
    assert all(now[name] is own[name] for name in own)
    assert all(x.grad is None for x in block.parameters())


@pytest.mark.parametrize("params", [None, "weights"])
def test_odeint_adjoint_with_weights_from_a_hypernetwork(params):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = Field(frozen=True)

        def forward(self, y0, interface, **options):
            return interface(self.field, y0, TIMES, rtol=1e-9, atol=1e-9, **options)[-1]

    def gradient(interface, **options):
        z = draw()
        weights = {f"field.{name}": value for name, value in hyper(z).items()}
        if params and interface is odeint_adjoint:
            options["adjoint_params"] = tuple(weights.values())
        return grad(functional_call(Model(), weights, (Y0, interface), options).sum(), z)[0]

    assert_close(gradient(odeint_adjoint), gradient(odeint), rtol=1e-6, atol=1e-6)


@modes
def test_a_field_that_has_become_another_one_is_an_error(mode):
    """Where dise cannot find the exchanged tensor, it sees that f depends on others."""

    class Slots:
        __slots__ = ("weight",)

    slots, z = Slots(), draw()
    slots.weight = z[:4].reshape(2, 2)
    y = solve(lambda t, y: torch.tanh(y @ slots.weight), Y0, 0.0, 1.0, TIGHT, gradient=mode).y
    slots.weight = slots.weight.detach() + 1
    with pytest.raises(ValueError, match=r"gradient: .*f must still be the same function"):
        y.sum().backward()


class Layered(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, t, y):
        return torch.tanh(self.layer(y))


@pytest.mark.parametrize("way", ["direct", "checkpoint", "backsolve", odeint_adjoint])
def test_the_first_solve_gives_lazy_modules_their_weights(way):
    """They are uninitialized before it, and nothing can be asked of them."""
    lazy, y0 = Layered(nn.LazyLinear(2)), torch.ones(3, 2)
    if isinstance(way, str):
        y = NeuralODE(lazy, TIGHT, gradient=way)(y0)
    else:
        y = odeint_adjoint(lazy, y0, torch.tensor([0.0, 1.0]), rtol=1e-7, atol=1e-7)[-1]
    y.sum().backward()
    known = Layered(nn.Linear(2, 2))
    known.load_state_dict(lazy.state_dict())
    NeuralODE(known, TIGHT)(y0).sum().backward()
    assert_close(lazy.layer.weight.grad, known.layer.weight.grad, rtol=1e-4, atol=1e-6)


def test_of_a_calculation_with_several_results_each_is_found():
    """Both parts of a split tensor come from one node of the graph."""
    z = draw()
    a, b = z[:4].reshape(2, 2).split(1)
    f = lambda t, y: torch.tanh(y * a) + b  # noqa: E731
    for gradient in ("backsolve", Backsolve(params=[a, b])):
        ours = grad(solve(f, Y0, 0.0, 1.0, TIGHT, gradient=gradient).y.sum(), z, retain_graph=True)
        direct = grad(solve(f, Y0, 0.0, 1.0, TIGHT).y.sum(), z, retain_graph=True)
        assert_close(ours, direct, rtol=1e-6, atol=1e-6)


# ---- replicas and parametrizations


@modes
@pytest.mark.parametrize("interface", ["solve", "odeint_adjoint"])
def test_replicas(mode, interface):
    """As nn.DataParallel makes them: copies without parameters, whose tensors are calculated from the module's."""

    def gradients(mode):
        module = Field()
        copy = module._replicate_for_data_parallel()
        net = module.net._replicate_for_data_parallel()
        for name, value in module.net.named_parameters():
            setattr(net, name, value.clone())
        copy._modules["net"] = net
        assert list(copy.parameters()) == []
        if interface == "solve" or mode == "direct":
            y = solve(copy, Y0, 0.0, 1.0, TIGHT, gradient=mode, batched=interface == "solve").y
        else:
            y = odeint_adjoint(copy, Y0, TIMES, rtol=1e-9, atol=1e-9)[-1]
        return grad(y.sum(), tuple(module.parameters()))

    assert_close(gradients(mode), gradients("direct"), rtol=1e-6, atol=1e-6)


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


@modes
@pytest.mark.parametrize("kind", ["symmetric", "weight_norm", "old weight_norm", "spectral_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_parametrizations(mode, kind):
    def gradients(mode):
        field = Field()
        if kind == "symmetric":
            register_parametrization(field.net, "weight", Symmetric())
        elif kind == "weight_norm":
            parametrizations.weight_norm(field.net)
        elif kind == "old weight_norm":
            nn.utils.weight_norm(field.net)
        else:
            parametrizations.spectral_norm(field.net, n_power_iterations=20)
            field.eval()
        y = solve(field, Y0, 0.0, 1.0, TIGHT, gradient=mode).y
        return grad(y.sum(), tuple(field.parameters()))

    assert_close(gradients(mode), gradients("direct"), rtol=1e-6, atol=1e-6)


# ---- autocast


class Cast(nn.Module):
    """Remembers the dtypes of its layer's values."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = nn.Linear(2, 2), []

    def forward(self, t, y):
        value = self.net(y)
        self.seen.append(value.dtype)
        return torch.tanh(value)


@pytest.mark.parametrize("forward", [torch.bfloat16, torch.float16, None], ids=str)
@pytest.mark.parametrize("backward", [torch.bfloat16, None], ids=str)
@pytest.mark.parametrize("way", ["checkpoint", "backsolve", "odeint_adjoint"])
def test_the_backward_pass_has_the_forward_passs_autocast(way, forward, backward):
    f, y0 = Cast(), torch.ones(8, 2)

    def under(dtype):
        return torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    with under(forward):
        if way == "odeint_adjoint":
            y = odeint_adjoint(f, y0, torch.tensor([0.0, 1.0]), rtol=1e-2, atol=1e-2)[-1]
        else:
            y = solve(f, y0, 0.0, 1.0, Dopri5(rtol=1e-2, atol=1e-2), gradient=way).y
    seen, f.seen = set(f.seen), []
    with under(backward):
        y.float().sum().backward()
    assert seen == set(f.seen) == {forward or torch.float32}


def test_checkpoint_names_the_states_device_to_torch(monkeypatch):
    """torch repeats random numbers of the devices that it finds among a checkpoint's arguments, and of no others."""
    from torch.utils import checkpoint

    given, original = [], checkpoint.checkpoint

    def seen(function, *args, **options):
        torch.utils._pytree.tree_map(lambda x: given.append(x), args)
        return original(function, *args, **options)

    monkeypatch.setattr(checkpoint, "checkpoint", seen)
    y0 = Y0.clone().requires_grad_()
    solve(lambda t, y: -y, y0, 0.0, 1.0, RK4(2), gradient="checkpoint")
    assert any(x is y0 for x in given)
