import pytest
import torch

from dise import RK4, ClassificationCost, Euler, PooledNetwork, choose_penalty
from dise.select import Costs, cross_fit, loss_bound, selector_choice
from dise.select.learning import penalty


def sided(number, *, hard, seed=0):
    """RK4 (4 NFE) is always right; Euler (1 NFE) where the state's first feature is above `hard`."""
    h0 = torch.rand(number, 2, generator=torch.Generator().manual_seed(seed))
    error = torch.stack([(h0[:, 0] <= hard).float(), torch.zeros(number)], 1)
    nfe = torch.tensor([1, 4]).expand(number, 2)
    return Costs((Euler(), RK4()), h0, h0, nfe, error, ClassificationCost())


def network():
    return PooledNetwork(2, 2)


# what is lost and the NFE by M; the reference, RK4, needs 4
LOST = {1e3: 0.012, 1e4: 0.0009, 1e5: 0.0006, 1e6: 0.0002}
SHARES = {1e3: 0.9, 1e4: 0.8, 1e5: 0.7, 1e6: 0.5}  # of Euler; NFE 1.3, 1.6, 1.9, 2.5


@pytest.fixture
def trials(monkeypatch):
    """trials(LOST, SHARES): fits whose committees lose and cost as given; the penalties that were fitted."""

    def given(lost, shares):
        fitted = []

        def fit(costs, network, *, folds, seed):
            fitted.append(costs.rule.M)
            choice = torch.ones(len(costs), dtype=torch.int64)
            choice[: round(shares[costs.rule.M] * len(costs))] = 0
            return f"committee of {costs.rule.M:g}", choice

        def answers(*results, confidence):
            # the first question is of the reference itself
            return lost[fitted[-1]] if fitted else 0.0

        monkeypatch.setattr(penalty, "cross_fit", fit)
        monkeypatch.setattr(penalty, "loss_bound", answers)
        return fitted

    return given


def choose(**arguments):
    return choose_penalty(sided(1000, hard=0.0), network, **({"penalties": sorted(LOST)} | arguments))


@pytest.mark.parametrize(
    ("tolerance", "budget", "expected", "tried"),
    [
        (1e-3, 0.9, 1e4, [1e6, 1e5, 1e4, 1e3]),  # the smallest that passes
        (7e-4, 0.9, 1e5, [1e6, 1e5, 1e4]),  # what comes after the first that fails is not tried
        (1e-3, 0.5, 1e4, [1e6, 1e5, 1e4, 1e3]),  # 1e6 passes, but is not within the budget
        (0.99, 0.9, 1e3, [1e6, 1e5, 1e4, 1e3]),
    ],
)
def test_penalties_are_tested_from_the_safest_until_one_fails(trials, tolerance, budget, expected, tried):
    fitted = trials(LOST, SHARES)
    found = choose(tolerance=tolerance, budget=budget)
    assert (found.M, found.passed) == (expected, True)
    assert fitted == tried == [trial.M for trial in found.trials]
    assert found.selector == f"committee of {expected:g}"


def test_nothing_passes_after_the_first_that_fails(trials):
    """1e5 would pass by itself, but only one test at a time keeps the level of 5 %."""
    trials(LOST | {1e6: 0.002}, SHARES)
    found = choose(budget=0.9)
    assert found.passed is False
    # the best there is
    assert found.M == 1e5
    assert found.selector == "committee of 100000"
    assert len(found.trials) == 4


@pytest.mark.parametrize(
    ("tolerance", "budget", "expected"),
    [
        (1e-4, 0.9, 1e6),  # none passes: the least lost
        (1e-4, 0.5, 1e5),  # within the budget of 2 NFE
        (0.99, 0.25, 1e3),  # all pass, but none within 1 NFE: the cheapest
    ],
)
def test_if_nothing_passes_the_best_there_is_is_taken_and_told(trials, tolerance, budget, expected):
    trials(LOST, SHARES)
    lines = []
    found = choose(tolerance=tolerance, budget=budget, log=lines.append)
    assert (found.M, found.passed) == (expected, False)
    said = f"no M passed at a loss of {tolerance:g} within the budget: M = {expected:g} is the best of the trials"
    assert lines[-1] == said
    assert len(lines) == 5


def test_of_equals_the_cheapest_is_the_best_there_is(trials):
    trials(dict.fromkeys(LOST, 0.1), SHARES)
    assert choose(budget=0.9).M == 1e3


def test_a_line_a_trial(trials):
    trials(LOST, SHARES)
    lines = []
    choose(tolerance=7e-4, budget=0.9, log=lines.append)
    assert [line.split(":")[0] for line in lines] == ["M = 1e+06", "M = 100000", "M = 10000"]
    # every result is right
    assert lines[0].endswith("1.0000 adequate (reference 1.0000, at most 0.0002 lost), NFE 2.50")


def test_alphas_share_the_level_and_the_cheapest_that_passes_is_chosen(monkeypatch):
    asked, lost, shares = [], {0.3: 0.0005, 0.5: 0.0008, 0.7: 0.01}, {0.3: 0.6, 0.5: 0.7, 0.7: 0.9}
    rules = []

    def fit(costs, network, *, folds, seed):
        rules.append(costs.rule)
        choice = torch.ones(len(costs), dtype=torch.int64)
        choice[: round(shares[costs.rule.alpha] * len(costs))] = 0
        return f"committee of {costs.rule.alpha:g}", choice

    def answers(*results, confidence):
        asked.append(confidence)
        return lost[rules[-1].alpha] if rules else 0.0

    monkeypatch.setattr(penalty, "cross_fit", fit)
    monkeypatch.setattr(penalty, "loss_bound", answers)
    found = choose(penalties=[1e3], alphas=list(lost), budget=0.9)
    assert (found.M, found.alpha, found.passed, found.selector) == (1e3, 0.5, True, "committee of 0.5")
    assert [trial.alpha for trial in found.trials] == [0.3, 0.5, 0.7]
    assert asked == pytest.approx([1 - 0.05 / 3] * 4)


@pytest.mark.host
def test_what_can_be_learnt_is_learnt_and_scored_on_unseen_samples():
    costs = sided(600, hard=0.3)
    found = choose_penalty(costs, network, penalties=[1e3, 1e6], tolerance=0.03, budget=0.9)
    assert (found.reference.adequate, found.reference.nfe) == (1.0, 4.0)
    assert found.passed
    trial = next(trial for trial in found.trials if trial.M == found.M)
    assert trial.adequate > 0.97
    # the oracle needs 1 · 0.7 + 4 · 0.3 = 1.9; RK4 alone 4
    assert 1.9 - 0.2 < trial.nfe < 2.6
    fresh = sided(1000, hard=0.3, seed=1)
    routed, hard = selector_choice(found.selector, fresh), fresh.h0[:, 0] <= 0.3
    assert routed[hard].double().mean() > 0.97
    assert routed.double().mean() == pytest.approx((trial.nfe - 1) / 3, abs=0.05)


def test_the_trial_and_the_selector_are_those_of_cross_fit():
    costs = sided(200, hard=0.3)
    found = choose_penalty(costs, network, penalties=[1e4], folds=3, seed=7)
    committee, choice = cross_fit(costs.with_penalty(1e4), network, folds=3, seed=7)
    weights = zip(found.selector.state_dict().values(), committee.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)
    (trial,) = found.trials
    right = costs.adequate[torch.arange(200), choice]
    assert trial.adequate == pytest.approx(right.double().mean().item())
    assert trial.nfe == pytest.approx(costs.nfe[torch.arange(200), choice].double().mean().item())
    assert trial.loss_bound == loss_bound(torch.ones(200, dtype=torch.bool), right)


def test_noise_cannot_be_learnt():
    """Euler right by a coin: the accuracy is what routing gives on samples that were not fitted."""
    costs = sided(400, hard=-1.0)
    coin = (torch.rand(400, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    noise = Costs(costs.candidates, costs.h0, costs.k1, costs.nfe, torch.stack([coin, 0 * coin], 1), costs.rule)
    (trial,) = choose_penalty(noise, network, penalties=[5.0], budget=0.9).trials
    share_of_euler = (4 - trial.nfe) / 3
    assert trial.adequate == pytest.approx(1 - share_of_euler / 2, abs=0.08)


@pytest.mark.host
def test_the_choice_depends_on_its_seed_alone():
    costs, before = sided(200, hard=0.3), torch.get_rng_state()
    first = choose_penalty(costs, network, penalties=[1e3], seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert choose_penalty(costs, network, penalties=[1e3], seed=3) == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"penalties": []}, "penalties: expected at least one"),
        ({"folds": 2}, "folds: expected 3 to 50"),
        ({"folds": 51}, "folds: expected 3 to 50"),
        ({"penalties": [1e3, 2.0]}, "M: expected more than the largest price"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_penalty(sided(50, hard=0.3), network, **arguments)


@pytest.mark.parametrize("tolerance", [5, 1.0, 0, -0.1])
def test_a_tolerance_is_a_share_and_no_percentage(tolerance):
    with pytest.raises(ValueError, match=f"tolerance: expected a number between 0 and 1, got {tolerance}"):
        choose(tolerance=tolerance)
