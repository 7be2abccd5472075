import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import RK4, Euler
from dise.select import Costs, CostSelector, TaskErrorCost, count_macs
from dise_experiments.circles.selector import SET, PaperNetwork, SetNetwork


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def states(*shape, seed=0):
    """(x, y, log-density) as flows start: at log-density 0."""
    h0 = noise(*shape, 3, seed=seed)
    h0[..., 2] = 0
    return h0


def parameters(network):
    return sum(p.numel() for p in network.parameters())


# ---- Table 7


@pytest.fixture
def paper():
    return seeded(lambda: PaperNetwork(3))


def test_table_7_has_4295_parameters_for_three_candidates(paper):
    # 3 → 1 a point; 32 → 64 → 32 → 3
    assert parameters(paper) == (3 + 1) + (32 * 64 + 64) + (64 * 32 + 32) + (32 * 3 + 3) == 4295


@pytest.mark.parametrize("candidates", [2, 3, 13])
def test_table_7_has_a_score_a_candidate(candidates):
    network = PaperNetwork(candidates)
    assert network(states(4, 32), states(4, 32)).shape == (4, candidates)
    assert parameters(network) == 4295 + 33 * (candidates - 3)


def test_table_7_written_out(paper):
    """Before its last layer, where the paper has a tanh that costs of 1.23 are beyond."""
    h0 = noise(2, 32, 3)
    weights = {name: value.detach() for name, value in paper.named_parameters()}
    for i in range(2):
        points = torch.stack([weights["point.weight"][0] @ h0[i, j] + weights["point.bias"][0] for j in range(32)])
        hidden = torch.tanh(weights["layers.0.weight"] @ points + weights["layers.0.bias"])
        hidden = torch.tanh(weights["layers.2.weight"] @ hidden + weights["layers.2.bias"])
        assert_close(paper(h0, h0)[i], weights["layers.4.weight"] @ hidden + weights["layers.4.bias"])
    nn.init.constant_(paper.layers[-1].bias, 5.0)
    assert (paper(h0, h0) > 1.23).all()


def test_table_7_as_published_ends_in_a_tanh(paper):
    published = PaperNetwork(3, last_tanh=True)
    published.load_state_dict(paper.state_dict())
    h0 = noise(2, 32, 3)
    assert_close(published(h0, h0), paper(h0, h0).tanh())
    assert parameters(published) == 4295


def test_table_7_depends_on_the_order_of_the_points(paper):
    h0 = states(4, 32)
    assert not torch.allclose(paper(h0, h0), paper(h0.flip(1), h0), atol=1e-3)


def test_table_7_does_not_look_at_k1(paper):
    h0 = states(4, 32)
    assert torch.equal(paper(h0, h0), paper(h0, torch.full_like(h0, torch.nan)))


@pytest.mark.parametrize("points", [1, 31, 33])
def test_table_7_takes_sets_of_32_alone(paper, points):
    with pytest.raises(RuntimeError):
        paper(states(4, points), states(4, points))


def test_multiply_adds_of_table_7():
    network, h0 = PaperNetwork(13), states(1, 32)
    assert count_macs(lambda: network(h0, h0)) == 32 * 3 + 32 * 64 + 64 * 32 + 32 * 13


# ---- deep sets


@pytest.fixture
def network():
    return seeded(lambda: SetNetwork(3))


def test_the_order_of_the_points_does_not_matter(network):
    h0, k1 = states(4, 32), noise(4, 32, 3, seed=1)
    scores = network(h0, k1)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    assert_close(network(h0[:, order], k1[:, order]), scores)
    # each point keeps its own derivative
    assert not torch.allclose(network(h0[:, order], k1), scores, atol=1e-3)


@pytest.mark.parametrize("points", [1, 7, 32, 100])
@pytest.mark.parametrize("candidates", [2, 13])
def test_sets_of_any_size(points, candidates):
    scores = SetNetwork(candidates)(states(4, points), states(4, points))
    assert scores.shape == (4, candidates)


def test_points_that_are_there_twice_change_nothing(network):
    """The mean and the maximum over points are the same."""
    h0, k1 = states(4, 8), noise(4, 8, 3, seed=1)
    assert_close(network(torch.cat([h0, h0], 1), torch.cat([k1, k1], 1)), network(h0, k1))


def test_a_point_is_a_set_of_one(network):
    h0, k1 = states(5), noise(5, 3, seed=1)
    scores = network(h0, k1)
    assert scores.shape == (5, 3)
    assert torch.equal(scores, network(h0[:, None], k1[:, None]))


def test_sets_of_a_batch_do_not_see_each_other(network):
    h0, k1 = states(4, 32), noise(4, 32, 3, seed=1)
    assert_close(network(h0, k1)[1:2], network(h0[1:2], k1[1:2]))


def test_it_looks_at_the_points_and_all_of_their_derivatives(network):
    h0, k1 = states(1, 4).requires_grad_(), noise(1, 4, 3, seed=1).requires_grad_()
    gradients = torch.autograd.grad(network(h0, k1).sum(), (h0, k1))
    assert (gradients[0][..., :2] != 0).all()
    assert (gradients[1] != 0).all()
    # the log-density at the start is 0 whatever the points
    assert (gradients[0][..., 2] == 0).all()


def test_deep_sets_written_out(network):
    network.mean.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    network.scale.copy_(torch.tensor([2.0, 1.0, 4.0, 0.5, 3.0]))
    h0, k1 = states(1, 3), noise(1, 3, 3, seed=1)
    W, b = network.point[0].weight, network.point[0].bias
    features = [torch.cat([h0[0, j, :2], k1[0, j]]) for j in range(3)]
    hidden = torch.stack([torch.tanh(W @ ((x - network.mean) / network.scale) + b) for x in features])
    expected = network.set(torch.cat([hidden.mean(0), hidden.max(0).values]))
    assert_close(network(h0, k1)[0], expected)


@pytest.mark.parametrize("shape", [(200,), (50, 32)])
def test_standardised_features(network, shape):
    h0, k1 = 3 * states(*shape) + 1, 100 * noise(*shape, 3, seed=1) - 7
    network.standardise(h0, k1)
    features = torch.cat([h0[..., :2], k1], -1).reshape(-1, 5)
    assert_close(network.mean, features.mean(0))
    assert_close(network.scale, features.std(0))
    hidden = []
    network.point.register_forward_pre_hook(lambda module, args: hidden.append(args[0].reshape(-1, 5)))
    network(h0, k1)
    assert_close(hidden[0].mean(0), torch.zeros(5), rtol=0, atol=1e-4)
    assert_close(hidden[0].std(0), torch.ones(5), rtol=0, atol=1e-4)


def test_features_that_do_not_vary(network):
    h0, k1 = states(20, 32), torch.ones(20, 32, 3)
    network.standardise(h0, k1)
    assert network(h0, k1).isfinite().all()


def test_the_standardisation_is_saved(network):
    network.standardise(states(9, 4), noise(9, 4, 3, seed=1))
    again = SetNetwork(3)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.mean, network.mean)
    assert torch.equal(again(states(2, 4), states(2, 4)), network(states(2, 4), states(2, 4)))


@pytest.mark.parametrize("points", [1, 32])
def test_multiply_adds_of_deep_sets(points):
    network, h0 = SetNetwork(13), states(1, points)
    assert count_macs(lambda: network(h0, h0)) == points * 5 * 32 + 64 * 32 + 32 * 13


# ---- what they can learn


@pytest.mark.parametrize("build", [PaperNetwork, SetNetwork])
def test_a_selector_learns_which_sets_are_hard(build):
    """Sets on the right of the plane need RK4 (cost 0.04), Euler fails (0.07); on the left it is as good (0.01)."""
    centre = noise(400, 1, 2, seed=1)
    h0 = torch.cat([centre + 0.1 * noise(400, SET, 2), torch.zeros(400, SET, 1)], -1)
    hard = centre[:, 0, 0] > 0
    nfe = torch.tensor([1, 4]).expand(400, 2)
    error = torch.stack([torch.where(hard, 1.0, 0.01), torch.full((400,), 0.01)], 1)
    rule = TaskErrorCost(1.0, 0.07, task_error=lambda output, target: output, beta=0.02, resolution=0.005)
    costs = Costs((Euler(), RK4()), h0, h0, nfe, error, rule)
    fitted, unseen = torch.arange(300), torch.arange(300, 400)
    selector = seeded(lambda: CostSelector.fit(build(2), costs.take(fitted), learning_rate=1e-2))
    with torch.no_grad():
        choice = selector(h0[unseen], h0[unseen]).argmin(1)
    assert (choice == hard[unseen].long()).float().mean() > 0.9
