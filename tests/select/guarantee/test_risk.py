import pytest
import torch
from torch.testing import assert_close

from dise import RK4, ClassificationCost, Euler, TaskErrorCost
from dise.select import (
    BinaryCost,
    Costs,
    Outcomes,
    OutputDeviation,
    ProbabilityShift,
    RiskCost,
    disagreement,
    lost_accuracy,
)
from dise.select.guarantee.risk import losses

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


@pytest.mark.parametrize("shapes", [[(4,), (4, 1)], [(4, 1), (4,)], [(4,), (1,)], [(4, 2), (1, 2)], [(4, 4), (4,)]])
def test_outputs_that_would_broadcast_are_refused(shapes):
    """For a loss of the user's own too: [4] beside [4, 1] would be compared as [4, 4]."""
    output, reference = (torch.ones(shape) for shape in shapes)
    for risk in (disagreement, lost_accuracy, ProbabilityShift(0.1), OutputDeviation(0.1)):
        with pytest.raises(ValueError, match=r"^reference: expected values"):
            risk(output, reference, LABEL)
    with pytest.raises(ValueError, match=r"^reference: expected values"):
        losses(lambda output, reference, target: torch.zeros(4), output, reference, None)


# ---- outputs that are not finite

NAN, INF = float("nan"), float("inf")
RISKS = (disagreement, lost_accuracy, ProbabilityShift(0.9), OutputDeviation(100.0))
ALWAYS_FINE = (*RISKS, lambda output, reference, target: torch.zeros(len(output)))
NAMES = ("disagreement", "lost_accuracy", "ProbabilityShift", "OutputDeviation", "always fine")


@pytest.mark.parametrize("risk", ALWAYS_FINE, ids=NAMES)
@pytest.mark.parametrize("broken", [[NAN, NAN], [0.0, NAN], [-INF, 1.0], [0.0, INF]])
def test_an_output_that_is_not_finite_where_the_references_is_is_a_loss(risk, broken):
    """Each predicts the label or the reference's class by argmax, or is within the tolerance."""
    output, reference = torch.tensor([broken, RIGHT]), torch.tensor([RIGHT, RIGHT])
    assert losses(risk, output, reference, LABEL[:2]).tolist() == [1, 0]
    if risk in RISKS:
        assert risk(output, reference, LABEL[:2]).tolist() == [1, 0]


@pytest.mark.parametrize("risk", ALWAYS_FINE, ids=NAMES)
@pytest.mark.parametrize("row", [[NAN, NAN], [0.0, NAN], [-INF, 1.0], [0.0, INF]])
def test_the_reference_loses_nothing_against_itself(risk, row):
    output = torch.tensor([row, RIGHT])
    assert losses(risk, output, output, LABEL[:2]).tolist() == [0, 0]


def test_a_class_that_both_exclude_is_no_loss():
    """The first sample's answers are the same, the second's are not; NaN for −∞ is a loss."""
    reference = torch.tensor([[-INF, 1.0, 2.0]] * 3)
    output = torch.tensor([[-INF, 1.1, 2.1], [-INF, 2.1, 1.1], [NAN, 1.0, 2.0]])
    assert losses(disagreement, output, reference, LABEL[:3]).tolist() == [0, 1, 1]
    assert losses(ProbabilityShift(0.5), output, reference, LABEL[:3]).tolist()[::2] == [0, 1]


def zero(output, target):
    return torch.zeros(output.shape[:2])


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (ClassificationCost(), (2,)),
        (BinaryCost(), ()),
        (RiskCost(risk=lambda o, r, y: torch.zeros(len(o))), (2,)),
        (TaskErrorCost(task_error=zero, beta=1.0, resolution=0.5), (2,)),
        (TaskErrorCost(task_error=lambda o, y: 9 + zero(o, y), beta=1, resolution=2, larger_is_better=True), (2,)),
    ],
)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_candidate_is_not_adequate_where_its_output_is_not_finite(rule, shape, value):
    """Without the value both candidates are adequate on both samples."""
    table = torch.tensor([-1.0, 1.0]).expand(2, 2, 2).clone() if shape else torch.ones(2, 2)
    nothing, nfe = torch.zeros(2, 1), torch.tensor([[1, 4]] * 2)
    fine = Costs.of(Outcomes((Euler(), RK4()), nothing, nothing, nfe, table, LABEL[:2]), rule)
    assert fine.adequate.all()
    table[0, 0] = value
    costs = Costs.of(Outcomes((Euler(), RK4()), nothing, nothing, nfe, table, LABEL[:2]), rule)
    assert costs.adequate.tolist() == [[False, True], [True, True]]
    assert costs.cost[0, 0] == pytest.approx(1000**0.3)
    assert costs.cost.isfinite().all()


def test_nan_logits_predict_no_label_of_a_cost():
    """The reference's are NaN, too, so the candidate is compared with the label alone."""
    nan, zeros = torch.full((1, 2, 2), NAN), torch.zeros(1, 1)
    for rule, output in ((ClassificationCost(), nan), (BinaryCost(), nan[..., 0])):
        for label in (0, 1):
            outcomes = Outcomes((Euler(), RK4()), zeros, zeros, torch.tensor([[1, 4]]), output, torch.tensor([label]))
            assert Costs.of(outcomes, rule).adequate.tolist() == [[False, False]]


def test_two_outputs_with_nan_do_not_disagree():
    """Neither predicts a class, wherever the NaN stands."""
    output, reference = torch.tensor([[0.5, torch.nan, 1.0]]), torch.full((1, 3), torch.nan)
    assert disagreement(output, reference, None).tolist() == [0.0]
    assert disagreement(reference[:, :2], torch.tensor([[0.0, 1.0]]), None).tolist() == [1.0]
