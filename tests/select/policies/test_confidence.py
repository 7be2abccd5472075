import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import RK4, Cascade, Confidence, Euler, Forecast, NeuralODE
from dise.select.policies.confidence import confidence


@pytest.mark.parametrize(
    ("measure", "scores"),
    [
        ("top", [0.5, 0.9]),
        ("margin", [0.25, 0.85]),
        ("entropy", [1 - 1.0397 / 1.0986, 1 - 0.3944 / 1.0986]),
        ("gap", [0.6931, 2.8904]),  # log 2, log 18
    ],
)
def test_confidence_by_hand(measure, scores):
    """Probabilities (1/2, 1/4, 1/4) and (0.9, 0.05, 0.05)."""
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]).log() + 7
    rule = Confidence(nn.Identity(), sum(scores) / 2, measure=measure)
    assert_close(rule.score(logits), torch.tensor(scores), rtol=0, atol=1e-4)
    assert rule(logits).tolist() == [False, True]


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_confidence_of_one_logit_is_that_of_yes_and_no(shape):
    """Probabilities of yes 0.1, 0.5, 0.8."""
    p = torch.tensor([0.1, 0.5, 0.8])
    rule = Confidence(nn.Identity(), 0.7)
    assert_close(rule.score(p.logit().reshape(shape)), torch.tensor([0.9, 0.5, 0.8]))
    assert_close(confidence(p.logit().reshape(shape), "margin"), torch.tensor([0.8, 0.0, 0.6]))


def test_a_cascade_leaves_the_models_parameters_as_they_are(decay):
    head = nn.Linear(1, 2)
    model = nn.Sequential(NeuralODE(decay(), Cascade((Euler(2), RK4(1)), Confidence(head, 0.9))), head)
    assert list(model.state_dict()) == ["0.f.rate", "1.weight", "1.bias"]
    other = copy.deepcopy(model)
    assert other[0].integrator.accept.head is other[1]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": float("nan"), "measure": "gap"}, "threshold"),
        ({"threshold": -1, "measure": "gap"}, "threshold"),
        ({"measure": "x"}, "measure"),
    ],
)
def test_wrong_confidence(arguments, name):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        Confidence(nn.Identity(), **({"threshold": 0.5} | arguments))


def test_a_cascade_in_a_block_with_its_head(decay):
    head = nn.Linear(1, 2)
    block = NeuralODE(decay(), Cascade((Euler(2), RK4(1)), Confidence(head, 0.9)))
    model = nn.Sequential(block, head)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0], [8.0]]))
        head.bias.zero_()
    with block.recording() as records:
        model(torch.tensor([[4.0], [0.1]]))
    assert records[0].solution.choice.tolist() == [0, 1]  # sure of 8·1, unsure of 8·0.025
    assert "Cascade(Euler(steps=2), RK4)" in repr(block)


class Doubling(nn.Module):
    def forward(self, h):
        return h.mul_(2)


RULES = {
    "Confidence": lambda head: Confidence(head, 0.7),
    "Forecast": lambda head: Forecast(head, 0.0, classes=2),
}


class NonNegative(nn.Module):
    """Changes its input only where there is something to change."""

    def forward(self, h):
        return h.clamp_(min=0) if bool((h < 0).any()) else h


class OnlyInTraining(nn.Module):
    def forward(self, h):
        return h.mul_(2) if self.training else h


IN_PLACE = {"layer": lambda: nn.SiLU(inplace=True), "operation": Doubling}
LATER = {"some states": NonNegative, "one mode": OnlyInTraining}


def dynamic(decay, rule, first):
    """A block whose cascade was used in evaluation mode on positive states, with its head in training mode now."""
    head = nn.Sequential(first(), nn.Linear(1, 2)).eval()
    block = NeuralODE(decay(), Cascade((Euler(2), RK4(1)), rule(head)))
    block.solve(POSITIVE)
    head.train()
    return block


STATES = torch.linspace(-9, 9, 40)[:, None]
POSITIVE = STATES[20:]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("first", (IN_PLACE | LATER).values(), ids=IN_PLACE | LATER)
def test_a_head_that_works_in_place_leaves_the_result_as_it_is(decay, rule, first, context):
    """Neither twice is once, so a changed h(t1) would change the model's answer."""
    with context():
        block = dynamic(decay, rule, first)
        alone = torch.stack([NeuralODE(decay(), method)(STATES) for method in (Euler(2), RK4(1))])
        if context is torch.no_grad and first in LATER.values():
            with pytest.raises(RuntimeError, match=r"accept: changed h\(t1\) in place, which it did not"):
                block.solve(STATES)
            return
        for _ in range(2):
            solution = block.solve(STATES)
            assert_close(solution.y, alone[solution.choice, torch.arange(40)])
            assert (solution.choice == 0).any()  # or nothing was tested


class Unhashable:
    __hash__ = None

    def __call__(self, y):
        return y.mul_(3)[:, 0] < 0


class Slotted:
    __slots__ = ()

    def __call__(self, y):
        return y.mul_(3)[:, 0] < 0


@pytest.mark.parametrize("rule", [Unhashable(), Slotted(), Slotted().__call__])
def test_rules_that_cannot_be_remembered_judge_copies(decay, rule):
    policy = Cascade((Euler(2), RK4(1)), rule)
    for _ in range(2):
        solution = NeuralODE(decay(), policy).solve(POSITIVE)
        assert_close(solution.y, NeuralODE(decay(), RK4(1))(POSITIVE))
