import math

import pytest
import torch
from torch.testing import assert_close

from dise.select import BinaryCost, ClassificationCost, TaskErrorCost


@pytest.mark.parametrize(
    ("alpha", "M", "nfe", "right", "expected"),
    [
        (0.5, 100.0, 4, True, 2.0),
        (0.5, 100.0, 9, True, 3.0),
        (0.5, 100.0, 4, False, 10.0),
        (1.0, 50.0, 7, True, 7.0),
        (1.0, 50.0, 7, False, 50.0),
        # the paper's α and M: 14^0.3, 1^0.3, 1000^0.3
        (0.3, 1000.0, 14, True, 2.20719),
        (0.3, 1000.0, 1, True, 1.0),
        (0.3, 1000.0, 1, False, 7.94328),
    ],
)
def test_eq4_by_hand(alpha, M, nfe, right, expected):
    cost = ClassificationCost(alpha=alpha, M=M)(torch.tensor([[nfe]]), torch.tensor([[0.0 if right else 1.0]]))
    assert cost.item() == pytest.approx(expected, rel=1e-5)


def test_eq4_is_taken_entry_by_entry():
    nfe = torch.tensor([[1, 4, 16], [1, 4, 25]])
    right = torch.tensor([[True, True, False], [False, False, True]])
    expected = torch.tensor([[1.0, 2.0, 30.0], [30.0, 30.0, 5.0]])
    assert_close(ClassificationCost(alpha=0.5, M=900)(nfe, (~right).float()), expected)


@pytest.mark.parametrize(("M", "largest"), [(14, 14), (10, 14), (2, 3)])
def test_penalty_below_an_nfe_is_refused(M, largest):
    with pytest.raises(
        ValueError, match=rf"M: expected more than the largest price of an adequate result, {largest}, got {M}"
    ):
        ClassificationCost(M=M)(torch.tensor([[1, largest]]), torch.zeros(1, 2))


@pytest.mark.parametrize("name", ["alpha", "M"])
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_alpha_and_penalty_are_positive_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected a positive number"):
        ClassificationCost(**{name: value})


def test_defaults_are_the_papers():
    assert ClassificationCost() == ClassificationCost(alpha=0.3, M=1000)


def test_no_samples_cost_nothing():
    nfe = torch.zeros(0, 3, dtype=torch.int64)
    assert ClassificationCost()(nfe, nfe.float()).shape == (0, 3)


def test_adequate_compares_every_candidates_prediction_with_the_label():
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[3.0, 2.0], [2.0, 3.0]]])
    rule = ClassificationCost()
    error = rule.error(logits, torch.tensor([1, 0]))
    assert error.tolist() == [[0, 1], [0, 1]]
    assert rule.adequate(error).tolist() == [[True, False], [True, False]]


def distance(output, target):
    return (output - target[:, None]).abs()


RULE = TaskErrorCost(alpha=0.5, M=100.0, task_error=distance, beta=2.0, resolution=0.25)


def test_eq5_by_hand():
    """(Δ·Γ)^α up to β, M^α above; errors below the resolution count as it."""
    error = RULE.error(torch.tensor([[5.0, 3.0, 6.5]]), torch.tensor([5.0]))
    assert error.tolist() == [[0, 2, 1.5]]
    assert RULE.adequate(error).all()
    assert_close(RULE(torch.tensor([[16, 8, 6]]), error), torch.tensor([[2.0, 4.0, 3.0]]))
    assert RULE(torch.tensor([[16]]), torch.tensor([[2.1]])).item() == pytest.approx(10)


def test_eq5_refuses_a_price_above_the_penalty_only_where_it_counts():
    assert RULE(torch.tensor([[10**6]]), torch.tensor([[39.0]])).item() == pytest.approx(10)
    with pytest.raises(ValueError, match="M: expected more than the largest price of an adequate result, 100"):
        RULE(torch.tensor([[50]]), torch.tensor([[2.0]]))


@pytest.mark.parametrize(("beta", "resolution"), [(1.0, 2.0), (1.0, 0.0), (math.inf, 1.0), (math.nan, 1.0)])
def test_eq5_needs_a_resolution_up_to_beta(beta, resolution):
    with pytest.raises(ValueError, match="beta, resolution: expected 0 < resolution <= beta"):
        TaskErrorCost(task_error=distance, beta=beta, resolution=resolution)


def test_eq5_refuses_errors_of_the_wrong_kind():
    rule = TaskErrorCost(task_error=lambda output, target: output, beta=1.0, resolution=0.1)
    with pytest.raises(ValueError, match="task_error: expected errors of at least 0, got -3"):
        rule.error(torch.tensor([[-3.0]]), torch.zeros(1))


def test_eq5_mirrored_by_hand():
    """(Δ/Γ)^α from β up, M^α below; Γ above the resolution counts as it; below β it may be anything."""
    rule = TaskErrorCost(
        alpha=0.5, M=100, task_error=lambda output, target: output, beta=0.5, resolution=4.0, larger_is_better=True
    )
    quality = rule.error(torch.tensor([[0.25, 0.5, 2.0, 9.0, -3.0, 0.0]]), torch.zeros(1))
    assert rule.adequate(quality).tolist() == [[False, True, True, True, False, False]]
    expected = torch.tensor([[10, 8**0.5, 2**0.5, 1, 10, 10]])  # 4/0.5, 4/2, 4/4
    assert_close(rule(torch.tensor([[4] * 6]), quality), expected)


def test_eq5_mirrored_needs_a_resolution_from_beta_on():
    with pytest.raises(ValueError, match="beta, resolution: expected 0 < beta <= resolution, got beta=2, resolution=1"):
        TaskErrorCost(task_error=distance, beta=2, resolution=1, larger_is_better=True)


def test_binary_answers_are_yes_above_the_threshold():
    """Probabilities 0.1, 0.3, 0.6 against a no and a yes; the log-odds are exact enough."""
    logits = torch.tensor([0.1, 0.3, 0.6]).logit().expand(2, 3)
    error = BinaryCost(threshold=0.25).error(logits, torch.tensor([0.0, 1.0]))
    assert error.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert BinaryCost().error(logits, torch.tensor([0.0, 1.0])).tolist() == [[0, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize("N", [3, 4])  # with N = K, [N, 1, 1] beside [N, K] broadcasts without an error
@pytest.mark.parametrize(
    ("rule", "shape"),
    [(ClassificationCost(), (3, 2)), (BinaryCost(), (3,)), (BinaryCost(), (3, 1)), (RULE, (3,))],
    ids=["classes", "binary", "binary with a dimension", "task error"],
)
def test_targets_that_would_broadcast_are_refused(rule, shape, N):
    output = torch.randn(N, *shape)
    assert rule.error(output, torch.ones(N)).shape == (N, 3)
    for target in (torch.ones(N, 1), torch.ones(N, 3)):
        with pytest.raises(ValueError, match=r"^(data: expected labels \[N\]|task_error: expected errors \[N, K\])"):
            rule.error(output, target)
    with pytest.raises(ValueError, match=r"^target: expected values"):
        rule.error(output, torch.ones(1))
    with pytest.raises(ValueError, match=r"^error: expected numbers"):
        rule(torch.ones(N, 3), torch.ones(N))


@pytest.mark.parametrize(("rule", "shape"), [(ClassificationCost(), (3, 2)), (BinaryCost(), (3,))])
@pytest.mark.parametrize("label", [-1.0, 2.0, 0.5, math.nan])
def test_labels_that_are_no_class_are_refused(rule, shape, label):
    with pytest.raises(ValueError, match=r"data: expected labels .*from 0 to 1, got"):
        rule.error(torch.randn(2, *shape), torch.tensor([1.0, label]))


def test_one_logit_is_no_class():
    """Its argmax is 0 whatever it is."""
    with pytest.raises(ValueError, match="output: expected logits of two or more classes; BinaryCost is for one"):
        ClassificationCost().error(torch.randn(2, 3, 1), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"output: expected one logit per sample, .* got \(2, 3, 4\)"):
        BinaryCost().error(torch.randn(2, 3, 4), torch.tensor([0, 1]))


def test_one_logit_with_or_without_a_dimension():
    logits = torch.tensor([[-1.0, 2.0], [3.0, -4.0]])
    for output in (logits, logits[..., None]):
        assert BinaryCost().error(output, torch.tensor([0, 1])).tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 2, float("nan")])
def test_a_threshold_that_is_no_probability(threshold):
    with pytest.raises(ValueError, match="threshold: expected a number between 0 and 1"):
        BinaryCost(threshold=threshold)
