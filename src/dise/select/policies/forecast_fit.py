"""Ridge regression of the reference's logits on a candidate's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dise.select.model.logits import two_classes
from dise.select.policies.confidence import confidence

# λ of the ridge regression, in units of the features' variance; leave-one-out errors choose
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MOST_PAIRED = 32  # classes whose logits are multiplied in pairs; of more, only their squares are looked at


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


def _closeness(logits: Tensor) -> Tensor:
    """[N] what samples count, on average 1: see `expect`."""
    gap = confidence(logits, "gap")
    near = gap.quantile(0.1).clamp(min=1e-9)
    w = 1 / (1 + (gap / (2 * near)).square())
    return w / w.mean()
