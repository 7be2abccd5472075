import pytest
import torch
from torch.testing import assert_close

from dise.select import count_macs
from dise_experiments.mnist.model import VectorField, odenet
from dise_experiments.mnist.selector import PaperNetwork, confidence_network


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


# ---- confidence


@torch.no_grad()
def test_confidence_looks_at_what_the_models_head_says_of_an_euler_step():
    model, h0 = odenet().eval(), noise(4, 64, 6, 6)
    network = confidence_network(model, 3)
    log_p = model.head(1.5 * h0).log_softmax(1)
    top = log_p.sort(descending=True).values[:, :3]
    entropy = torch.distributions.Categorical(logits=log_p).entropy()
    assert_close(network.features(h0, h0 / 2), torch.cat([top, entropy[:, None]], 1), rtol=1e-4, atol=1e-5)
    assert network(h0, h0).shape == (4, 3)


def test_the_models_head_is_copied_and_stays_as_it_is():
    model, h0 = odenet(), noise(4, 64, 6, 6)
    network = confidence_network(model, 3).train()
    network(h0, h0).sum().backward()
    assert all(p.grad is None for p in [*model.parameters(), *network.head.parameters()])
    assert all(p.grad is not None for p in network.layers.parameters())
    assert not network.head.training
    with torch.no_grad():
        network.head[-1].weight.zero_()
    assert model.head[-1].weight.abs().sum() > 0


def test_confidence_costs_next_to_nothing():
    network, h0 = confidence_network(odenet(), 3), torch.zeros(1, 64, 6, 6)
    # the head's linear layer and two small ones; f has 2,695,680
    assert count_macs(lambda: network(h0, h0)) == 64 * 10 + 4 * 16 + 16 * 3
