"""A model written on torchdiffeq, in the form of its ODE-Net example."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchdiffeq import odeint

from dise import Dopri5, load_policy, make_dynamic, save_policy
from dise.select import AdaptedBlock, adapt, find_block


class Field(nn.Module):
    """A vector field that counts its calls and wants a time that ones can be multiplied with."""

    def __init__(self, size, seed):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.layer, self.nfe = nn.Linear(size + 1, size), 0
        with torch.no_grad():
            self.layer.weight.copy_(2 * torch.randn(self.layer.weight.shape, generator=draw))

    def forward(self, t, x):
        self.nfe += 1
        return torch.tanh(self.layer(torch.cat([torch.ones_like(x[:, :1]) * t, x], 1)))


class ODEBlock(nn.Module):
    """What the example has: a vector field, a span kept as a tensor, and a solve that returns the last state."""

    def __init__(self, odefunc, end=1):
        super().__init__()
        self.odefunc = odefunc
        self.integration_time = torch.tensor([0, end]).float()

    def forward(self, x):
        self.integration_time = self.integration_time.type_as(x)
        return odeint(self.odefunc, x, self.integration_time, rtol=1e-3, atol=1e-3)[1]


def example(seed=0, end=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stem, feature_layers = nn.Linear(4, 2), nn.Sequential(ODEBlock(Field(2, seed), end))
        head = nn.Linear(2, 3)
        nn.init.normal_(head.weight, std=3.0)
        model = nn.Sequential(stem, feature_layers, nn.Tanh(), head)
    return model.eval()


def points(number, seed=0):
    return torch.randn(number, 4, generator=torch.Generator().manual_seed(seed))


def test_the_adapted_block_gives_torchdiffeqs_states():
    model, h0 = example(end=2), points(30)[:, :2]
    block = adapt(model[1][0], Dopri5(rtol=1e-7, atol=1e-7))
    assert (block.t0, block.t1) == (0.0, 2.0)
    assert block.f is model[1][0].odefunc
    exact = odeint(block.f, h0, torch.tensor([0.0, 2.0]), rtol=1e-7, atol=1e-7)[1]
    assert_close(block(h0), exact, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def dynamic():
    """The example, made dynamic."""
    return make_dynamic(example(), points(1000).split(100), epsilon=0.02, block="1.0")


def test_a_published_models_block_is_made_dynamic(dynamic):
    model, original = dynamic, example()
    assert isinstance(model[1][0], AdaptedBlock)
    fresh = points(3000, seed=1)
    with torch.no_grad():
        same = model(fresh).argmax(1) == original(fresh).argmax(1)
    assert same.double().mean() >= 0.98
    report = find_block(model).report
    assert report.nfe < 0.5 * report.reference_nfe
    assert any(name.startswith("cascade") for name in report.families)


def test_weights_keep_their_names_in_the_state_dict():
    model, other = example(), example(seed=1)
    names = list(model.state_dict())
    model.set_submodule("1.0", adapt(model[1][0], Dopri5()))
    assert set(model.state_dict()) == set(names)
    model.load_state_dict(other.state_dict())
    x = points(20)
    assert_close(model(x), other(x), rtol=1e-2, atol=1e-2)
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    back = example(seed=2)
    back.load_state_dict(model.state_dict())
    assert torch.equal(back(x), other(x))


def test_what_else_was_in_the_block_is_dropped_when_loading():
    class WithBuffer(ODEBlock):
        def __init__(self, odefunc):
            super().__init__(odefunc)
            del self.integration_time
            self.register_buffer("integration_time", torch.tensor([0.0, 1.0]))

    original = WithBuffer(Field(2, 0))
    block = adapt(original, Dopri5())
    assert (block.t0, block.t1) == (0.0, 1.0)
    block.load_state_dict(original.state_dict())
    assert set(block.state_dict()) == {"odefunc.layer.weight", "odefunc.layer.bias"}


class Odd(ODEBlock):
    """Two children, and a span that is no tensor."""

    def __init__(self, odefunc):
        super().__init__(odefunc)
        self.norm, self.integration_time = nn.LayerNorm(2), (0.0, 1.0)

    def forward(self, x):
        return odeint(self.odefunc, x, torch.tensor(self.integration_time), rtol=1e-3, atol=1e-3)[1]


def test_what_cannot_be_seen_is_to_be_given():
    odd = Odd(Field(2, 0))
    with pytest.raises(ValueError, match=r"f: give the name of the vector field, one of \['odefunc', 'norm'\]"):
        adapt(odd, Dopri5())
    with pytest.raises(ValueError, match=r"span: give \(t0, t1\); the block has 0 tensors"):
        adapt(odd, Dopri5(), f="odefunc")
    with pytest.raises(ValueError, match="f: expected the name of a module of the block"):
        adapt(odd, Dopri5(), f="field")
    block = adapt(odd, Dopri5(rtol=1e-7, atol=1e-7), f="odefunc", span=(0, 1))
    h0 = points(5)[:, :2]
    exact = odeint(odd.odefunc, h0, torch.tensor([0.0, 1.0]), rtol=1e-7, atol=1e-7)[1]
    assert_close(block(h0), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [{"span": (0, 3)}, {"span": (1, 0)}])
def test_a_block_that_is_read_wrongly_is_noticed(wrong):
    model = example()
    with pytest.raises(ValueError, match=r"block: Dopri5.* gives another final state than the block"):
        make_dynamic(model, points(1000).split(100), epsilon=0.02, block="1.0", **wrong)
    assert isinstance(model[1][0], ODEBlock)


def test_a_block_that_returns_something_else():
    class All(ODEBlock):
        def forward(self, x):
            return odeint(self.odefunc, x, self.integration_time, rtol=1e-3, atol=1e-3)

    class Last(nn.Module):
        def forward(self, states):
            return states[-1]

    model = nn.Sequential(nn.Linear(4, 2), All(Field(2, 0)), Last())
    with pytest.raises(ValueError, match=r"block: expected a module that returns a state like its input \(100, 2\)"):
        make_dynamic(model, points(1000).split(100), epsilon=0.02, block="1")


def test_a_published_models_policy_is_saved_and_loaded(dynamic, tmp_path):
    save_policy(dynamic, tmp_path)
    other, x = load_policy(example(), tmp_path), points(1000)
    assert isinstance(other[1][0], AdaptedBlock)
    assert torch.equal(dynamic(x), other(x))
