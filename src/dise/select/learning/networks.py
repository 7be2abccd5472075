"""Networks for selectors that cost next to nothing: a hidden layer on features of h(0) and k1 = f(t0, h(0))."""

from abc import abstractmethod
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from dise.select.model.logits import two_classes


class FeatureNetwork(nn.Module):
    """Costs from features that are not learnt: standardised, then one hidden layer.

    Args:
        size: number of features.
        candidates: K, number of scores.
        hidden: width of the hidden layer.
    """

    mean: Tensor
    scale: Tensor
    settings: dict[str, Any]  # what another one like it is made with, a head apart

    def __init__(self, size: int, candidates: int, *, hidden: int = 32) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.layers = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, candidates))

    @abstractmethod
    def features(self, h0: Tensor, k1: Tensor) -> Tensor:
        """[n, ...] twice → [n, size]."""

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Learn the features' mean and scale from data [N, size]."""
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0).clamp(min=1e-6))

    def score(self, features: Tensor) -> Tensor:
        """[n, size] → [n, K]."""
        return self.layers((features - self.mean) / self.scale)

    def forward(self, h0: Tensor, k1: Tensor) -> Tensor:
        """[n, ...] twice → [n, K]."""
        return self.score(self.features(h0, k1))


class PooledNetwork(FeatureNetwork):
    """Features are the mean and root mean square over space of every channel of h(0) and k1.

    Args:
        channels: C of states [n, C, ...]; for states [n, C] nothing is pooled.
        candidates: K, number of scores.
        hidden: width of the hidden layer.
        derivative: False leaves k1 out, as the paper's networks do; it costs nothing to look at.
    """

    def __init__(self, channels: int, candidates: int, *, hidden: int = 32, derivative: bool = True) -> None:
        super().__init__((4 if derivative else 2) * channels, candidates, hidden=hidden)
        self.derivative = derivative
        self.settings = {"channels": channels, "candidates": candidates, "hidden": hidden, "derivative": derivative}

    def features(self, h0: Tensor, k1: Tensor) -> Tensor:
        """[n, C, ...] twice → [n, 4·C], or 2·C without the derivative."""
        flat = [x.reshape(*x.shape[:2], -1) for x in ((h0, k1) if self.derivative else (h0,))]
        return torch.cat([x.mean(2) for x in flat] + [x.square().mean(2).sqrt() for x in flat], dim=1)


class ConfidenceNetwork(FeatureNetwork):
    """Features are how sure the model is of the answer that one Euler step gives, head(h(0) + span·k1).

    It needs no evaluation of f, since k1 is evaluated anyway, but one of the head. The features are the three largest
    log-probabilities and the entropy: an early exit's criteria, from which costs are learnt here. Compare BranchyNet
    (Teerapittayanon, McDanel, Kung, 2016).

    Args:
        head: h(t1) [n, ...] → logits [n, C ≥ 2], or one logit, [n] or [n, 1], of yes or no, which is C = 2; a copy of
            it is kept, and not trained.
        candidates: K, number of scores.
        span: t1 − t0.
        classes: C.
        hidden: width of the hidden layer.
    """

    TOP = 3

    def __init__(self, head: nn.Module, candidates: int, *, classes: int, span: float = 1.0, hidden: int = 16) -> None:
        super().__init__(min(self.TOP, classes) + 1, candidates, hidden=hidden)
        self.settings = {"candidates": candidates, "classes": classes, "span": span, "hidden": hidden}
        self.head, self.span = deepcopy(head).eval().requires_grad_(False), span
        self._original = (head,)  # in a tuple it is not registered a second time

    @property
    def original(self) -> nn.Module:
        """The head that was copied."""
        return self._original[0]

    def features(self, h0: Tensor, k1: Tensor) -> Tensor:
        """[n, ...] twice → [n, 4]."""
        log_p = two_classes(self.head(torch.add(h0, k1, alpha=self.span))).log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1, keepdim=True)
        return torch.cat([log_p.topk(min(self.TOP, log_p.shape[1])).values, entropy], dim=1)

    def train(self, mode: bool = True) -> "ConfidenceNetwork":
        """The head stays in evaluation mode."""
        super().train(mode)
        self.head.eval()
        return self
