import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import RK4, Dopri5, Dynamic, Euler, NeuralODE
from dise.select import find_block
from dise_experiments.mnist.data import load_mnist_sample, to_input
from dise_experiments.mnist.model import odenet, resnet
from dise_experiments.run import timing
from dise_experiments.run.timing import TorchdiffeqBlock, time_policies, with_torchdiffeq


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return odenet().eval()


@pytest.fixture(scope="module")
def digits():
    return to_input(load_mnist_sample().test.images[:3])


# ---- wall-clock


def test_policies_are_all_timed(model, digits, assign):
    dynamic = Dynamic((Euler(), RK4()), assign([0, 1, 0], 2))
    result = time_policies(model, (Euler(), Dopri5()), {"v": dynamic}, [digits, digits], tolerance=Dopri5())
    assert list(result["ode_ms"]) == list(result["model_ms"]) == ["torchdiffeq dopri5", "Euler", "Dopri5", "DISE (v)"]
    assert list(result["parts_ms"]) == ["f", "v"]
    assert (result["batch"], result["batches"], result["threads"], result["device"]) == (3, 2, 1, "cpu")
    assert find_block(model).integrator == Dopri5()


@pytest.fixture
def assign():
    return lambda choice, K: lambda h0, k1: -nn.functional.one_hot(torch.tensor(choice), K).float()


# ---- torchdiffeq's block


@torch.no_grad()
def test_torchdiffeqs_logits_are_ours_within_the_tolerance(model, digits):
    # one sample a batch, where a step size for the batch is one for the sample; both are within about 1e-3 of the ODE
    exact = NeuralODE(model.block.f, Dopri5(rtol=1e-6, atol=1e-6))(model.stem(digits[:1]))
    other = with_torchdiffeq(model, Dopri5(rtol=1e-3, atol=1e-3))
    assert_close(other(digits[:1]), model.head(exact.clone()), rtol=5e-3, atol=5e-3)
    assert_close(other(digits[:1]), model(digits[:1]), rtol=5e-3, atol=5e-3)


def test_the_original_is_left_as_it_was(model, digits):
    before, block = {name: value.clone() for name, value in model.state_dict().items()}, model.block
    other = with_torchdiffeq(model, Dopri5(rtol=1e-3, atol=1e-3))
    assert model.block is block
    assert isinstance(block, NeuralODE)
    assert isinstance(other.block, TorchdiffeqBlock)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_span_is_the_blocks_and_the_tolerance_as_given(decay):
    # y' = -y from 0.5 to 2; the block's own integrator does not matter
    block = NeuralODE(decay, Euler(), t0=0.5, t1=2.0)
    y = TorchdiffeqBlock(block, Dopri5(rtol=1e-7, atol=1e-9))(torch.ones(1, 1, dtype=torch.float64))
    assert_close(y, torch.full((1, 1), -1.5, dtype=torch.float64).exp(), rtol=1e-6, atol=0)


def test_the_tolerance_reaches_torchdiffeq(decay, monkeypatch):
    seen = []

    def odeint(f, y0, span, **options):
        seen.append((options, span.tolist()))
        return torch.stack([y0, y0])

    monkeypatch.setattr(timing, "odeint", odeint)
    model = nn.Sequential(NeuralODE(decay, RK4()))
    with_torchdiffeq(model, Dopri5(rtol=1e-2, atol=1e-4))(torch.ones(2, 1))
    assert seen == [({"rtol": 1e-2, "atol": 1e-4, "method": "dopri5"}, [0, 1])]


# ---- a span of their own for samples


class Turning(nn.Module):
    """y' = cos(t)·y, whose solution is y0·exp(sin t1 − sin t0); remembers the times it was called at."""

    def __init__(self):
        super().__init__()
        self.rate, self.times = nn.Parameter(torch.ones((), dtype=torch.float64)), []

    def forward(self, t, y):
        self.times.append(t.detach().clone())
        return self.rate * t.cos() * y


SPANS = (torch.tensor([0.0, 1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 1.0, -1.0, 3.5]).double())


@pytest.mark.parametrize(
    ("t0", "t1"), [SPANS, (0.0, SPANS[1]), (SPANS[0], 1.0), (0.5, 2.0), (SPANS[0][0], SPANS[1][0])]
)
@torch.no_grad()
def test_torchdiffeq_takes_each_sample_over_its_own_span(t0, t1):
    block = NeuralODE(Turning(), Euler())
    y0 = torch.tensor([[1.0, -2.0], [3.0, 0.5], [0.1, 1.0], [2.0, 2.0]]).double()
    y = TorchdiffeqBlock(block, Dopri5(rtol=1e-9, atol=1e-9))(y0, t0=t0, t1=t1)
    ends = [torch.as_tensor(t, dtype=torch.float64).expand(4) for t in (t0, t1)]
    assert_close(y, y0 * (ends[1].sin() - ends[0].sin()).exp()[:, None], rtol=1e-7, atol=1e-7)


@torch.no_grad()
def test_of_spans_of_their_own_a_step_is_the_same_part_for_all():
    block = NeuralODE(Turning(), Euler())
    t0, t1 = SPANS
    TorchdiffeqBlock(block, Dopri5(rtol=1e-4, atol=1e-4))(torch.ones(4, 2, 3, dtype=torch.float64), t0=t0, t1=t1)
    moving = t0 != t1
    for t in block.f.times:
        assert t.shape == (4, 1, 1)
        parts = ((t.flatten() - t0) / (t1 - t0))[moving]
        assert_close(parts, parts[:1].expand(3))


@torch.no_grad()
def test_a_span_for_all_is_left_as_it_is(monkeypatch):
    seen = []
    monkeypatch.setattr(timing, "odeint", lambda f, y0, span, **options: seen.append((f, span.tolist())) or y0[None])
    block = NeuralODE(Turning(), Euler(), t0=1.0, t1=3.0)
    other, y0 = TorchdiffeqBlock(block, Dopri5()), torch.ones(2, 1)
    other(y0), other(y0, t1=2.0), other(y0, t0=torch.tensor(0.5))
    assert seen == [(block.f, [1.0, 3.0]), (block.f, [1.0, 2.0]), (block.f, [0.5, 3.0])]


class Ragged:
    """An input that is no tensor: starts [B, 1] and ends [B]."""

    def __init__(self, start, end):
        self.start, self.end, self.device = start, end, start.device

    def __len__(self):
        return len(self.start)

    def to(self, device):
        return self


class RaggedModel(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.block, self.head = NeuralODE(f, Dopri5()), nn.Identity()

    def forward(self, x):
        return self.head(self.block(x.start, t1=x.end))


@torch.no_grad()
def test_the_ode_part_is_timed_over_the_spans_that_the_model_asks_for(monkeypatch):
    """Each policy's ODE part gets the states and spans of the model's own call."""
    batches = [
        Ragged(torch.full((3, 1), float(i + 1)).double(), torch.tensor([0.5, 0.0, 1.5 + i]).double()) for i in range(2)
    ]
    model, solved, called = RaggedModel(Turning()), {}, []

    def side_by_side(calls, inputs, *, device):
        assert device == torch.device("cpu")
        for name, call in calls.items():
            results = [call(x) for x in inputs]
            solved.setdefault(name, []).append(results)
        called.append(list(calls))
        return dict.fromkeys(calls, 1.0)

    monkeypatch.setattr(timing, "time_side_by_side", side_by_side)
    tight = Dopri5(rtol=1e-9, atol=1e-9)
    dynamic = Dynamic((Euler(), tight), lambda h0, k1: torch.tensor([[1.0, 0.0]]).expand(len(h0), 2))
    time_policies(model, (tight, RK4(40)), {"v": dynamic}, batches, tolerance=tight)
    assert called == [["f", "v"], *[["torchdiffeq dopri5", str(tight), "RK4(steps=40)", "DISE (v)"]] * 2]
    exact = [x.start * x.end.sin().exp()[:, None] for x in batches]
    for name in called[1]:
        ode, whole = solved[name]
        for parts in (ode, whole):
            assert_close(torch.cat(parts), torch.cat(exact), rtol=1e-5, atol=1e-6)
    assert_close(torch.cat(solved["f"][0]), torch.cat([x.start for x in batches]))


# ---- a state that is a tuple


class PairModel(nn.Module):
    """x → (x, half of its first column) → the first tensor of the block's end."""

    def __init__(self, f):
        super().__init__()
        self.block = NeuralODE(f, Dopri5())

    def forward(self, x):
        return self.block((x, 0.5 * x[:, :1]))[0]


class PairDecay(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.ones(()))

    def forward(self, t, y):
        return tuple(-self.rate * part for part in y)


@torch.no_grad()
def test_torchdiffeq_takes_a_tuple():
    block = NeuralODE(PairDecay(), Dopri5())
    y0 = (torch.ones(2, 3, dtype=torch.float64), torch.full((2, 1), 2.0, dtype=torch.float64))
    y = TorchdiffeqBlock(block, Dopri5(rtol=1e-8, atol=1e-8))(y0)
    assert_close(y, tuple(part * torch.tensor(-1.0, dtype=torch.float64).exp() for part in y0), rtol=1e-6, atol=0)


@torch.no_grad()
def test_torchdiffeq_takes_a_tuple_over_spans_of_their_own():
    block, t1 = NeuralODE(PairDecay(), Dopri5()), torch.tensor([0.5, 2.0], dtype=torch.float64)
    y0 = (torch.ones(2, 3, dtype=torch.float64), torch.full((2, 4, 1), 2.0, dtype=torch.float64))
    first, second = TorchdiffeqBlock(block, Dopri5(rtol=1e-8, atol=1e-8))(y0, t1=t1)
    assert_close(first, y0[0] * (-t1).exp()[:, None], rtol=1e-6, atol=0)
    assert_close(second, y0[1] * (-t1).exp()[:, None, None], rtol=1e-6, atol=0)


def test_policies_on_a_tuple_are_timed_and_the_selector_sees_it_joined():
    shapes = []

    def selector(h0, k1):
        shapes.append((h0.shape, k1.shape))
        return torch.zeros(len(h0), 2)

    model = PairModel(PairDecay())
    dynamic = Dynamic((Euler(), RK4()), selector)
    result = time_policies(model, (Euler(),), {"v": dynamic}, [torch.ones(4, 3)], tolerance=Dopri5())
    assert list(result["ode_ms"]) == ["torchdiffeq dopri5", "Euler", "DISE (v)"]
    assert set(shapes) == {((4, 4), (4, 4))}


@pytest.fixture
def decay():
    class Decay(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.ones(()))

        def forward(self, t, y):
            return -self.rate * y

    return Decay()


def test_a_model_without_a_block_has_nothing_to_replace():
    with pytest.raises(ValueError, match=r"expected one dise.NeuralODE inside, found 0"):
        with_torchdiffeq(resnet(), Dopri5())
