from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import RK4, Dynamic, Euler, solve
from dise.select import AdequacySelector, ClassificationCost, Costs, CostSelector, PooledNetwork

CHANNELS, K = 2, 2


def network(seed=0, *, hidden=16):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PooledNetwork(CHANNELS, K, hidden=hidden)


def sign_rule(number, *, seed=0, noise=False):
    """Images of channel means about ±1: Euler is right where channel 0's is positive (or, with noise, anywhere)."""
    draw = torch.Generator().manual_seed(seed)
    sign = torch.randint(2, (number, CHANNELS, 1, 1), generator=draw) * 2 - 1
    h0 = sign + 0.5 * torch.randn(number, CHANNELS, 3, 3, generator=draw)
    coin = torch.rand(number, generator=draw) < 0.5
    euler = coin if noise else sign[:, 0, 0, 0] > 0
    adequate = torch.stack([euler, torch.ones_like(euler)], 1)
    nfe = torch.tensor([1, 4]).expand(number, 2)
    return Costs((Euler(), RK4()), h0, -h0, nfe, (~adequate).float(), ClassificationCost())


@pytest.fixture(scope="module")
def fitted():
    return CostSelector.fit(network(), sign_rule(600), learning_rate=1e-2)


# ---- fitting


def test_a_rule_is_learnt(fitted):
    history = fitted.history
    assert min(history.validation_losses) < 0.2 * history.initial_loss
    test = sign_rule(1000, seed=1)
    with torch.no_grad():
        choice = fitted(test.h0, test.k1).argmin(1)
    best = test.cost.argmin(1)
    assert (choice == best).double().mean() > 0.95
    routed, oracle = (test.cost[torch.arange(1000), index].mean() for index in (choice, best))
    single = test.cost.mean(0).min()
    # nearly all that a perfect selector gains over the better candidate for all
    assert (single - routed) / (single - oracle) > 0.8


def test_predictions_are_in_units_of_cost(fitted):
    test = sign_rule(1000, seed=1)
    with torch.no_grad():
        predicted = fitted(test.h0, test.k1)
    assert_close(predicted.mean(0), test.cost.mean(0), rtol=0.1, atol=0)
    assert (predicted - test.cost).square().mean() < 0.2 * test.cost.var(0).mean()


def test_routing_by_a_fitted_selector(fitted):
    # with Euler(2): y/4, with RK4: 0.375 y
    h0 = torch.ones(2, CHANNELS, 3, 3) * torch.tensor([1.0, -1.0])[:, None, None, None]
    solution = solve(lambda t, y: -y, h0, 0.0, 1.0, Dynamic((Euler(2), RK4()), fitted))
    assert solution.choice.tolist() == [0, 1]
    assert_close(solution.y, h0 * torch.tensor([0.25, 0.375])[:, None, None, None])


def test_a_fit_depends_on_its_seed_alone():
    state = torch.get_rng_state()
    one, again, other = (CostSelector.fit(network(), sign_rule(200), max_epochs=5, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values(), strict=True))
    assert one.history == again.history
    assert one.history.validation_losses != other.history.validation_losses


def test_the_best_epoch_is_kept_and_patience_ends_the_fit():
    # labels are coin tosses: the network soon learns them by heart and the validation loss rises
    costs, options = sign_rule(300, noise=True), {"patience": 8}
    stopped = CostSelector.fit(network(hidden=64), costs, max_epochs=200, **options)
    history = stopped.history
    best = history.best_epoch
    assert best >= 0
    assert history.validation_losses[best] == min(history.validation_losses) < history.initial_loss
    assert len(history.validation_losses) == len(history.training_losses) == best + 1 + 8
    # ending at the best epoch gives the same weights
    ended = CostSelector.fit(network(hidden=64), costs, max_epochs=best + 1, **options)
    for name, value in ended.state_dict().items():
        assert torch.equal(value, stopped.state_dict()[name]), name


@pytest.mark.host
def test_a_fit_that_never_improves_keeps_the_start():
    start = network()
    before = {name: value.clone() for name, value in start.layers.state_dict().items()}
    selector = CostSelector.fit(start, sign_rule(100), learning_rate=0.0, patience=3, max_epochs=50)
    assert selector.history.best_epoch == -1
    assert len(selector.history.validation_losses) == 3
    assert all(torch.equal(value, before[name]) for name, value in start.layers.state_dict().items())


class Silent(nn.Linear):
    """A network that has parameters and always answers 0."""

    def forward(self, h0, k1):
        return 0 * super().forward(h0)


def test_a_network_that_says_nothing_predicts_the_mean_costs():
    some = sign_rule(50)
    nothing = torch.zeros(50, 1)
    costs = Costs(some.candidates, nothing, nothing, some.nfe, torch.zeros(50, 2), ClassificationCost(alpha=0.5))
    selector = CostSelector.fit(Silent(1, 2), costs, max_epochs=1)
    assert torch.equal(selector(costs.h0, costs.k1), torch.tensor([1.0, 2.0]).expand(50, 2))
    assert selector.history.initial_loss == 0


def test_a_fitted_selector_is_in_evaluation_mode_and_has_a_history(fitted):
    assert not any(module.training for module in fitted.modules())
    assert fitted.history.best_epoch >= 0
    fresh = CostSelector(network(), candidates=K).history
    assert (fresh.training_losses, fresh.validation_losses, fresh.best_epoch) == ([], [], -1)


@pytest.mark.host
def test_state_dict_round_trip(fitted):
    costs = sign_rule(20, seed=2)
    copy = CostSelector(network(7), candidates=K)
    assert not torch.allclose(copy(costs.h0, costs.k1), fitted(costs.h0, costs.k1))
    copy.load_state_dict(fitted.state_dict())
    assert torch.equal(copy(costs.h0, costs.k1), fitted(costs.h0, costs.k1))


def test_log_gets_a_line_every_ten_epochs():
    lines = []
    CostSelector.fit(network(), sign_rule(60), max_epochs=21, patience=100, log=lines.append)
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 10", "epoch 20"]


@pytest.mark.parametrize("validation", [0, 1, -0.1, 1.5])
def test_validation_is_a_part(validation):
    with pytest.raises(ValueError, match="validation: expected a share between 0 and 1"):
        CostSelector.fit(network(), sign_rule(20), validation=validation)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_too_few_samples_to_split(number):
    with pytest.raises(ValueError, match=f"costs: expected enough samples to set 20% apart, got {number}"):
        CostSelector.fit(network(), sign_rule(number))


def test_features_are_computed_once_and_the_fit_is_the_same():
    """A network that hides its features from the fit is fitted to the same weights."""

    class Hidden(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.inner = network

        def standardise(self, h0, k1):
            self.inner.standardise(self.inner.features(h0, k1))

        def forward(self, h0, k1):
            return self.inner(h0, k1)

    torch.manual_seed(0)
    once = PooledNetwork(CHANNELS, 2)
    always, calls = Hidden(deepcopy(once)), []
    once.register_forward_hook(lambda *_: calls.append(1))
    costs = sign_rule(200)
    fits = [CostSelector.fit(network, costs, max_epochs=3) for network in (once, always)]
    assert not calls
    assert_close(fits[0](costs.h0, costs.k1), fits[1](costs.h0, costs.k1))


class Broadcast(nn.Module):
    """A network with one output per sample, or one row for all; either would broadcast to all targets."""

    def __init__(self, *, rows):
        super().__init__()
        self.layer, self.rows = nn.Linear(1, 2 if rows else 1), rows

    def forward(self, h0, k1):
        outputs = self.layer(h0[:, 0, 0, :1])
        return outputs[:1] if self.rows else outputs


@pytest.mark.parametrize("selector", [CostSelector, AdequacySelector])
@pytest.mark.parametrize("rows", [True, False])
def test_networks_whose_outputs_would_broadcast_are_refused(selector, rows):
    with pytest.raises(ValueError, match=r"network: expected outputs \(\d+, 2\), one per sample and candidate, got"):
        selector.fit(Broadcast(rows=rows), sign_rule(100), max_epochs=1)
