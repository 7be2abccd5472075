import time

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import RK4, Dopri5, Euler, NeuralODE, profile_candidates
from dise.select import ClassificationCost, Profile, collect_costs, find_block, oracle, time_side_by_side
from dise.select.judging import profile

# ---- a clock that the calls themselves turn


class Clock:
    def __init__(self):
        self.now, self.order = 0.0, []

    def perf_counter(self):
        return self.now

    def takes(self, name, milliseconds):
        """A call that takes as long as its input says."""

        def call(x):
            self.order.append((name, int(x)))
            self.now += milliseconds[int(x)] / 1e3

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(profile.time, "perf_counter", clock.perf_counter)
    return clock


def test_medians_of_each_call(clock):
    calls = {"a": clock.takes("a", [9, 2, 3]), "b": clock.takes("b", [10, 30, 20])}
    result = time_side_by_side(calls, [torch.tensor(i) for i in range(3)])
    assert result == pytest.approx({"a": 3.0, "b": 20.0})


def test_calls_take_turns_in_any_order_after_one_to_warm_up(clock):
    calls = {name: clock.takes(name, [1] * 20) for name in "abc"}
    time_side_by_side(calls, torch.arange(20))
    warm, turns = clock.order[:3], [clock.order[i : i + 3] for i in range(3, 63, 3)]
    assert warm == [(name, 0) for name in "abc"]
    assert [sorted(turn) for turn in turns] == [[(name, i) for name in "abc"] for i in range(20)]
    orders = ["".join(name for name, _ in turn) for turn in turns]
    assert len(set(orders)) > 3
    clock.order.clear()
    time_side_by_side(calls, torch.arange(20))
    assert clock.order == [*warm, *[call for turn in turns for call in turn]]


# ---- candidates


class Slow(nn.Module):
    """dy/dt = -rate·y; a call takes a millisecond, and another one a row."""

    def __init__(self, clock):
        super().__init__()
        self.clock, self.rate = clock, nn.Parameter(torch.ones(()))

    def forward(self, t, y):
        self.clock.now += (1 + len(y)) / 1e3
        return -self.rate * y


CANDIDATES = (Euler(1), RK4(1), Dopri5(rtol=1e-3, atol=1e-3, first_step="span"))


@pytest.fixture
def slow(clock):
    return nn.Sequential(nn.Identity(), NeuralODE(Slow(clock), RK4()))


def data(*sizes):
    return [(torch.randn(size, 2), torch.zeros(size, dtype=torch.int64)) for size in sizes]


def test_milliseconds_of_a_batch_are_what_its_calls_take(slow):
    result = profile_candidates(slow, data(3, 4), CANDIDATES, batches=(5, 1, 2), repeats=3)
    assert (result.candidates, result.batches, result.device) == (CANDIDATES, (1, 2, 5), "cpu, 1 threads")
    # a call with n rows takes n + 1; DOPRI accepts its one step of the span: 7 calls
    assert_close(result.milliseconds, torch.tensor([[2.0, 8, 14], [3, 12, 21], [6, 24, 42]]))
    assert_close(result.nfe, torch.tensor([[1.0, 4, 7]] * 3))
    assert find_block(slow).integrator == RK4()


def test_a_sample_pays_for_its_share_of_the_batch():
    result = Profile(
        (Euler(), Dopri5()), (1, 10), torch.tensor([[1.0, 9.0], [5.0, 60.0]]), torch.tensor([[1.0, 18.0], [1, 20]]), ""
    )
    nfe = torch.tensor([[1, 14], [1, 26]])
    assert_close(result.price(nfe, 10), torch.tensor([[0.5, 4.2], [0.5, 7.8]]))
    assert_close(result.price(nfe, 1), torch.tensor([[1.0, 7.0], [1.0, 13.0]]))
    with pytest.raises(ValueError, match=r"batch: expected one of the measured sizes \(1, 10\), got 32"):
        result.price(nfe, 32)


def test_milliseconds_take_the_place_of_nfe(slow):
    """A machine on which RK4 is cheaper than Euler."""
    costs = collect_costs(slow, data(3), (Euler(), RK4()), ClassificationCost(alpha=0.5, M=100))
    costs.error.zero_()
    odd = Profile(costs.candidates, (1,), torch.tensor([[9.0, 4.0]]), torch.tensor([[1.0, 4.0]]), "")
    timed = odd.apply(costs, 1)
    assert_close(timed.cost, torch.tensor([[3.0, 2.0]] * 3))
    assert_close(costs.cost, torch.tensor([[1.0, 2.0]] * 3))
    assert oracle(timed).mean_nfe == 4
    assert_close(timed.take_candidates([1]).take(torch.tensor([0])).cost, torch.tensor([[2.0]]))
    with pytest.raises(ValueError, match=r"costs: expected those of \['Euler', 'RK4'\], got \['RK4'\]"):
        odd.apply(costs.take_candidates([1]), 1)


def test_too_few_samples_for_the_largest_batch(slow):
    with pytest.raises(ValueError, match="data: expected at least 8 samples for the largest batch, got 7"):
        profile_candidates(slow, data(3, 4), CANDIDATES, batches=(8,))


@pytest.mark.parametrize("wrong", [{"batches": ()}, {"batches": (0,)}, {"repeats": 0}, {"candidates": ()}])
def test_nothing_to_measure(slow, wrong):
    arguments = {"candidates": CANDIDATES, "batches": (1,), "repeats": 1} | wrong
    with pytest.raises(ValueError, match="candidates, batches, repeats: expected at least one"):
        profile_candidates(slow, data(1), **arguments)


def test_states_may_be_tuples(pair_model):
    result = profile_candidates(pair_model, data(2, 2), (Euler(), RK4()), batches=(3,), repeats=2)
    assert_close(result.nfe, torch.tensor([[1.0, 4.0]]))


class Spans(nn.Module):
    """Each sample has a span of its own, as long as its first number says."""

    def __init__(self, f):
        super().__init__()
        self.block = NeuralODE(f, Euler())

    def forward(self, x):
        return self.block(x, t1=x[:, 0])


def test_each_sample_is_integrated_over_its_own_span():
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.ends, self.rate = [], nn.Parameter(torch.ones(()))

        def forward(self, t, y):
            self.ends.append(float(t.max()))
            return -self.rate * y

    f = Field()
    x = torch.tensor([[3.0, 1.0], [5.0, 1.0]])
    profile_candidates(Spans(f), [(x, None)], (RK4(1),), batches=(1,), repeats=2)
    assert f.ends[1:] == [0, 1.5, 1.5, 3] * 2 + [0, 2.5, 2.5, 5]  # the first is the model's own Euler step


def test_another_average_gets_the_times_in_the_order_of_the_inputs():
    calls = {"slow first": lambda x: time.sleep(0.02 if x == 0 else 0)}
    largest = time_side_by_side(calls, [1, 0, 1], average=lambda seconds: float(seconds.index(max(seconds))))
    assert largest == {"slow first": 1e3}
