import pytest
import torch

from dise.experiment.timing import count_macs
from dise.tasks.mnist.model import VectorField
from dise.tasks.mnist.selector import PaperNetwork


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_table_2_has_150275_parameters_for_three_candidates():
    # two residual blocks, a norm, 64 → 32, 32 → 3
    assert sum(p.numel() for p in PaperNetwork(3).parameters()) == 2 * 73_984 + 128 + (64 * 32 + 32) + (32 * 3 + 3)
    assert sum(p.numel() for p in PaperNetwork(3).parameters()) == 150_275


@pytest.mark.parametrize("candidates", [2, 3, 5])
def test_a_score_a_candidate(candidates):
    h0 = noise(4, 64, 6, 6)
    assert PaperNetwork(candidates)(h0, h0).shape == (4, candidates)


def test_it_reads_h0_alone():
    network, h0 = PaperNetwork(3), noise(4, 64, 6, 6)
    assert torch.equal(network(h0, h0), network(h0, torch.full_like(h0, torch.nan)))
    assert not torch.allclose(network(h0, h0), network(2 * h0 + 1, h0))


def test_it_costs_about_two_evaluations_of_f():
    h0 = torch.zeros(1, 64, 6, 6)
    network = count_macs(lambda: PaperNetwork(3)(h0, h0))
    # four convolutions 64→64 of 3×3 at 36 places, and the linear layers
    assert network == 4 * 64 * 64 * 9 * 36 + 64 * 32 + 32 * 3
    assert network / count_macs(lambda: VectorField()(torch.zeros(()), h0)) == pytest.approx(1.97, abs=0.005)
