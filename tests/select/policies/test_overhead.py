import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import RK4, AdequacySelector, Cascade, Confidence, Dynamic, Euler, NeuralODE, PooledNetwork
from dise.select import count_macs, nfe_with_overhead

# ---- multiply–adds


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(5, 7), (3, 5), 3 * 5 * 7),
        (nn.Linear(5, 7, bias=False), (3, 5), 3 * 5 * 7),
        (nn.Conv2d(2, 4, 3, padding=1), (1, 2, 8, 8), 4 * 2 * 9 * 64),
        (nn.Conv2d(2, 4, 4, stride=2, padding=1), (5, 2, 8, 8), 5 * 4 * 2 * 16 * 16),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)), (1, 3), 3 * 2 + 2),
        (nn.ReLU(), (4, 4), 0),
    ],
)
def test_count_macs(layer, shape, macs):
    assert count_macs(lambda: layer(torch.zeros(shape))) == macs


# ---- what policies look at


class Field(nn.Module):
    """20 multiply–adds a sample."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 5), nn.Linear(5, 2)

    def forward(self, t, y):
        return self.second(torch.tanh(self.first(y)))


def recorded(block, policy, *, t1=1.0):
    torch.manual_seed(0)
    block.integrator = policy
    with torch.no_grad(), block.recording() as records:
        block(torch.randn(12, 2), t1=t1)
    return records[0]


def test_a_cascade_looks_at_each_answer_that_it_judges():
    """Of the head, 6 multiply–adds a look."""
    block, head = NeuralODE(Field(), Euler()), nn.Linear(2, 3)

    def every_other(h):
        return head(h).isfinite().all(1) & (torch.arange(len(h)) % 2 == 0)

    cascade = Cascade((Euler(1), Euler(2), RK4(1)), every_other)
    record = recorded(block, cascade)
    assert record.solution.choice.unique().tolist() == [0, 1, 2]
    looks = (record.solution.choice + 1).clamp(max=2)
    once = record.solution.nfe + looks.double() * 6 / 20
    assert_close(nfe_with_overhead(block, cascade, [record, record]), torch.cat([once, once]))


def test_a_selector_looks_once_at_each_sample_that_moves():
    """Of 8 features, 8·4 + 4·2 multiply–adds."""
    block = NeuralODE(Field(), Euler())
    dynamic = Dynamic((Euler(1), RK4(1)), AdequacySelector(PooledNetwork(2, 2, hidden=4), candidates=2))
    t1 = torch.ones(12)
    t1[:3] = 0
    record = recorded(block, dynamic, t1=t1)
    looked = nfe_with_overhead(block, dynamic, [record]) - record.solution.nfe
    assert_close(looked, torch.tensor([0.0] * 3 + [40 / 20] * 9, dtype=torch.float64))


@pytest.mark.parametrize("policy", [RK4(2), Cascade((Euler(1), RK4(1)))], ids=str)
def test_what_looks_at_nothing_pays_nothing(policy):
    block = NeuralODE(Field(), Euler())
    record = recorded(block, policy)
    assert torch.equal(nfe_with_overhead(block, policy, [record]), record.solution.nfe.double())


def test_one_system_is_one_sample():
    block = NeuralODE(Field(), Euler(), batched=False)
    dynamic = Dynamic((Euler(1), RK4(1)), lambda h0, k1: block.f(0, h0)[:1], granularity="batch")
    record = recorded(block, dynamic)
    assert_close(nfe_with_overhead(block, dynamic, [record]), record.solution.nfe.double()[None] + 1)


def test_beside_a_field_without_multiply_adds_nothing_can_be_counted(decay):
    block = NeuralODE(decay(), Euler())
    cascade = Cascade((Euler(1), RK4(1)), Confidence(nn.Linear(2, 3), 0.5))
    record = recorded(block, cascade)
    assert torch.equal(nfe_with_overhead(block, cascade, [record]), record.solution.nfe.double())
