"""Data and history of a selector's fit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from dise.select.judging.costs import Costs
from dise.select.learning.networks import FeatureNetwork


class FitData(NamedTuple):
    """Inputs [N, ...] of a selector's network, its targets [N, K], and the function from the ones to the others."""

    predict: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    target: Tensor

    @classmethod
    def of(cls, network: nn.Module, costs: Costs, target: Tensor) -> Self:
        """Data of a network; the features of a `FeatureNetwork` are computed once, here."""
        if not isinstance(network, FeatureNetwork):
            return cls(network, costs.inputs(network), target)
        network.eval()
        with torch.no_grad():
            return cls(
                network.score, (torch.cat([network.features(*x) for x in costs.input_batches(network)]),), target
            )

    def finite(self) -> Tensor:
        """[N] bool, whether all inputs and targets of a sample are finite; only those can be fitted to."""
        parts = (*self.inputs, self.target)
        return torch.stack([x.isfinite().reshape(len(x), -1).all(1) for x in parts]).all(0)

    def take(self, rows: Tensor) -> Self:
        """Data of some of the samples, given by their indices."""
        return self._replace(inputs=tuple(x[rows] for x in self.inputs), target=self.target[rows])

    def split(self, size: int) -> Iterator[Self]:
        """Batches of `size` samples."""
        for start in range(0, len(self.target), size):
            rows = slice(start, start + size)
            yield self._replace(inputs=tuple(x[rows] for x in self.inputs), target=self.target[rows])

    def prediction(self) -> Tensor:
        """[N, K] outputs of the network.

        Raises:
            ValueError: no output per sample and candidate.
        """
        output = self.predict(*self.inputs)
        if output.shape != self.target.shape:
            expected, got = tuple(self.target.shape), tuple(output.shape)
            raise ValueError(f"network: expected outputs {expected}, one per sample and candidate, got {got}")
        return output

    @torch.no_grad()
    def predictions(self) -> Tensor:
        """[N, K] outputs of the network, without gradients."""
        return torch.cat([batch.prediction() for batch in self.split(512)])


@dataclass
class FitHistory:
    """History of a selector's fit.

    Losses of a `CostSelector` are mean squared errors of the costs, in units of their variance over all samples and
    candidates; those of an `AdequacySelector` are cross-entropies in nats.

    Attributes:
        initial_loss: validation loss before the first epoch.
        training_losses: training loss of each epoch.
        validation_losses: validation loss after each epoch.
        closed_gap_fraction: see `dise.select.closed_gap_fraction`; measured on the validation part, which the epoch was
            chosen on too. None if the oracle gains nothing.
        calibration_error: of an `AdequacySelector`, on the validation part too.
        left_out: number of samples that the fit left out, since the features or targets are not finite.
    """

    initial_loss: float
    training_losses: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    closed_gap_fraction: float | None = None
    calibration_error: float | None = None
    left_out: int = 0

    def append(self, training: float, validation: float, log: Callable[[str], None]) -> None:
        """Add the losses of an epoch; `log` is called with a line every ten epochs."""
        epoch = len(self.training_losses)
        self.training_losses.append(training)
        self.validation_losses.append(validation)
        if epoch % 10 == 0:
            log(f"epoch {epoch}: training {training:.4f}, validation {validation:.4f}")

    @property
    def best_epoch(self) -> int:
        """Index of the epoch whose weights were kept; −1 if no epoch was better than the initial weights."""
        if not self.validation_losses or min(self.validation_losses) >= self.initial_loss:
            return -1
        return self.validation_losses.index(min(self.validation_losses))
