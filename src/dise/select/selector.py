"""Selectors that regress costs: the paper's auxiliary network v, and what it is trained by."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from math import nan

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dise.select.cost import Costs


class PooledNetwork(nn.Module):
    """Costs from h(0) and k1 = f(t0, h(0)), each pooled over space: as good as free beside a convolutional f.

    Reads the mean and root mean square of every channel, standardises them, and has one hidden layer.

    Args:
        channels: C of states [n, C, ...]; for states [n, C] nothing is pooled.
        candidates: K, number of scores.
        hidden: width of the hidden layer.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int, candidates: int, *, hidden: int = 32) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4 * channels))
        self.register_buffer("scale", torch.ones(4 * channels))
        self.layers = nn.Sequential(nn.Linear(4 * channels, hidden), nn.ReLU(), nn.Linear(hidden, candidates))

    @torch.no_grad()
    def standardise(self, h0: Tensor, k1: Tensor) -> None:
        """Learn the features' mean and scale from data [N, C, ...]."""
        features = _pooled(h0, k1)
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0).clamp(min=1e-6))

    def forward(self, h0: Tensor, k1: Tensor) -> Tensor:
        """[n, C, ...] twice → [n, K]."""
        return self.layers((_pooled(h0, k1) - self.mean) / self.scale)


def _pooled(h0: Tensor, k1: Tensor) -> Tensor:
    """[n, C, ...] twice → [n, 4·C] channels' means and root mean squares."""
    flat = [x.reshape(*x.shape[:2], -1) for x in (h0, k1)]
    return torch.cat([x.mean(2) for x in flat] + [x.square().mean(2).sqrt() for x in flat], dim=1)


class CostSelector(nn.Module):
    """Predicted costs of every candidate: a network and the standardisation of its targets.

    Made by `CostSelector.fit`, or by `CostSelector(network, candidates=K)` and `load_state_dict`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, *, candidates: int) -> None:
        super().__init__()
        self.network = network
        self.history = Fit(initial=nan)
        self.register_buffer("mean", torch.zeros(candidates))
        self.register_buffer("scale", torch.ones(candidates))

    def forward(self, h0: Tensor, k1: Tensor) -> Tensor:
        """Predicted costs [n, K] of samples with states and derivatives [n, ...] at t0."""
        return self.network(h0, k1) * self.scale + self.mean

    @classmethod
    def fit(
        cls,
        network: nn.Module,
        costs: Costs,
        *,
        validation: float = 0.2,
        max_epochs: int = 200,
        patience: int = 15,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        seed: int = 0,
        log: Callable[[str], None] = lambda line: None,
    ) -> "CostSelector":
        """Regress the costs (mean squared error of standardised targets), stopping early.

        Args:
            network: called as network(h0, k1) → [n, K]; trained in place. A `standardise(h0, k1)` that it has is
                called with the training part first.
            costs: what to predict, N samples.
            validation: part of the samples on which the epoch to keep is chosen.
            max_epochs, patience: give up after `patience` epochs without a better validation loss.
            batch_size, learning_rate, weight_decay: of AdamW.
            seed: of the split and the batches. It leaves torch's global generator alone.
            log: gets a line every ten epochs.

        Returns:
            the selector, in evaluation mode; `selector.history` tells how the fit went.

        Raises:
            ValueError: too few samples to split, or `validation` not in (0, 1).
        """
        if not 0 < validation < 1:
            raise ValueError(f"validation: expected a part between 0 and 1, got {validation!r}")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(costs), generator=generator)
        held = round(validation * len(costs))
        if not 0 < held < len(costs):
            raise ValueError(f"costs: expected enough samples to set {validation:.0%} apart, got {len(costs)}")
        test, train = order[:held], order[held:]
        selector = cls(network, candidates=costs.cost.shape[1]).to(costs.cost.device)
        selector._standardise(costs, train)
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
        fit = Fit(initial=selector._loss(costs, test))
        best = deepcopy(selector.state_dict())
        for epoch in range(max_epochs):
            shuffled = train[torch.randperm(len(train), generator=generator)]
            fit.training.append(selector._epoch(costs, shuffled, optimizer, batch_size))
            fit.validation.append(selector._loss(costs, test))
            if epoch % 10 == 0:
                log(f"epoch {epoch}: training {fit.training[-1]:.4f}, validation {fit.validation[-1]:.4f}")
            if fit.best_epoch == epoch:
                best = deepcopy(selector.state_dict())
            elif epoch - fit.best_epoch >= patience:
                break
        selector.load_state_dict(best)
        selector.history = fit
        return selector.eval()

    @torch.no_grad()
    def _standardise(self, costs: Costs, rows: Tensor) -> None:
        self.mean.copy_(costs.cost[rows].mean(0))
        # one scale for all candidates keeps the differences between their costs in proportion
        self.scale.copy_(costs.cost[rows].std().clamp(min=1e-6).expand_as(self.scale))
        standardise = getattr(self.network, "standardise", None)
        if standardise is not None:
            standardise(costs.h0[rows], costs.k1[rows])

    def _epoch(self, costs: Costs, rows: Tensor, optimizer: torch.optim.Optimizer, batch_size: int) -> float:
        self.train()
        total = 0.0
        for part in rows.split(batch_size):
            loss = self._mse(costs, part)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(part)
        return total / len(rows)

    @torch.no_grad()
    def _loss(self, costs: Costs, rows: Tensor) -> float:
        self.eval()
        return sum(float(self._mse(costs, part)) * len(part) for part in rows.split(512)) / len(rows)

    def _mse(self, costs: Costs, rows: Tensor) -> Tensor:
        prediction = self.network(costs.h0[rows], costs.k1[rows])
        return F.mse_loss(prediction, (costs.cost[rows] - self.mean) / self.scale)


@dataclass
class Fit:
    """How a fit went: mean squared errors of the costs, in units of their variance over all samples and candidates."""

    initial: float
    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """Index of the epoch whose weights were kept; -1 if none was better than the start."""
        if not self.validation or min(self.validation) >= self.initial:
            return -1
        return self.validation.index(min(self.validation))
