"""Classes, yes-or-no questions and regressions are told apart, or asked for."""

import pytest
import torch
from torch import nn

from dise import RK4, Euler, NeuralODE, calibrate, make_dynamic
from dise.select import OutputDeviation, ProbabilityShift, disagreement, lost_accuracy
from dise.select.guarantee.kind import Kind, kind_of, score_of
from dise.select.guarantee.risk import risk_name

N = 200
DRAW = torch.Generator().manual_seed(0)
X, REAL = (torch.randn(N, 2, generator=DRAW) for _ in "12")
LABEL, YES = torch.arange(N) % 3, torch.arange(N) % 2


def outputs(*shape):
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("shape", "target", "kind"),
    [
        ((3,), None, Kind.CLASSES),
        ((3,), LABEL, Kind.CLASSES),
        ((3,), LABEL[:, None].float(), Kind.CLASSES),
        ((3,), nn.functional.one_hot(LABEL, 3), Kind.CLASSES),
        ((3,), outputs(3).softmax(1), Kind.CLASSES),
        ((3,), outputs(3), Kind.NUMBERS),
        ((3,), LABEL + 1, Kind.NUMBERS),
        ((3,), outputs(), Kind.NUMBERS),
        ((1,), None, None),
        ((), None, None),
        ((1,), YES, Kind.YES_OR_NO),
        ((), YES.double(), Kind.YES_OR_NO),
        ((1,), YES[:, None].bool(), Kind.YES_OR_NO),
        ((1,), LABEL, Kind.NUMBERS),
        ((1,), REAL[:, :1], Kind.NUMBERS),
        ((3, 2), None, Kind.NUMBERS),
        ((3, 2), LABEL, Kind.NUMBERS),
    ],
)
def test_kinds_by_outputs_and_targets(shape, target, kind):
    assert kind_of(outputs(*shape), target) == kind


def test_states_and_whole_numbers_are_no_logits():
    assert kind_of(outputs(3), None, is_state=True) is None
    assert kind_of(LABEL, LABEL) is Kind.NUMBERS


def model(size=3, head=True):
    class Field(nn.Module):
        def forward(self, t, y):
            return torch.tanh(y.flip(1) - y)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        block, last = NeuralODE(Field(), RK4(4)), nn.Linear(2, size)
    return nn.Sequential(block, last) if head else nn.Sequential(block)


CALLS = {
    "make_dynamic": lambda m, data, **o: make_dynamic(m, data, settings=[Euler(4)], **o)[0].report.risk_name,
    "calibrate": lambda m, data, **o: risk_name(calibrate(m, [Euler(4)], data, reference=RK4(4), **o).risk),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("size", "target", "options", "expected"),
    [
        (3, None, {}, "disagreement"),
        (3, LABEL, {}, "disagreement"),
        (1, YES, {}, "disagreement"),
        (1, None, {"risk": disagreement}, "disagreement"),
        (1, None, {"risk": ProbabilityShift(0.1)}, "ProbabilityShift (a probability changes by more than 0.1)"),
        (1, REAL[:, :1], {"risk": OutputDeviation(0.5)}, "OutputDeviation"),
        (3, LABEL, {"risk": lost_accuracy}, "lost_accuracy"),
        (3, None, {"risk": lambda o, r, y: torch.zeros(len(o))}, "<lambda>"),
    ],
    ids=range(8),
)
def test_the_risk_that_is_taken_is_named(call, size, target, options, expected):
    data = X if target is None else [(X, target)]
    assert call(model(size), data, epsilon=0.05, **options).startswith(expected)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("size", "target", "options", "message"),
    [
        (1, None, {}, r"risk: give one, since the outputs .* by their shape and the absence of targets"),
        (1, REAL[:, :1], {}, r"risk: give one, since the outputs .* are no logits of classes .* the targets"),
        (1, REAL[:, 0], {"risk": disagreement}, "those of a regression; expected OutputDeviation"),
        (1, LABEL, {"risk": ProbabilityShift(0.1)}, "those of a regression; expected OutputDeviation"),
        (2, REAL, {}, "OutputDeviation.tolerance. for numbers"),
        (3, None, {"risk": lost_accuracy}, r"risk: lost_accuracy needs labels; expected data \(x, label\) .* got None"),
        (3, LABEL + 1, {"risk": lost_accuracy}, "with one of 0 to 2 per sample"),
        (3, LABEL + 1, {}, "no logits of classes by their shape and the targets, 1 to 3, while labels are 0 to 2"),
        (3, LABEL[:, None], {"risk": lost_accuracy}, r"got those of shape \(\d+, 1\)"),
        (
            3,
            None,
            {"risk": lambda o, r, y: (o.argmax(1) != y.long()).double()},
            r"fails without targets .* expected data \(x, target\), got x alone",
        ),
    ],
    ids=range(10),
)
def test_what_cannot_be_told_is_asked_for(call, size, target, options, message):
    data = X if target is None else [(X, target)]
    with pytest.raises(ValueError, match=message):
        call(model(size), data, epsilon=0.05, **options)


def test_outputs_that_are_the_state_may_be_a_regression():
    for call in CALLS.values():
        with pytest.raises(ValueError, match="risk: give one"):
            call(model(head=False), X, epsilon=0.05)


@pytest.mark.parametrize("output", [outputs(3, 2), LABEL], ids=["of other shapes", "whole numbers"])
def test_risks_of_classes_are_for_logits(output):
    with pytest.raises(ValueError, match=r"output: expected logits \[n, C\]"):
        disagreement(output, output, None)


def test_scores_by_hand():
    logits = torch.tensor([[1.0, 2.0], [2.0, 1.0], [torch.nan, 1.0]])
    assert score_of(logits, torch.tensor([1, 1, 0])) == ("accuracy", pytest.approx(1 / 3))
    assert score_of(logits[:2, :1] - 1.5, torch.tensor([0.0, 0.0])) == ("accuracy", 0.5)
    assert score_of(torch.tensor([[3.0], [0.0]]), torch.tensor([[0.5], [0.5]])) == (
        "root mean square error",
        pytest.approx(((2.5**2 + 0.5**2) / 2) ** 0.5),
    )
    assert score_of(logits, None) is None
    assert score_of(logits, torch.zeros(3, 7)) is None
