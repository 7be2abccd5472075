"""Small models and costs whose numbers can be worked out by hand."""

import pytest
import torch
from torch import nn

from dise import RK4, Dopri5, Euler, NeuralODE
from dise.select import ClassificationCost, Costs

PAPER = (Euler(), RK4(), Dopri5())


class Decay(nn.Module):
    """dy/dt = -rate · y."""

    def __init__(self, rate=1.0):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, t, y):
        return -self.rate * y


class ConvField(nn.Module):
    """dy/dt = conv(tanh(y) + t), y [n, 2, 4, 4]."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, dtype=dtype)
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.7 * torch.randn(parameter.shape, generator=draw, dtype=dtype))

    def forward(self, t, y):
        return self.conv(torch.tanh(y) + t)


class Pair(nn.Module):
    """A field of a tuple state."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, t, y):
        return tuple(-self.scale * part for part in y)


class PairModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = NeuralODE(Pair(), Euler())

    def forward(self, x):
        return self.block((x, x))[0]


def scaled_identity(size, factor):
    layer = nn.Linear(size, size, bias=False)
    with torch.no_grad():
        layer.weight.copy_(factor * torch.eye(size))
    return layer


@pytest.fixture
def decay():
    return Decay


@pytest.fixture
def pair_model():
    """x → the first of two tensors that start at x and decay."""
    return PairModel()


@pytest.fixture
def conv_field():
    return ConvField


@pytest.fixture
def toy_model():
    """x → 2x → decay → 3h(1): Euler gives 0, two Euler steps 6x/4, RK4 6x·0.375, the ODE itself 6x/e."""
    return nn.Sequential(scaled_identity(2, 2.0), NeuralODE(Decay(), Euler()), scaled_identity(2, 3.0))


@pytest.fixture(scope="session")
def assign():
    """assign(choice, K): a selector that gives sample i the candidate choice[i]."""

    def make(choice, candidates):
        choice = torch.as_tensor(choice)
        return lambda h0, k1: -nn.functional.one_hot(choice, candidates).float()

    return make


@pytest.fixture(scope="session")
def make_costs():
    """make_costs(nfe, adequate, ...): Costs of hand-made outcomes; rows are samples."""

    def make(nfe, adequate, *, rule=None, candidates=PAPER, h0=None, k1=None):
        adequate = torch.as_tensor(adequate)
        nfe = torch.as_tensor(nfe).expand(adequate.shape)
        h0 = torch.zeros(len(adequate), 1) if h0 is None else h0
        rule = rule or ClassificationCost()
        candidates = tuple(candidates[: adequate.shape[1]])
        return Costs(candidates, h0, h0 if k1 is None else k1, nfe, (~adequate).float(), rule)

    return make


@pytest.fixture(scope="session")
def classifier(tanh_field):
    """classifier(seed=): points [n, 4] → logits [n, 3] by a stem, a nonlinear field and a head, DOPRI at 1e-4."""

    def make(seed=0, *, classes=3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            field = tanh_field(2, scale=1.5, seed=1, dtype=torch.float32)
            block = NeuralODE(field, Dopri5(rtol=1e-4, atol=1e-4))
            stem, head = nn.Linear(4, 2), nn.Sequential(nn.Tanh(), nn.Linear(2, classes))
            nn.init.normal_(head[1].weight, std=3.0)
            return nn.Sequential(stem, block, head)

    return make


@pytest.fixture(scope="session")
def points():
    """points(n, seed=): inputs [n, 4] of `classifier`, in batches of 100."""

    def draw(number, seed=0):
        # not the stream of make_dynamic's own seed: its split would depend on the points
        x = torch.randn(number, 4, generator=torch.Generator().manual_seed(1000 + seed))
        return list(x.split(100))

    return draw


@pytest.fixture(scope="session")
def batches():
    """batches(*sizes): x [n, 2] that count upwards, and labels that alternate."""

    def make(*sizes):
        x = torch.arange(1.0, 1 + 2 * sum(sizes)).reshape(-1, 2)
        y = torch.arange(sum(sizes)) % 2
        return list(zip(x.split(sizes), y.split(sizes), strict=True))

    return make
