"""Selectors that regress costs: the paper's auxiliary network v, and what it is trained by."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from math import nan
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dise.select.judging.baselines import closed_gap
from dise.select.judging.costs import Costs
from dise.select.learning.networks import FeatureNetwork
from dise.select.policies.dynamic import cheapest


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
        return self._scores(self.network(h0, k1))

    def of_features(self, features: Tensor) -> Tensor:
        """Predicted costs [n, K] from features [n, F] that the network, a `FeatureNetwork`, would compute itself."""
        return self._scores(cast(FeatureNetwork, self.network).score(features))

    def _scores(self, answer: Tensor) -> Tensor:
        """[n, K] scores from what the network says."""
        return answer * self.scale + self.mean

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
        **settings: Any,
    ) -> Self:
        """Regress the costs (mean squared error of standardised targets), stopping early.

        Args:
            network: called as network(h0, k1) → [n, K]; trained in place. A `standardise(h0, k1)` that it has is
                called with the training part first. Of a `FeatureNetwork` the features are computed only once.
            costs: what to predict, N samples.
            validation: part of the samples on which the epoch to keep is chosen.
            max_epochs, patience: give up after `patience` epochs without a better validation loss.
            batch_size, learning_rate, weight_decay: of AdamW.
            seed: of the split and the batches. It leaves torch's global generator alone.
            log: gets a line every ten epochs.
            settings: further arguments of the selector, if its class has any.

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
        selector = cls(network, candidates=len(costs.candidates), **settings).to(costs.nfe.device)
        data = _Data.of(network, costs, selector._prepare(costs))
        selector._standardise(data.take(train))
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
        fit = Fit(initial=selector._loss(data.take(test)))
        best = deepcopy(selector.state_dict())
        for epoch in range(max_epochs):
            shuffled = train[torch.randperm(len(train), generator=generator)]
            fit.training.append(selector._epoch(data.take(shuffled), optimizer, batch_size))
            fit.validation.append(selector._loss(data.take(test)))
            if epoch % 10 == 0:
                log(f"epoch {epoch}: training {fit.training[-1]:.4f}, validation {fit.validation[-1]:.4f}")
            if fit.best_epoch == epoch:
                best = deepcopy(selector.state_dict())
            elif epoch - fit.best_epoch >= patience:
                break
        selector.load_state_dict(best)
        selector.history = fit
        selector.eval()._conclude(data.take(test), costs.take(test))
        return selector

    def _prepare(self, costs: Costs) -> Tensor:
        """[N, K] what the network is to say."""
        return costs.cost

    @torch.no_grad()
    def _conclude(self, data: "_Data", costs: Costs) -> None:
        """What there is to say of the fit on the samples that were set apart."""
        answer = torch.cat([part.predict(*part.inputs) for part in data.split(512)])
        self.history.closed_gap = closed_gap(self._realised(costs), cheapest(self._scores(answer)))

    def _realised(self, costs: Costs) -> Tensor:
        """[N, K] what a choice turns out to cost, by which the gap is measured."""
        return costs.cost

    @torch.no_grad()
    def _standardise(self, data: "_Data") -> None:
        self.mean.copy_(data.target.mean(0))
        # one scale for all candidates keeps the differences between their costs in proportion
        self.scale.copy_(data.target.std().clamp(min=1e-6).expand_as(self.scale))
        self._standardise_inputs(data)

    def _standardise_inputs(self, data: "_Data") -> None:
        standardise = getattr(self.network, "standardise", None)
        if standardise is not None:
            standardise(*data.inputs)

    def _epoch(self, data: "_Data", optimizer: torch.optim.Optimizer, batch_size: int) -> float:
        self.train()
        total = 0.0
        for part in data.split(batch_size):
            loss = self._error(part)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(part.target)
        return total / len(data.target)

    @torch.no_grad()
    def _loss(self, data: "_Data") -> float:
        self.eval()
        return sum(float(self._error(part)) * len(part.target) for part in data.split(512)) / len(data.target)

    def _error(self, data: "_Data") -> Tensor:
        return F.mse_loss(data.predict(*data.inputs), (data.target - self.mean) / self.scale)


class _Data(NamedTuple):
    """What a fit looks at: the network's inputs [N, ...] and what it is to say [N, K]."""

    predict: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    target: Tensor

    @classmethod
    def of(cls, network: nn.Module, costs: Costs, target: Tensor) -> "_Data":
        if not isinstance(network, FeatureNetwork):
            return cls(network, (costs.h0, costs.k1), target)
        network.eval()
        with torch.no_grad():
            return cls(network.score, (torch.cat([network.features(*pair) for pair in costs.states()]),), target)

    def take(self, rows: Tensor) -> "_Data":
        return self._replace(inputs=tuple(x[rows] for x in self.inputs), target=self.target[rows])

    def split(self, size: int) -> Iterator["_Data"]:
        for start in range(0, len(self.target), size):
            rows = slice(start, start + size)
            yield self._replace(inputs=tuple(x[rows] for x in self.inputs), target=self.target[rows])


@dataclass
class Fit:
    """How a fit went.

    Attributes:
        initial, training, validation: losses before the first epoch and of each: of a `CostSelector` mean squared
            errors of the costs, in units of their variance over all samples and candidates; of an `AdequacySelector`
            cross-entropies in nats.
        closed_gap: on the validation part, which also chose the epoch (see `dise.select.closed_gap`); None where
            there is nothing to gain.
        calibration_error: of an `AdequacySelector`, likewise.
    """

    initial: float
    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    closed_gap: float | None = None
    calibration_error: float | None = None

    @property
    def best_epoch(self) -> int:
        """Index of the epoch whose weights were kept; -1 if none was better than the start."""
        if not self.validation or min(self.validation) >= self.initial:
            return -1
        return self.validation.index(min(self.validation))
