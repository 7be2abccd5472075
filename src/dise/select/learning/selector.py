"""Selectors that predict costs: the paper's auxiliary network v and its fit."""

from collections.abc import Callable
from copy import deepcopy
from math import nan
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dise.integrate.annotations import Float, Inexact, Shaped
from dise.integrate.argument_types import checked_arguments
from dise.integrate.value import check_from_zero, check_sizes
from dise.select.judging.baselines import closed_gap_fraction
from dise.select.judging.costs import Costs
from dise.select.learning.fit import FitData, FitHistory
from dise.select.learning.networks import FeatureNetwork
from dise.select.policies.dynamic import cheapest_candidate, is_conditional


@checked_arguments
class CostSelector(nn.Module):
    """Selector that predicts the cost of every candidate by a network with standardised targets.

    Construct it by `CostSelector.fit`, or by `CostSelector(network, candidates=K)` and `load_state_dict`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, *, candidates: int) -> None:
        check_sizes(candidates=candidates)
        super().__init__()
        self.network = network
        self.history = FitHistory(initial_loss=nan)
        self.register_buffer("mean", torch.zeros(candidates))
        self.register_buffer("scale", torch.ones(candidates))

    @property
    def conditional(self) -> bool:
        """Whether the network is given conditions, as its own attribute `conditional` says."""
        return is_conditional(self.network)

    def forward(
        self, h0: Inexact[Tensor, "n ..."], k1: Inexact[Tensor, "n ..."], *conditions: Shaped[Tensor, "n ..."]
    ) -> Float[Tensor, "n K"]:
        """Predicted costs [n, K] from states h0 and derivatives k1 [n, ...] at t0, and conditions if asked for."""
        return self._scores(self.network(h0, k1, *conditions))

    def score_features(self, features: Tensor) -> Tensor:
        """Predicted costs [n, K] from features [n, F] of the network, which is a `FeatureNetwork`."""
        return self._scores(cast(FeatureNetwork, self.network).score(features))

    def _scores(self, prediction: Tensor) -> Tensor:
        """[n, K] scores from outputs of the network."""
        return prediction * self.scale + self.mean

    @classmethod
    @checked_arguments
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
        """Fit the network to the costs (mean squared error of standardised targets), with early stopping.

        Samples whose features or costs are not finite are left out: `selector.history.left_out` is their number.

        Args:
            network: called as network(h0, k1) → [n, K], or as network(h0, k1, *conditions) if it has an attribute
                `conditional = True`; trained in place. Its method `standardise`, if it has one, is called with the same
                arguments of the training part first. Features of a `FeatureNetwork` are computed only once.
            costs: targets, on N samples.
            validation: share of the samples that are set apart to choose the epoch whose weights are kept.
            max_epochs, patience: stop after `max_epochs`, or after `patience` epochs without a lower validation loss.
            batch_size, learning_rate, weight_decay: of AdamW.
            seed: of the split and the batches; torch's global generator is not used.
            log: called with a line every ten epochs.
            settings: further arguments of the selector's class.

        Returns:
            the selector, in evaluation mode; the course of the fit is in `selector.history`.

        Raises:
            ValueError: too few samples to split (with finite features), `validation` not in (0, 1), or a network
                without an output per sample and candidate.
        """
        if not 0 < validation < 1:
            raise ValueError(f"validation: expected a share between 0 and 1, got {validation!r}")
        check_sizes(max_epochs=max_epochs, patience=patience, batch_size=batch_size)
        check_from_zero("learning_rate", learning_rate)
        check_from_zero("weight_decay", weight_decay)
        _held_out(len(costs), validation)
        generator = torch.Generator().manual_seed(int(seed))
        selector = cls(network, candidates=len(costs.candidates), **settings).to(costs.nfe.device)
        data = FitData.of(network, costs, selector._targets(costs))
        train, test = _split(data, validation, generator)
        selector._standardise(data.take(train))
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
        left_out = len(costs) - len(train) - len(test)
        history = FitHistory(initial_loss=selector._loss(data.take(test)), left_out=left_out)
        best = deepcopy(selector.state_dict())
        for epoch in range(max_epochs):
            shuffled = train[torch.randperm(len(train), generator=generator)]
            training = selector._epoch(data.take(shuffled), optimizer, batch_size)
            history.append(training, selector._loss(data.take(test)), log)
            if history.best_epoch == epoch:
                best = deepcopy(selector.state_dict())
            elif epoch - history.best_epoch >= patience:
                break
        selector.load_state_dict(best)
        selector.history = history
        selector.eval()._finish(data.take(test), costs.take(test))
        return selector

    def _targets(self, costs: Costs) -> Tensor:
        """[N, K] targets of the network."""
        return costs.cost

    @torch.no_grad()
    def _finish(self, data: FitData, costs: Costs) -> None:
        """Evaluate the fit on the validation part."""
        choice = cheapest_candidate(self._scores(data.predictions()))
        self.history.closed_gap_fraction = closed_gap_fraction(self._actual_costs(costs), choice)

    def _actual_costs(self, costs: Costs) -> Tensor:
        """[N, K] actual costs of each choice, in which the gap to the oracle is measured."""
        return costs.cost

    @torch.no_grad()
    def _standardise(self, data: FitData) -> None:
        self.mean.copy_(data.target.mean(0))
        # a common scale keeps the differences between the candidates' costs in proportion
        self.scale.copy_(data.target.std().clamp(min=1e-6).expand_as(self.scale))
        self._standardise_inputs(data)

    def _standardise_inputs(self, data: FitData) -> None:
        standardise = getattr(self.network, "standardise", None)
        if standardise is not None:
            standardise(*data.inputs)

    @torch.enable_grad()
    def _epoch(self, data: FitData, optimizer: torch.optim.Optimizer, batch_size: int) -> float:
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
    def _loss(self, data: FitData) -> float:
        self.eval()
        return sum(float(self._error(part)) * len(part.target) for part in data.split(512)) / len(data.target)

    def _error(self, data: FitData) -> Tensor:
        return F.mse_loss(data.prediction(), (data.target - self.mean) / self.scale)


def _split(data: FitData, validation: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows set apart, in random order, without the samples that are not finite."""
    usable = data.finite().nonzero().flatten()
    order = usable[torch.randperm(len(usable), generator=generator).to(usable.device)]
    held = _held_out(len(order), validation)
    return order[held:], order[:held]


def _held_out(number: int, validation: float) -> int:
    """Number of samples that are set apart, of those with finite features and costs."""
    held = round(validation * number)
    if not 0 < held < number:
        raise ValueError(
            f"costs: expected enough samples to set {validation:.0%} apart, got {number} with finite features and costs"
        )
    return held
