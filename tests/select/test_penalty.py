import pytest
import torch

from dise import RK4, ClassificationCost, Euler, PooledNetwork, choose_penalty
from dise.select import Costs, Trial, penalty
from dise.select.penalty import _choose, _lost, route


def sided(number, *, hard, seed=0):
    """RK4 (4 NFE) is always right; Euler (1 NFE) where the state's first feature is above `hard`."""
    h0 = torch.rand(number, 2, generator=torch.Generator().manual_seed(seed))
    error = torch.stack([(h0[:, 0] <= hard).float(), torch.zeros(number)], 1)
    nfe = torch.tensor([1, 4]).expand(number, 2)
    return Costs((Euler(), RK4()), h0, h0, nfe, error, ClassificationCost())


def network():
    return PooledNetwork(2, 2)


TRIALS = [
    Trial(1e3, 0.98, 2.0, 0.012),
    Trial(1e4, 0.989, 5.0, 0.0009),
    Trial(1e5, 0.9896, 8.0, 0.0006),
    Trial(1e6, 0.9899, 14.0, 0.0002),
]
REFERENCE = Trial(1e3, 0.99, 20.0, 0.0)


@pytest.mark.parametrize(
    ("tolerance", "budget", "expected"),
    [
        (1e-3, 0.5, 1e4),  # the smallest that is nearly as good
        (7e-4, 0.5, 1e5),
        (1e-4, 0.5, 1e5),  # none is: the best within 10 NFE
        (1e-4, 0.7, 1e6),
        (1.0, 0.5, 1e3),
        (1e-3, 0.05, 1e3),  # none within 1 NFE: the cheapest
    ],
)
def test_the_rule_of_choice(tolerance, budget, expected):
    assert expected == _choose(TRIALS, REFERENCE, tolerance, budget).M


@pytest.mark.parametrize(
    ("tolerance", "budget", "passed"),
    [(1e-3, 0.5, True), (1e-4, 0.5, False), (1e-4, 0.7, False), (1.0, 0.5, True), (1.0, 0.05, False)],
)
def test_a_choice_tells_whether_it_passed(monkeypatch, tolerance, budget, passed):
    """Trials as above; at 0.05 even the cheapest is beyond the budget."""
    found = iter([REFERENCE, *TRIALS])
    monkeypatch.setattr(penalty, "_cross_validated", lambda *arguments: None)
    monkeypatch.setattr(penalty, "_trial", lambda *arguments: next(found))
    lines, penalties = [], [trial.M for trial in TRIALS]
    choice = choose_penalty(
        sided(50, hard=0.3), network, penalties=penalties, tolerance=tolerance, budget=budget, log=lines.append
    )
    assert (choice.M, choice.passed) == (_choose(TRIALS, REFERENCE, tolerance, budget).M, passed)
    said = [f"no M is certain to lose at most {tolerance:g} within the budget: M = {choice.M:g} is the best there is"]
    assert [line for line in lines if "certain" in line and "best" in line] == ([] if passed else said)


def test_what_can_be_learnt_is_learnt_and_scored_on_unseen_samples():
    found = choose_penalty(sided(600, hard=0.3), network, penalties=[1e3, 1e6], tolerance=0.02, budget=0.9)
    assert (found.reference.adequate, found.reference.nfe) == (1.0, 4.0)
    by_penalty = {trial.M: trial for trial in found.trials}
    assert by_penalty[found.M].adequate > 0.98
    # the oracle needs 1 · 0.7 + 4 · 0.3 = 1.9; RK4 alone 4
    assert 1.9 - 0.2 < by_penalty[found.M].nfe < 2.6


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (3, 3), (12, 2), (2, 12)])
def test_the_bound_of_the_loss_covers_it(lost, won):
    """By hand: (lost − won ± 1.645 √(lost + won + 1 − (lost − won)²/n)) / n with n = 1002."""
    reference, policy = torch.ones(2, 1000, dtype=torch.bool)
    policy[:lost] = False
    reference[lost : lost + won] = False
    root = (lost + won + 1 - (lost - won) ** 2 / 1002) ** 0.5
    assert _lost(reference, policy) == pytest.approx((lost - won + 1.645 * root) / 1002)


def test_noise_cannot_be_learnt():
    """Euler right by a coin: cross-validated accuracy is what routing gives on samples that were not fitted."""
    costs = sided(400, hard=-1.0)
    coin = (torch.rand(400, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    noise = Costs(costs.candidates, costs.h0, costs.k1, costs.nfe, torch.stack([coin, 0 * coin], 1), costs.rule)
    (trial,) = choose_penalty(noise, network, penalties=[5.0], budget=0.9).trials
    share_of_euler = (4 - trial.nfe) / 3
    assert trial.adequate == pytest.approx(1 - share_of_euler / 2, abs=0.08)


def test_the_choice_depends_on_its_seed_alone():
    costs, before = sided(200, hard=0.3), torch.get_rng_state()
    first = choose_penalty(costs, network, penalties=[1e3], seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert choose_penalty(costs, network, penalties=[1e3], seed=3) == first


def test_nan_never_wins_a_sample():
    """Of more samples than are scored at once."""
    costs = sided(1100, hard=0.3)
    nan = costs.h0[:, 0] < 0.5

    def selector(h0, k1):
        cheap = torch.where(h0[:, 0] < 0.5, torch.nan, 0.0)
        return torch.stack([cheap, torch.ones(len(h0))], 1)

    assert torch.equal(route(selector, costs), nan.long())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"penalties": []}, "penalties: expected at least one"),
        ({"folds": 1}, "folds: expected 2 to 50"),
        ({"folds": 51}, "folds: expected 2 to 50"),
        ({"penalties": [2.0]}, "M: expected more than the largest price"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_penalty(sided(50, hard=0.3), network, **arguments)
