"""Cheap networks for selectors: hidden layers on fixed features of h(0) and k1 = f(t0, h(0))."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dise.integrate.annotations import Float, Inexact, Shaped
from dise.integrate.argument_types import checked_arguments
from dise.integrate.value import check_above, check_sizes
from dise.select.model.logits import log_probabilities
from dise.select.model.states import by_channel


@checked_arguments
class FeatureNetwork(nn.Module):
    """Network of fixed features, which are standardised, and hidden layers.

    Args:
        size: number of features.
        candidates: K, number of scores.
        hidden: width of a hidden layer.
        depth: number of hidden layers.
    """

    mean: Tensor
    scale: Tensor
    settings: dict[str, Any]  # arguments that construct an equal network, except a head
    conditional: bool  # whether conditions are among the arguments

    def __init__(self, size: int, candidates: int, *, hidden: int = 32, depth: int = 1) -> None:
        check_sizes(size=size, candidates=candidates, hidden=hidden, depth=depth)
        super().__init__()
        self.conditional = False
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        widths = [size, *[hidden] * depth]
        inner = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*inner, nn.Linear(hidden, candidates))

    @abstractmethod
    def features(self, h0: Tensor, k1: Tensor, *conditions: Tensor) -> Tensor:
        """h0, k1 and conditions (if `conditional`) [n, ...] → features [n, size]."""

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Set the features' mean and scale from samples [N, size]."""
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0).clamp(min=1e-6))

    def score(self, features: Tensor) -> Tensor:
        """Features [n, size] → scores [n, K]."""
        scores: Tensor = self.layers((features.to(self.mean.dtype) - self.mean) / self.scale)
        return scores

    def forward(
        self, h0: Inexact[Tensor, "n ..."], k1: Inexact[Tensor, "n ..."], *conditions: Shaped[Tensor, "n ..."]
    ) -> Float[Tensor, "n K"]:
        """h0, k1 and conditions (if `conditional`) [n, ...] → scores [n, K]."""
        return self.score(self.features(h0, k1, *conditions))


@checked_arguments
class PooledNetwork(FeatureNetwork):
    """Network whose features are the spatial mean and root mean square of every channel of h(0), k1 and conditions.

    Args:
        channels: C of states [n, C, ...], twice that of complex ones; states [n, C] are not pooled.
        candidates: K, number of scores.
        hidden: width of the hidden layer.
        derivative: False leaves k1 out, as the paper's networks do. k1 costs no extra evaluation of f.
        condition_channels: P, channels of all conditions together; 0: the network is not given any. Conditions
            [n, P_i, ...] are pooled like states, conditions [n] have one channel.
    """

    def __init__(
        self, channels: int, candidates: int, *, hidden: int = 32, derivative: bool = True, condition_channels: int = 0
    ) -> None:
        check_sizes(channels=channels)
        if condition_channels < 0:
            raise ValueError(f"condition_channels: expected a number of at least 0, got {condition_channels}")
        number = (2 if derivative else 1) * channels + condition_channels
        super().__init__(2 * number, candidates, hidden=hidden)
        self.derivative, self.conditional = derivative, condition_channels > 0
        self.settings = {
            "channels": channels,
            "candidates": candidates,
            "hidden": hidden,
            "derivative": derivative,
            "condition_channels": condition_channels,
        }

    def features(self, h0: Tensor, k1: Tensor, *conditions: Tensor) -> Tensor:
        """h0, k1 [n, C, ...] and conditions → features [n, 4·C + 2·P], or [n, 2·C + 2·P] without the derivative.

        Raises:
            ValueError: another number of channels, e.g. since a solve has no `sample_args`.
        """
        given = (h0, k1, *conditions) if self.derivative else (h0, *conditions)
        flat = [by_channel(x).to(self.mean.dtype) for x in given]
        found = [x.shape[1] for x in flat]
        if 2 * sum(found) != len(self.mean):
            names = ("h0", "k1") if self.derivative else ("h0",)
            raise ValueError(
                f"{', '.join(names)}, conditions: expected {self.settings['channels']} channels in each of "
                f"{' and '.join(names)}, and {self.settings['condition_channels']} in all conditions, got {found}"
            )
        return torch.cat([x.mean(2) for x in flat] + [x.square().mean(2).sqrt() for x in flat], dim=1)


@checked_arguments
class StateNetwork(FeatureNetwork):
    """Network of all coordinates of h(0), k1 and the conditions, for states of which each coordinate matters.

    Tensors of more than `LARGE` numbers per sample that have places, such as images, are averaged over PATCHES ×
    PATCHES parts of them, as are their squares.

    Args:
        size: number of features.
        candidates: K, number of scores.
        hidden: width of a hidden layer.
        depth: number of hidden layers.
        classes: for each condition the number of its classes if it consists of labels [n], 0, 1, …; else None.
    """

    LARGE, PATCHES = 64, 7

    def __init__(
        self,
        size: int,
        candidates: int,
        *,
        hidden: int = 64,
        depth: int = 2,
        classes: Sequence[int | None] = (),
    ) -> None:
        super().__init__(size, candidates, hidden=hidden, depth=depth)
        self.conditional, self.classes = bool(classes), tuple(classes)
        self.settings = {"size": size, "candidates": candidates, "hidden": hidden, "depth": depth, "classes": classes}

    @classmethod
    @checked_arguments
    def like(
        cls, h0: Tensor, conditions: Sequence[Tensor], candidates: int, *, hidden: int = 64, depth: int = 2
    ) -> "StateNetwork":
        """The network for states and conditions like those of a data set [N, ...]."""
        classes = [
            int(c.max()) + 1 if c.ndim == 1 and not (c.is_floating_point() or c.is_complex()) else None
            for c in conditions
        ]
        parts = _state_features((h0[:1], h0[:1]), [c[:1] for c in conditions], classes)
        return cls(sum(x.shape[1] for x in parts), candidates, hidden=hidden, depth=depth, classes=classes)

    def features(self, h0: Tensor, k1: Tensor, *conditions: Tensor) -> Tensor:
        """h0, k1 and conditions [n, ...] → features [n, size].

        Raises:
            ValueError: states or conditions of other shapes than those of the fit.
        """
        if len(conditions) != len(self.classes):
            raise ValueError(f"conditions: expected {len(self.classes)}, got {len(conditions)}")
        parts = _state_features((h0, k1), conditions, self.classes)
        found = torch.cat([x.to(self.mean.dtype) for x in parts], dim=1)
        if found.shape[1] != len(self.mean):
            raise ValueError(
                f"h0, k1, conditions: expected {len(self.mean)} features, got {found.shape[1]}, from states of shape "
                f"{list(h0.shape)} and {len(conditions)} conditions"
            )
        return found


def _state_features(
    states: Sequence[Tensor], conditions: Sequence[Tensor], classes: Sequence[int | None]
) -> list[Tensor]:
    """Features [n, F] of each state, and of each condition with its number of classes."""
    given = [_coordinates(x) for x in states]
    return given + [
        _coordinates(c) if number is None else _one_hot(c, number)
        for c, number in zip(conditions, classes, strict=True)
    ]


def _coordinates(x: Tensor) -> Tensor:
    """[n, F] coordinates of x [n, ...], or means and root mean squares of the parts of an image."""
    if x.is_complex():
        x = torch.view_as_real(x)
    number = math.prod(x.shape[1:])
    if x.ndim != 4 or number <= StateNetwork.LARGE:
        return x.reshape(x.shape[0], number)  # len would fix the size of a traced batch
    pool = torch.nn.functional.adaptive_avg_pool2d
    means, squares = pool(x, StateNetwork.PATCHES), pool(x.square(), StateNetwork.PATCHES)
    return torch.cat([means.flatten(1), squares.sqrt().flatten(1)], dim=1)


def _one_hot(labels: Tensor, number: int) -> Tensor:
    """[n, number] with 1 at the label; labels that were not seen have none."""
    return labels.unsqueeze(1) == torch.arange(number, device=labels.device)


@checked_arguments
class ConfidenceNetwork(FeatureNetwork):
    """Network whose features are the model's confidence in the answer of one Euler step, head(h(0) + span·k1).

    It needs one evaluation of the head and none of f, because k1 is evaluated in any case. The features are the three
    largest log-probabilities and the entropy, which early-exit networks threshold, e.g. BranchyNet (Teerapittayanon,
    McDanel, Kung, 2016).

    Args:
        head: h(t1) [n, ...] → logits [n, C ≥ 2], or one logit per sample, [n] or [n, 1], of a yes-or-no question, which
            is C = 2. The network keeps a copy, which is not trained.
        candidates: K, number of scores.
        span: t1 − t0.
        classes: C.
        hidden: width of the hidden layer.
    """

    TOP = 3

    def __init__(self, head: nn.Module, candidates: int, *, classes: int, span: float = 1.0, hidden: int = 16) -> None:
        check_sizes(classes=classes)
        check_above("span", span, 0)
        super().__init__(min(self.TOP, classes) + 1, candidates, hidden=hidden)
        self.settings = {"candidates": candidates, "classes": classes, "span": span, "hidden": hidden}
        self.head, self.span = deepcopy(head).eval().requires_grad_(False), span
        self._original = (head,)  # a tuple, so that the head is not registered as a submodule a second time

    @property
    def original(self) -> nn.Module:
        """The original head."""
        return self._original[0]

    def features(self, h0: Tensor, k1: Tensor, *conditions: Tensor) -> Tensor:
        """h0, k1 [n, ...] → features [n, 4], or [n, 3] for two classes."""
        log_p = log_probabilities(self.head(torch.add(h0, k1, alpha=self.span)))
        entropy = -(log_p.exp() * log_p).sum(1, keepdim=True)
        return torch.cat([log_p.topk(min(self.TOP, log_p.shape[1])).values, entropy], dim=1)

    def train(self, mode: bool = True) -> "ConfidenceNetwork":
        """Set the mode of the network; the head stays in evaluation mode."""
        super().train(mode)
        self.head.eval()
        return self
