"""What the reference would say, expected from what a candidate says: a rule by which a cascade accepts."""

from copy import copy
from typing import Self

import torch
from torch import Tensor, nn

from dise.integrate.problem.state import State
from dise.select.model.logits import two_classes
from dise.select.model.states import channel_means
from dise.select.policies.forecast_fit import Expected, _features, expect, lead


class Forecast(nn.Module):
    """Accepts states whose answer is likely the reference integrator's: for a `Cascade` of a classifier.

    A coarse integrator errs in the same way on many samples: it favours certain classes. So the reference's logits can
    be expected from the candidate's, by a linear map that is learnt without labels (`expect`): of the logits, of their
    products in pairs, and of the means of the state's channels. The score is the lead that the candidate's own answer
    has in them; where it is negative, the reference likely answers otherwise. `Confidence` asks the candidate how sure
    it is; this asks whether it is right to be.

    It looks at the model's head without owning it. What it learnt is part of the block that its cascade is given to.

    Args:
        head: h(t1) [n, ...] → logits [n, C]; or one logit a sample, [n] or [n, 1], of a yes-or-no question, which is
            C = 2. It is evaluated once more for each answer that is judged.
        threshold: smallest score to accept, in the logits' unit.
        classes: C.
        channels: D of states [n, D, ...] whose means are looked at; 0: none are.

    Raises:
        ValueError: fewer than two classes, a negative number of channels, or a threshold that is no number.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, head: nn.Module, threshold: float, *, classes: int, channels: int = 0) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes: expected at least 2, got {classes!r}")
        if channels < 0:
            raise ValueError(f"channels: expected at least 0, got {channels!r}")
        self._head = (head,)  # in a tuple it is not registered a second time
        self.threshold = _checked(threshold)
        self.channels = channels
        number = _features(torch.zeros(1, classes), torch.zeros(1, channels)).shape[1]
        # untrained, the candidate's own logits are what is expected
        self.register_buffer("weight", torch.eye(number, classes))
        self.register_buffer("bias", torch.zeros(classes))

    @classmethod
    def fit(
        cls, head: nn.Module, logits: Tensor, reference: Tensor, *, means: Tensor | None = None, threshold: float = 0.0
    ) -> Self:
        """A rule for one candidate.

        Args:
            head: of the model.
            logits: [N, C], or [N] or [N, 1], the model's with the candidate; the samples may be those that the model
                was trained on.
            reference: likewise, with the reference integrator.
            means: [N, D] `channel_means` of the candidate's states at t1, to look at these too.
            threshold: see the class.

        Raises:
            ValueError: shapes that differ, or fewer than two samples.
        """
        return cls.of(head, expect(logits, reference, means), threshold)

    @classmethod
    def of(cls, head: nn.Module, expected: "Expected", threshold: float) -> Self:
        """A rule of what was learnt already."""
        rule = cls(head, threshold, classes=len(expected.bias), channels=expected.channels)
        rule.weight.copy_(expected.weight)
        rule.bias.copy_(expected.bias)
        return rule

    @property
    def head(self) -> nn.Module:
        """The model's head."""
        return self._head[0]

    def score(self, h: State) -> Tensor:
        """[n] lead of the answer in the expected logits of the reference."""
        means = channel_means(h) if self.channels else None  # first: a head may change its input in place
        logits = two_classes(self.head(h)).to(self.weight.dtype)
        return lead(self._expected(logits, means), logits.argmax(1))

    def _expected(self, logits: Tensor, means: Tensor | None) -> Tensor:
        device = self.weight.device.type
        if torch.is_autocast_enabled(device):  # products of logits are too coarse in half precision
            with torch.autocast(device, enabled=False):
                return self._expected_precisely(logits, means)
        return self._expected_precisely(logits, means)

    def _expected_precisely(self, logits: Tensor, means: Tensor | None) -> Tensor:
        means = means if means is None else means.to(logits.dtype)
        return torch.addmm(self.bias, _features(logits, means), self.weight)

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
        return f"threshold={self.threshold:g}, classes={len(self.bias)}, channels={self.channels}"


def _checked(threshold: float) -> float:
    if threshold != threshold:
        raise ValueError(f"threshold: expected a number, got {threshold!r}")
    return threshold
