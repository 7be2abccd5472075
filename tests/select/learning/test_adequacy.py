from math import inf, nan

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import RK4, AdequacySelector, Dynamic, Euler, solve
from dise.select import (
    ClassificationCost,
    Costs,
    PooledNetwork,
    Profile,
    calibration_error,
    closed_gap_fraction,
    equivalent_dial,
    oracle,
    selector_choice,
    single_candidate,
)
from dise.select.learning.adequacy import platt_scaling


def coin_costs(number, *, seed=0):
    """h0 = k1 = x ~ N(0, 1), [N, 1]: Euler is adequate with probability sigmoid(2x + 1), RK4 always."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 1, generator=draw)
    euler = torch.rand(number, 1, generator=draw) < (2 * x + 1).sigmoid()
    adequate = torch.cat([euler, torch.ones_like(euler)], 1)
    nfe = torch.tensor([1, 4]).expand(number, 2)
    return Costs((Euler(), RK4()), x, x, nfe, (~adequate).float(), ClassificationCost())


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PooledNetwork(1, 2)


@pytest.fixture(scope="module")
def fitted():
    return AdequacySelector.fit(network(), coin_costs(4000), dial=20, learning_rate=1e-2)


# ---- probabilities


def test_probabilities_are_the_ones_that_the_data_were_drawn_with(fitted):
    x = torch.linspace(-2, 2, 9)[:, None]
    with torch.no_grad():
        p = fitted.probability(x, x)
    assert_close(p[:, 0], (2 * x[:, 0] + 1).sigmoid(), rtol=0, atol=0.05)
    assert p[:, 1].min() > 0.99


def test_probabilities_are_calibrated_on_new_data(fitted):
    test = coin_costs(5000, seed=1)
    with torch.no_grad():
        p = fitted.probability(test.h0, test.k1)
    assert calibration_error(p, test.adequate) < 0.02
    assert fitted.history.calibration_error < 0.02
    # the entropy of the coins: what no fit can go below
    q = (2 * test.h0[:, :1] + 1).sigmoid()
    entropy = -(q * q.log() + (1 - q) * (1 - q).log()).mean() / 2  # RK4's column has none
    assert min(fitted.history.validation_losses) == pytest.approx(float(entropy), rel=0.1)


def test_overconfident_logits_are_calibrated():
    """Logits three times too large, and off by one, on coins of known odds."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 2, generator=draw)
    came = (torch.rand(20_000, 2, generator=draw) < z.sigmoid()).float()
    slope, offset = platt_scaling(3 * z + 1, came)
    assert_close(slope, torch.full((2,), 1 / 3), rtol=0.05, atol=0)
    assert_close(offset, torch.full((2,), -1 / 3), rtol=0.1, atol=0)


def test_what_is_always_adequate_is_nearly_certain_and_no_more():
    slope, offset = platt_scaling(torch.zeros(98, 1), torch.ones(98, 1))
    assert float((0 * slope + offset).sigmoid()) == pytest.approx(99 / 100, abs=1e-4)  # (98 + 1)/(98 + 2)


def test_calibration_error_by_hand():
    p = torch.tensor([[0.1, 0.9], [0.3, 0.7]])
    came = torch.tensor([[0, 1], [1, 1]])
    # two bins: means 0.2 and 0.8 said, 0.5 and 1 came
    assert calibration_error(p, came, bins=2) == pytest.approx((0.3 + 0.2) / 2)
    assert calibration_error(p, p, bins=2) == 0
    assert calibration_error(p[:0], came[:0]) == 0


# ---- the dial


def test_probabilities_of_other_samples_have_no_calibration_error():
    with pytest.raises(ValueError, match=r"^adequate: expected values \[\*B\] with \*B = \(10,\), got .*\(10, 1\)"):
        calibration_error(torch.rand(10), torch.ones(10, 1))


def test_scores_are_expected_prices(fitted):
    x = torch.linspace(-1, 1, 5)[:, None]
    with torch.no_grad():
        expected = torch.tensor([1.0, 4.0]) + 20 * (1 - fitted.probability(x, x))
        assert_close(fitted(x, x), expected)
        assert_close(fitted.with_dial(5)(x, x), torch.tensor([1.0, 4.0]) + (expected - torch.tensor([1.0, 4.0])) / 4)


def test_a_larger_dial_buys_more_adequate_results(fitted):
    test = coin_costs(5000, seed=1)
    rk4, previous = 0.0, 0.0
    for dial in (1, 10, 100, 1000):
        choice = selector_choice(fitted.with_dial(dial), test)
        share, adequate = float(choice.double().mean()), float(test.adequate.gather(1, choice[:, None]).double().mean())
        assert share >= rk4
        assert adequate >= previous
        rk4, previous = share, adequate
    # three evaluations are saved at an odds-on risk of one: Euler wherever p > 1 − 3/μ, nowhere at μ = 1000
    assert rk4 > 0.9
    assert selector_choice(fitted.with_dial(1), test).sum() == 0


def test_routing_nearly_reaches_the_best_that_the_odds_allow(fitted):
    """Bayes' rule here: Euler where 1 − p < 3/μ."""
    test = coin_costs(20_000, seed=2)
    realised = test.delta + 20 * ~test.adequate
    best = ((2 * test.h0[:, 0] + 1).sigmoid() < 1 - 3 / 20).long()
    gap = closed_gap_fraction(realised, selector_choice(fitted, test))
    assert gap == pytest.approx(closed_gap_fraction(realised, best), abs=0.03)
    assert fitted.history.closed_gap_fraction == pytest.approx(gap, abs=0.1)


def test_turning_the_dial_shares_the_network_and_keeps_the_first(fitted):
    other = fitted.with_dial(7)
    assert (fitted.dial, other.dial) == (20, 7)
    assert other.network is fitted.network
    assert str(other).startswith("AdequacySelector(\n  dial=7")


def test_a_dial_that_agrees_with_eq4():
    """The design's break-even points: Euler where it is right 0.926 times as often as RK4, 0.826 as DOPRI-14."""
    assert 1 - 3 / equivalent_dial(0.3, 1000, 1, 4) == pytest.approx(0.926, abs=5e-4)
    assert 1 - 13 / equivalent_dial(0.3, 1000, 1, 14) == pytest.approx(0.826, abs=5e-4)
    # α = 1: M − Δ of the cheap candidate
    assert equivalent_dial(1, 100, 1, 4) == pytest.approx(99)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0])
def test_the_dial_decides_as_eq4s_expected_costs_do(alpha):
    p, M, rule = torch.linspace(0, 1, 1001, dtype=torch.float64), 1000.0, ClassificationCost(alpha=alpha, M=1000.0)
    prices = torch.tensor([[1.0, 4.0]])
    adequate, inadequate = (rule(prices, torch.full((1, 2), error))[0] for error in (0.0, 1.0))
    eq4 = p * adequate[0] + (1 - p) * inadequate[0] < adequate[1]
    dial = 1 + equivalent_dial(alpha, M, 1, 4) * (1 - p) < 4
    assert (eq4 != dial).sum() <= 1  # the point at the bound may round


# ---- costs other than NFE, data other than fitted


def test_the_price_may_be_measured(fitted):
    costs = coin_costs(500)
    timed = Profile(costs.candidates, (1,), torch.tensor([[0.5, 8.0]]), torch.tensor([[1.0, 4.0]]), "").apply(costs, 1)
    selector = AdequacySelector.fit(network(), timed, max_epochs=1)
    assert_close(selector.price, torch.tensor([0.5, 8.0]))


def test_a_selector_is_an_integrators_and_comes_back_from_its_state_dict(fitted):
    again = AdequacySelector(network(seed=5), candidates=2, dial=20).eval()
    again.load_state_dict(fitted.state_dict())
    y0 = torch.linspace(-2, 2, 20)[:, None]
    one, two = (solve(lambda t, y: y, y0, 0.0, 1.0, Dynamic((Euler(), RK4()), s)) for s in (fitted, again))
    assert torch.equal(one.choice, two.choice)
    assert set(one.choice.tolist()) == {0, 1}
    assert one.choice.tolist() == sorted(one.choice.tolist(), reverse=True)  # Euler where x is large


def test_nothing_to_choose_from_has_no_gap():
    costs = coin_costs(100)
    costs.error.zero_()
    selector = AdequacySelector.fit(network(), costs, max_epochs=1)
    assert selector.history.closed_gap_fraction is None
    assert oracle(costs).mean_nfe == single_candidate(costs, 0).mean_nfe


@pytest.mark.parametrize("dial", [0, -1, inf, nan])
def test_a_dial_is_a_positive_number(fitted, dial):
    with pytest.raises(ValueError, match="dial: expected a positive number"):
        AdequacySelector(nn.Identity(), candidates=2, dial=dial)
    with pytest.raises(ValueError, match="dial: expected a positive number"):
        fitted.with_dial(dial)


@pytest.mark.parametrize("prices", [(4, 1), (0, 1), (1, 1000), (2, 2)])
def test_prices_rise_up_to_the_penalty(prices):
    with pytest.raises(ValueError, match="cheap, costly, M: expected 0 < cheap < costly < M"):
        equivalent_dial(0.3, 1000, *prices)
