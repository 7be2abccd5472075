"""What the reference would say, expected from what a candidate says: a rule by which a cascade accepts."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from dise.integrate.problem.state import State
from dise.select.policies.cascade import confidence, two_classes
from dise.select.policies.dynamic import channel_means

# λ of the ridge regression, in units of the features' variance; leave-one-out errors choose
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MOST_PAIRED = 32  # classes whose logits are multiplied in pairs; of more, only their squares are looked at


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


def _features(logits: Tensor, means: Tensor | None) -> Tensor:
    """[n, F] logits [n, C], what they are multiplied in pairs, and means [n, D] if they are given."""
    if logits.shape[1] > MOST_PAIRED:
        products = logits.square()
    else:  # all C² of them, which is faster than to pick those of different pairs
        products = (logits[:, :, None] * logits[:, None, :]).flatten(1)
    return torch.cat([logits, products] if means is None else [logits, products, means], dim=1)


def _once(features: int, classes: int) -> Tensor:
    """Which of the features to learn from: of products that come twice the first."""
    if classes > MOST_PAIRED:
        return torch.arange(features)
    i, j = torch.triu_indices(classes, classes)
    return torch.cat([torch.arange(classes), classes + classes * i + j, torch.arange(classes + classes**2, features)])


def lead(logits: Tensor, answer: Tensor) -> Tensor:
    """[n] by how much the logit of an answer [n] is above the largest other one, of logits [n, C]."""
    index = answer[:, None]
    return logits.gather(1, index)[:, 0] - logits.scatter(1, index, -torch.inf).amax(1)


@dataclass(frozen=True)
class Expected:
    """A linear map to the reference's logits.

    Attributes:
        weight: [F, C] of a candidate's logits, of their products, and of means of the state's channels.
        bias: [C].
        left_out: [N, C] what is expected of each sample by the map that is learnt from the others.
        channels: D, of how many channels.
    """

    weight: Tensor
    bias: Tensor
    left_out: Tensor
    channels: int = 0


@torch.no_grad()
def expect(
    logits: Tensor, reference: Tensor, means: Tensor | None = None, *, penalties: Sequence[float] = PENALTIES
) -> Expected:
    """Learn the reference's logits from a candidate's, by ridge regression.

    Samples count the more the less sure the candidate is, w = 1 / (1 + (gap / 2g)²) with the gap between its two
    largest logits, and g that of the least sure tenth: only there can a wrong expectation change what is accepted.

    Args:
        logits, reference: [N, C], or [N] or [N, 1], on N ≥ 2 samples.
        means: [N, D] of the candidate's states at t1, to learn from them too.
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
    if means is not None and (means.ndim != 2 or len(means) != len(logits)):
        raise ValueError(f"means: expected shape ({len(logits)}, D), got {tuple(means.shape)}")
    logits, y = two_classes(logits.double()), two_classes(reference.double())
    everything, w = _features(logits, means if means is None else means.double()), _closeness(logits)
    once = _once(everything.shape[1], logits.shape[1]).to(logits.device)
    x = everything[:, once]
    root, number, scale = w.sqrt()[:, None], len(x), x.std(0).clamp(min=1e-9)
    mean, middle = (w @ x) / number, (w @ y) / number
    u, s, v = torch.linalg.svd(root * (x - mean) / scale, full_matrices=False)
    target = u.mT @ (root * (y - middle))

    def errors(penalty: float) -> Tensor:
        """[N, C] of the samples left out, weighted."""
        kept = s.square() / (s.square() + penalty * number)
        leverage = u.square() @ kept + w / number
        return (root * (y - middle) - u @ (kept[:, None] * target)) / (1 - leverage).clamp(min=1e-9)[:, None]

    best = min(penalties, key=lambda penalty: float(errors(penalty).square().mean()))
    weight = v.mT @ ((s / (s.square() + best * number))[:, None] * target) / scale[:, None]
    kind, channels = torch.get_default_dtype(), 0 if means is None else means.shape[1]
    whole = weight.new_zeros(everything.shape[1], weight.shape[1]).index_copy(0, once, weight)
    return Expected(
        whole.to(kind), (middle - mean @ weight).to(kind), (y - errors(best) / root).to(kind), channels=channels
    )


def _closeness(logits: Tensor) -> Tensor:
    """[N] what samples count, on average 1: see `expect`."""
    gap = confidence(logits, "gap")
    near = gap.quantile(0.1).clamp(min=1e-9)
    w = 1 / (1 + (gap / (2 * near)).square())
    return w / w.mean()
