"""How many states a solve holds at a time: a constant number, however many steps it takes."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dise
from dise.torchdiffeq import odeint

SIZE = 10_000  # numbers in a state
STEPS = dise.Dopri5(rtol=1e-6, atol=1e-6)


class LiveStates(TorchDispatchMode):
    """Counts memory that is alive, in multiples of a state, beside what was there before.

    Attributes:
        peak: the most so far.
    """

    def __init__(self, state):
        super().__init__()
        self.unit, self.alive, self.peak, self.known = state.untyped_storage().nbytes(), 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and id(x.untyped_storage()) not in before:
                self.add(x.untyped_storage())
        return out

    def add(self, storage):
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self.remove, size)

    def remove(self, size):
        self.alive -= size


def peak(solve, y0):
    with torch.no_grad(), LiveStates(y0) as states:
        solution = solve(y0)
    return states.peak / states.unit, solution


def wave(t, y):
    return torch.cos(60 * t) * y


@pytest.fixture(params=[1, 50], ids=["one sample", "50 samples"])
def y0(request):
    return torch.ones(request.param, SIZE // request.param)


@pytest.mark.parametrize("t1", [0.2, 2.0])
def test_the_end(y0, t1):
    assert peak(lambda y: dise.solve(wave, y, 0.0, t1, STEPS), y0)[0] < 30


def test_odeint(y0):
    number, _ = peak(lambda y: odeint(wave, y, torch.tensor([0.0, 2.0]), rtol=1e-5, atol=1e-5), y0)
    assert number < 30


@pytest.mark.parametrize("points", [10, 1000])
def test_save_points(y0, points):
    number, solution = peak(lambda y: dise.solve(wave, y, 0.0, 2.0, STEPS, save_at=torch.linspace(0, 2, points)), y0)
    assert solution.n_steps.max() > 100
    assert number < 30 + points


WAYS = {
    "one system backwards": lambda y: dise.solve(wave, y, 2.0, 0.0, STEPS, batched=False),
    "a dict": lambda y: dise.solve(lambda t, y: {"y": wave(t, y["y"])}, {"y": y}, 0.0, 2.0, STEPS),
    "spans of samples": lambda y: dise.solve(wave, y, 0.0, torch.linspace(1, 2, len(y)), STEPS),
    "fixed steps": lambda y: dise.solve(wave, y, 0.0, 2.0, dise.RK4(200)),
    "no compaction": lambda y: dise.solve(wave, y, 0.0, 2.0, dise.Tsit5(rtol=1e-6, atol=1e-6), drop_finished=False),
    "a block": lambda y: dise.NeuralODE(wave, STEPS, t1=2.0).eval()(y),
    "fixed steps of torchdiffeq": lambda y: odeint(
        wave, y, torch.tensor([2.0, 0.0]), method="midpoint", options={"step_size": 0.01}
    ),
    "Adams of torchdiffeq": lambda y: odeint(
        wave, y, torch.tensor([0.0, 2.0]), method="explicit_adams", options={"step_size": 0.01}
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_other_ways_to_the_end(way):
    assert peak(WAYS[way], torch.ones(20, SIZE // 20))[0] < 30
