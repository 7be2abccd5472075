"""Encoded stays: the input of every policy, so that the encoder runs once."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dise_experiments.physionet.batches import TestBatches
from dise_experiments.physionet.model import LatentODE
from dise_experiments.physionet.presets import TEST_BATCH
from dise_experiments.physionet.records import Records


@dataclass(frozen=True, eq=False)
class Starts:
    """Starts z(0) and end times of B stays.

    Attributes:
        mean, deviation: [B, 20] mean and standard deviation of z(0).
        end: [B] time of the last observation.
    """

    mean: Tensor
    deviation: Tensor
    end: Tensor

    def __len__(self) -> int:
        return len(self.end)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.end.device

    def to(self, device: torch.device | str) -> "Starts":
        """A copy on another device."""
        return Starts(self.mean.to(device), self.deviation.to(device), self.end.to(device))


class FromStarts(nn.Module):
    """A Latent ODE without its encoder: starts → logits [B], from the mean of z(0)."""

    def __init__(self, model: LatentODE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Starts) -> Tensor:
        """Logits [B]."""
        return self.model.classify(x.mean, x.end)


@torch.no_grad()
def encoded(model: LatentODE, records: Records) -> list[tuple[Starts, Tensor]]:
    """Every record once, in order and in test batches, as (starts, labels [B])."""
    device = next(model.parameters()).device
    batches = []
    for x, labels in TestBatches(records, TEST_BATCH):
        mean, deviation = model.encoder(x.to(device))
        batches.append((Starts(mean, deviation, x.end.to(device)), labels))
    return batches
