"""Selectors that policies are compared with: chance, and a routing that is given."""

import pytest
import torch

from dise import RK4, ClassificationCost, Dynamic, Euler, Midpoint, solve
from dise.select import AssignedSelector, Costs, RandomSelector, oracle, oracle_choice


def test_random_choices_have_the_shares_asked_for():
    torch.manual_seed(0)
    dynamic = Dynamic((Euler(1), Euler(2), Euler(3)), RandomSelector([3, 0, 1]))
    choice = solve(lambda t, y: -y, torch.ones(20_000, 1), 0.0, 1.0, dynamic).choice
    counts = torch.bincount(choice, minlength=3)
    assert counts[1] == 0
    # five standard deviations of Binomial(20000, 3/4)
    assert abs(int(counts[0]) - 15_000) < 5 * (20_000 * 3 / 16) ** 0.5


def test_random_choices_differ_from_call_to_call():
    torch.manual_seed(0)
    dynamic = Dynamic((Euler(1), Euler(2)), RandomSelector([1, 1]))
    first, second = (solve(lambda t, y: -y, torch.ones(50, 1), 0.0, 1.0, dynamic).choice for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("shares", [[], [0, 0], [-1, 2], [float("nan"), 1], [float("inf"), 1], [[1, 2]]])
def test_shares_are_none(shares):
    with pytest.raises(ValueError, match="shares: expected numbers of at least 0, not all 0"):
        RandomSelector(shares)


def test_the_oracle_runs(tanh_field, starts):
    """Through `solve`, it needs the evaluations that the evaluation says."""
    candidates, f, y0 = (Euler(1), Midpoint(1), RK4(2)), tanh_field(3), starts(40, 3)
    with torch.no_grad():
        ends = torch.stack([solve(f, y0, 0.0, 1.0, candidate).y for candidate in candidates], 1)
        nfe = torch.tensor([1, 2, 8]).expand(40, 3)
        off = (ends - ends[:, -1:]).norm(dim=2)
        error = (off > off[:, :2].median()).float()
        costs = Costs(candidates, y0, y0, nfe, error, ClassificationCost())
        solution = solve(f, y0, 0.0, 1.0, Dynamic(candidates, AssignedSelector(oracle_choice(costs), 3)))
    assert solution.choice.unique().tolist() == [0, 1, 2]
    assert torch.equal(solution.nfe, oracle(costs).nfe.long())
    torch.testing.assert_close(solution.y, ends[torch.arange(40), solution.choice])


def test_an_assignment_is_for_one_batch():
    dynamic = Dynamic((Euler(1), Euler(2)), AssignedSelector(torch.tensor([0, 1]), 2))
    with pytest.raises(ValueError, match="choice: expected the 2 samples of the assignment, got 3"):
        solve(lambda t, y: -y, torch.ones(3, 1), 0.0, 1.0, dynamic)


@pytest.mark.parametrize("choice", [[0, 2], [-1, 0], [[0, 1]]])
def test_an_assignment_names_candidates(choice):
    with pytest.raises(ValueError, match=r"choice: expected \[B\] indices of 2 candidates"):
        AssignedSelector(torch.tensor(choice), 2)
