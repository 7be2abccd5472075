"""Vector fields of points in a few dimensions: a network of the time, the state and the condition."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

FREQUENCIES = 3


class FieldNetwork(nn.Module):
    """dx/dt = network(x, t, cos and sin of πt, 2πt, 3πt, standardized condition): hidden layers of SiLU units.

    Args:
        dim: of the state, D.
        condition: number of the condition's coordinates, C; 0: unconditional.
        hidden: units of a hidden layer.
        depth: number of hidden layers.
    """

    location: Tensor
    scale: Tensor

    def __init__(self, dim: int, condition: int = 0, *, hidden: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("location", torch.zeros(condition))
        self.register_buffer("scale", torch.ones(condition))
        sizes = [dim + 1 + 2 * FREQUENCIES + condition, *[hidden] * depth]
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.network = nn.Sequential(*layers, nn.Linear(hidden, dim))

    def forward(self, t: Tensor, x: Tensor, *condition: Tensor) -> Tensor:
        """dx/dt [n, D] at times t [n, 1] or [] and states x [n, D], under a condition [n, C] if there is one."""
        t = t.expand(len(x), 1)
        angles = t * (math.pi * torch.arange(1, FREQUENCIES + 1, dtype=x.dtype, device=x.device))
        known = [(c - self.location) / self.scale for c in condition]
        return self.network(torch.cat([x, t, angles.cos(), angles.sin(), *known], dim=1))

    @torch.no_grad()
    def standardize(self, condition: Tensor) -> None:
        """Take the mean and standard deviation of conditions [N, C], by which later ones are standardized.

        Coordinates that do not vary are only centred.
        """
        deviation = condition.std(0)
        self.location.copy_(condition.mean(0))
        self.scale.copy_(torch.where(deviation > 0, deviation, 1.0))
