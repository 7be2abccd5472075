import pytest
import torch
from torch.testing import assert_close

from dise import RK4, Euler
from dise.select import Costs, Outcomes, OutputDeviation, ProbabilityShift, RiskCost, disagreement, lost_accuracy

RIGHT, WRONG = [0.0, 1.0], [1.0, 0.0]
OUTPUT = torch.tensor([RIGHT, WRONG, RIGHT, WRONG])
REFERENCE = torch.tensor([RIGHT, RIGHT, WRONG, WRONG])
LABEL = torch.ones(4, dtype=torch.int64)


def test_risks_of_classes_by_hand():
    assert disagreement(OUTPUT, REFERENCE, LABEL).tolist() == [0, 1, 1, 0]
    assert lost_accuracy(OUTPUT, REFERENCE, LABEL).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_risks_of_yes_and_no_by_hand(shape):
    """The same from the log-odds of yes, the second class."""
    output, reference = ((x[:, 1] - x[:, 0]).reshape(shape) for x in (OUTPUT, REFERENCE))
    assert disagreement(output, reference, LABEL).tolist() == [0, 1, 1, 0]
    assert lost_accuracy(output, reference, LABEL).tolist() == [0, 1, 0, 0]


def test_moved_probabilities_by_hand():
    p, q = torch.tensor([0.50, 0.10, 0.90]), torch.tensor([0.54, 0.16, 0.80])
    assert ProbabilityShift(0.05)(p.logit(), q.logit(), LABEL).tolist() == [0, 1, 1]
    two = [torch.stack([1 - x, x], 1).log() for x in (p, q)]
    assert ProbabilityShift(0.05)(*two, LABEL).tolist() == [0, 1, 1]


def test_deviating_outputs_by_hand():
    """Root mean squares of the differences: 0.1, 0.5 and 5; NaN is no answer."""
    output = torch.tensor([[1.1, 0.9], [1.7, 0.9], [4.0, 5.0], [torch.nan, 1.0]])
    reference = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, -3.0], [1.0, 1.0]])
    losses = [OutputDeviation(tolerance)(output, reference, LABEL).tolist() for tolerance in (0.05, 0.2, 0.6)]
    assert losses == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert OutputDeviation(7.0)(torch.zeros(2, 3, 4), torch.ones(2, 3, 4), LABEL).tolist() == [0, 0]


@pytest.mark.parametrize("tau", [0, 1, -0.1, float("nan")])
def test_wrong_arguments(tau):
    with pytest.raises(ValueError, match="tau: expected a number between 0 and 1"):
        ProbabilityShift(tau)
    with pytest.raises(ValueError, match="tolerance: expected a positive number"):
        OutputDeviation(-abs(tau))


def test_candidates_are_adequate_where_they_lose_nothing():
    """Eq. 4 with α = 1/2 and M = 100; the last candidate is the reference."""
    nothing = torch.zeros(4, 1)
    outcomes = Outcomes(
        (Euler(), RK4()), nothing, nothing, torch.tensor([[1, 4]] * 4), torch.stack([OUTPUT, REFERENCE], 1), LABEL
    )
    costs = Costs.of(outcomes, RiskCost(alpha=0.5, M=100))
    assert costs.adequate.tolist() == [[True, True], [False, True], [False, True], [True, True]]
    assert_close(costs.cost, torch.tensor([[1.0, 2.0], [10, 2], [10, 2], [1, 2]]))
    labelled = Costs.of(outcomes, RiskCost(risk=lost_accuracy))
    assert labelled.adequate[:, 0].tolist() == [True, False, True, True]
