"""Policies on five samples that can be counted on one hand."""

import pytest
import torch

from dise.select import assignment_score, closed_gap_fraction, oracle, random_mix, single_candidate

NFE = [[1, 4, 14], [1, 4, 20], [1, 4, 14], [1, 4, 26], [1, 4, 26]]
RIGHT = [
    [True, True, True],
    [False, True, True],
    [False, False, True],
    [False, False, False],
    [True, False, True],
]


@pytest.fixture
def costs(make_costs):
    return make_costs(NFE, RIGHT)


@pytest.mark.parametrize(
    ("index", "name", "accuracy", "nfe"), [(0, "Euler", 2 / 5, 1), (1, "RK4", 2 / 5, 4), (2, "Dopri5", 4 / 5, 20)]
)
def test_single(costs, index, name, accuracy, nfe):
    score = single_candidate(costs, index)
    assert score.name == name
    assert score.accuracy == pytest.approx(accuracy)
    assert score.mean_nfe == pytest.approx(nfe)


def test_oracle_takes_the_cheapest_that_is_right_and_the_cheapest_where_none_is(costs):
    score = oracle(costs)
    assert score.nfe.tolist() == [1, 4, 14, 1, 1]
    assert score.adequate.tolist() == [1, 1, 1, 0, 1]
    assert score.accuracy == pytest.approx(0.8)
    assert score.mean_nfe == pytest.approx(21 / 5)


def test_oracle_looks_at_nfe_not_at_the_order_of_the_candidates(make_costs):
    score = oracle(make_costs([[14, 4, 1]], [[True, True, False], [False, False, False]]))
    assert score.nfe.tolist() == [4, 1]
    assert score.adequate.tolist() == [1, 0]


@pytest.mark.parametrize("scale", [1.0, 0.25, 40.0])
def test_random_mix_is_the_expectation(costs, scale):
    score = random_mix(costs, scale * torch.tensor([1.0, 1.0, 2.0]))
    # weights ¼, ¼, ½
    assert score.adequate.tolist() == [1, 0.75, 0.5, 0, 0.75]
    assert score.nfe.tolist() == [8.25, 11.25, 8.25, 14.25, 14.25]
    assert score.accuracy == pytest.approx(0.6)
    assert score.mean_nfe == pytest.approx(11.25)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_random_mix_of_one_candidate_is_that_candidate(costs, index):
    shares = torch.zeros(3)
    shares[index] = 17
    mixed, alone = random_mix(costs, shares), single_candidate(costs, index)
    assert torch.equal(mixed.adequate, alone.adequate)
    assert torch.equal(mixed.nfe, alone.nfe)


def test_oracle_is_at_least_as_right_as_any_candidate(make_costs):
    right = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) < 0.7
    costs = make_costs([[1, 4, 14]], right)
    best = oracle(costs)
    assert best.accuracy == pytest.approx(right.any(1).double().mean().item())
    assert all(best.accuracy >= single_candidate(costs, i).accuracy for i in range(3))


def test_the_closed_gap_by_hand():
    """Single candidates cost 2 and 2.5 in the mean, the oracle 1."""
    cost = torch.tensor([[1.0, 4.0], [3.0, 1.0]])
    assert closed_gap_fraction(cost, torch.tensor([0, 1])) == 1
    assert closed_gap_fraction(cost, torch.tensor([0, 0])) == 0
    assert closed_gap_fraction(cost, torch.tensor([1, 1])) == pytest.approx(-0.5)
    assert closed_gap_fraction(cost, torch.tensor([1, 0])) == pytest.approx(-1.5)
    assert closed_gap_fraction(torch.ones(3, 2), torch.tensor([0, 1, 0])) is None


def test_choices_and_shares_of_other_samples_or_candidates_are_refused(costs):
    """One choice, or one share, would broadcast to all samples."""
    for choice in (torch.tensor([2]), torch.zeros(4, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"weights: expected \(5, 3\), a row per sample"):
            assignment_score("one", costs, choice)
    with pytest.raises(ValueError, match=r"choice: expected whole numbers \[N\] with N = 5, got .*\(4,\)"):
        closed_gap_fraction(costs.cost, torch.zeros(4, dtype=torch.int64))
    for index in (-1, 3):
        with pytest.raises(ValueError, match="choice: expected indices of 3 candidates"):
            assignment_score("beyond", costs, torch.full((5,), index))
    with pytest.raises(ValueError, match=r"weights: expected \(5, 3\)"):
        random_mix(costs, torch.ones(1))
    for shares in ([1.0, -0.5, 2.0], [0.0, 0.0, 0.0], [1.0, float("nan"), 1.0]):
        with pytest.raises(ValueError, match="shares: expected numbers of at least 0, not all 0"):
            random_mix(costs, torch.tensor(shares))
