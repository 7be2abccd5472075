"""What the reference would say, expected from what a candidate says: a rule by which a cascade accepts."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from dise.integrate.solution import State
from dise.select.cascade import two_classes

# λ of the ridge regression, in units of the features' variance; leave-one-out errors choose
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Forecast(nn.Module):
    """Accepts states whose answer is likely the reference integrator's: for a `Cascade` of a classifier.

    A coarse integrator errs in the same way on many samples: it favours certain classes. So the reference's logits can
    be expected from the candidate's, by a linear map of logits and their squares that is learnt without labels
    (`expect`). The score is the lead that the candidate's own answer has in them; where it is negative, the reference
    likely answers otherwise. `Confidence` asks the candidate how sure it is; this asks whether it is right to be.

    It looks at the model's head without owning it. What it learnt is part of the block that its cascade is given to.

    Args:
        head: h(t1) [n, ...] → logits [n, C]; or one logit a sample, [n] or [n, 1], of a yes-or-no question, which is
            C = 2. It is evaluated once more for each answer that is judged.
        threshold: smallest score to accept, in the logits' unit.
        classes: C.

    Raises:
        ValueError: fewer than two classes, or a threshold that is no number.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, head: nn.Module, threshold: float, *, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes: expected at least 2, got {classes!r}")
        self._head = (head,)  # in a tuple it is not registered a second time
        self.threshold = _checked(threshold)
        # untrained, the candidate's own logits are what is expected
        self.register_buffer("weight", torch.cat([torch.eye(classes), torch.zeros(classes, classes)]))
        self.register_buffer("bias", torch.zeros(classes))

    @classmethod
    def fit(cls, head: nn.Module, logits: Tensor, reference: Tensor, *, threshold: float = 0.0) -> Self:
        """A rule for one candidate.

        Args:
            head: of the model.
            logits: [N, C], or [N] or [N, 1], the model's with the candidate, on held-out samples.
            reference: likewise, with the reference integrator.
            threshold: see the class.

        Raises:
            ValueError: shapes that differ, or fewer than two samples.
        """
        return cls.of(head, expect(logits, reference), threshold)

    @classmethod
    def of(cls, head: nn.Module, expected: "Expected", threshold: float) -> Self:
        """A rule of what was learnt already."""
        rule = cls(head, threshold, classes=len(expected.bias))
        rule.weight.copy_(expected.weight)
        rule.bias.copy_(expected.bias)
        return rule

    @property
    def head(self) -> nn.Module:
        """The model's head."""
        return self._head[0]

    def score(self, h: State) -> Tensor:
        """[n] lead of the answer in the expected logits of the reference."""
        logits = two_classes(self.head(h)).to(self.weight.dtype)
        return lead(self._expected(_features(logits)), logits.argmax(1))

    def _expected(self, features: Tensor) -> Tensor:
        device = self.weight.device.type
        if torch.is_autocast_enabled(device):  # squares of logits are too coarse in half precision
            with torch.autocast(device, enabled=False):
                return torch.addmm(self.bias, features, self.weight)
        return torch.addmm(self.bias, features, self.weight)

    def forward(self, h: State) -> Tensor:
        """[n] bool, states [n, ...] at t1."""
        return self.score(h) >= self.threshold

    def with_threshold(self, threshold: float) -> Self:
        """The rule with another threshold; both share what was learnt.

        Raises:
            ValueError: a threshold that is no number.
        """
        other = copy(self)
        other.threshold = _checked(threshold)
        return other

    def extra_repr(self) -> str:
        """What a printed rule says of itself."""
        return f"threshold={self.threshold:g}, classes={len(self.bias)}"


def _checked(threshold: float) -> float:
    if threshold != threshold:
        raise ValueError(f"threshold: expected a number, got {threshold!r}")
    return threshold


def _features(logits: Tensor) -> Tensor:
    return torch.cat([logits, logits.square()], dim=1)


def lead(logits: Tensor, answer: Tensor) -> Tensor:
    """[n] by how much the logit of an answer [n] is above the largest other one, of logits [n, C]."""
    index = answer[:, None]
    return logits.gather(1, index)[:, 0] - logits.scatter(1, index, -torch.inf).amax(1)


@dataclass(frozen=True)
class Expected:
    """A linear map to the reference's logits.

    Attributes:
        weight: [2·C, C] of a candidate's logits and their squares.
        bias: [C].
        left_out: [N, C] what is expected of each sample by the map that is learnt from the others.
    """

    weight: Tensor
    bias: Tensor
    left_out: Tensor


@torch.no_grad()
def expect(logits: Tensor, reference: Tensor, *, penalties: Sequence[float] = PENALTIES) -> Expected:
    """Learn the reference's logits from a candidate's, by ridge regression.

    Args:
        logits, reference: [N, C], or [N] or [N, 1], on N ≥ 2 samples.
        penalties: λ to choose from, by the mean squared error of samples left out.

    Raises:
        ValueError: shapes that differ, or fewer than two samples.

    Source: Allen, The relationship between variable selection and data augmentation and a method for prediction, 1974
    (errors of samples left out, from one decomposition).
    """
    if logits.shape != reference.shape or len(logits) < 2:
        raise ValueError(
            f"logits, reference: expected two or more samples of the same shape, got {tuple(logits.shape)} and "
            f"{tuple(reference.shape)}"
        )
    x, y = _features(two_classes(logits.double())), two_classes(reference.double())
    number, mean, scale, middle = len(x), x.mean(0), x.std(0).clamp(min=1e-9), y.mean(0)
    u, s, v = torch.linalg.svd((x - mean) / scale, full_matrices=False)
    target = u.mT @ (y - middle)

    def left_out(penalty: float) -> Tensor:
        kept = s.square() / (s.square() + penalty * number)
        leverage = u.square() @ kept + 1 / number
        return y - (y - middle - u @ (kept[:, None] * target)) / (1 - leverage).clamp(min=1e-9)[:, None]

    best = min(penalties, key=lambda penalty: float((left_out(penalty) - y).square().mean()))
    weight = v.mT @ ((s / (s.square() + best * number))[:, None] * target) / scale[:, None]
    columns = (weight, middle - mean @ weight, left_out(best))
    return Expected(*(column.to(torch.get_default_dtype()) for column in columns))
