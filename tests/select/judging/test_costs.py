import torch
from torch.testing import assert_close

from dise import RK4, Euler
from dise.select import ClassificationCost, Costs, collect_costs, run_candidates

CANDIDATES = (Euler(1), Euler(2), RK4(1))


def test_costs_of_a_model_worked_out_by_hand(toy_model, batches):
    # the second of two growing features is always larger where it is scaled by a positive number: prediction 1;
    # one Euler step gives zeros: prediction 0
    costs = collect_costs(toy_model, batches(2, 2), CANDIDATES, ClassificationCost(alpha=0.5, M=100))
    assert costs.adequate.tolist() == [[True, False, False], [False, True, True]] * 2
    assert_close(costs.cost, torch.tensor([[1, 10, 10], [10, 2**0.5, 2]] * 2))
    assert costs.rule == ClassificationCost(alpha=0.5, M=100)
    assert len(costs) == 4


def test_costs_are_eq4s_with_the_papers_settings_by_default(toy_model, batches):
    outcomes = run_candidates(toy_model, batches(3), CANDIDATES)
    costs = collect_costs(toy_model, batches(3), CANDIDATES)
    assert_close(costs.cost, Costs.of(outcomes, ClassificationCost(alpha=0.3, M=1000)).cost)
    assert costs.rule == ClassificationCost()


def test_among_keeps_some_candidates_and_everything_a_selector_sees(toy_model, batches):
    costs = collect_costs(toy_model, batches(3), CANDIDATES)
    some = costs.take_candidates((2, 0))
    assert some.candidates == (CANDIDATES[2], CANDIDATES[0])
    for name in ("nfe", "adequate", "cost"):
        assert torch.equal(getattr(some, name), getattr(costs, name)[:, [2, 0]])
    assert some.h0 is costs.h0
    assert some.k1 is costs.k1
    assert some.rule == costs.rule
