import pytest
import torch
from torch.testing import assert_close

from dise import RK4, CostSelector, Euler
from dise.select import BinaryCost, Costs, count_macs
from dise_experiments.physionet.model import LATENT, VectorField
from dise_experiments.physionet.selector import PaperNetwork


def states(number, seed=0):
    return torch.randn(number, LATENT, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return PaperNetwork(3).eval()


def test_table_4_has_423_parameters_for_three_candidates(network):
    # 20 → 10 → 10 → 5 → 5 → 3, with biases
    sizes = [20 * 10 + 10, 10 * 10 + 10, 10 * 5 + 5, 5 * 5 + 5, 5 * 3 + 3]
    assert sum(p.numel() for p in network.parameters()) == sum(sizes) == 423


@pytest.mark.parametrize("candidates", [2, 3, 8])
def test_table_4_has_a_score_a_candidate(candidates):
    network = PaperNetwork(candidates)
    assert network(states(4), states(4)).shape == (4, candidates)
    assert sum(p.numel() for p in network.parameters()) == 423 + 6 * (candidates - 3)


def test_table_4_written_out(network):
    h = h0 = states(7)
    layers = [layer for layer in network.layers if isinstance(layer, torch.nn.Linear)]
    for layer in layers[:-1]:
        h = (h @ layer.weight.T + layer.bias).clamp(min=0)
    assert_close(network(h0, h0), h @ layers[-1].weight.T + layers[-1].bias)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_dropout_is_of_the_last_hidden_layer_while_fitting(dropout):
    torch.manual_seed(0)
    network = PaperNetwork(3, dropout=dropout)
    *hidden, last = network.layers
    with torch.no_grad():
        hidden[-3].bias.fill_(10.0)  # all five units are on
        last.weight.copy_(torch.eye(5)[:3])
        last.bias.zero_()
        h0 = states(20_000)
        off = (network(h0, h0) == 0).float().mean().item()
        kept = network(h0, h0)[network.eval()(h0, h0) != 0]
    assert off == pytest.approx(dropout, abs=0.01)
    assert kept.min() > 0 or dropout > 0
    assert (network(h0, h0) != 0).all()  # none in use
    assert torch.equal(network(h0, h0), network(h0, h0))


def test_table_4_does_not_look_at_k1(network):
    h0 = states(4)
    assert torch.equal(network(h0, h0), network(h0, torch.full_like(h0, torch.nan)))


def test_its_cost_beside_the_fields(network):
    h0 = states(1)
    field = VectorField(LATENT)
    macs, of_f = count_macs(lambda: network(h0, h0)), count_macs(lambda: field(None, h0))
    assert macs == 20 * 10 + 10 * 10 + 10 * 5 + 5 * 5 + 5 * 3
    assert of_f == 20 * 50 + 3 * 50 * 50 + 50 * 20
    assert macs / of_f == pytest.approx(0.041, abs=5e-4)  # the paper says 0.023


def test_a_selector_learns_which_records_are_hard():
    """Where the first coordinate is positive Euler's answer is wrong."""
    h0 = states(600)
    hard = h0[:, 0] > 0
    nfe = torch.tensor([1, 4]).expand(600, 2)
    error = torch.stack([hard.float(), torch.zeros(600)], 1)
    costs = Costs((Euler(), RK4()), h0, h0, nfe, error, BinaryCost(alpha=1.0, M=20, threshold=0.1))
    fitted, unseen = torch.arange(400), torch.arange(400, 600)
    torch.manual_seed(0)
    selector = CostSelector.fit(PaperNetwork(2), costs.take(fitted), learning_rate=1e-2)
    with torch.no_grad():
        choice = selector(h0[unseen], h0[unseen]).argmin(1)
    assert (choice == hard[unseen].long()).float().mean() > 0.85
