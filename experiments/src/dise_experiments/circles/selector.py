"""Selector networks for flows: the paper's Table 7, and one that is independent of the order of the points."""

import torch
from torch import Tensor, nn

SET = 32  # points with a common integrator in the paper


class PaperNetwork(nn.Module):
    """Table 7: linear 3 → 1 for each of 32 points (x, y, log-density), then 32 → 64 → 32 → K with tanh between.

    One decision for 32 points, which depends on their order.

    Args:
        candidates: K.
        last_tanh: tanh after the last layer too, as in the paper. Costs reach M^α = 1.23, which tanh cannot, so by
            default the last layer is linear; `CostSelector` standardises the targets in both cases.
    """

    def __init__(self, candidates: int, *, last_tanh: bool = False) -> None:
        super().__init__()
        self.point = nn.Linear(3, 1)
        hidden = [nn.Linear(SET, 2 * SET), nn.Tanh(), nn.Linear(2 * SET, SET), nn.Tanh()]
        self.layers = nn.Sequential(*hidden, nn.Linear(SET, candidates), *([nn.Tanh()] if last_tanh else []))

    def forward(self, h0: Tensor, k1: Tensor) -> Tensor:
        """h0 [n, 32, 3] → [n, K]; k1 is not used."""
        return self.layers(self.point(h0).squeeze(-1))


class SetNetwork(nn.Module):
    """Costs from a set of points and their derivatives, for any number and order of points.

    Each point's (x, y, dx/dt, dy/dt, d log p/dt), standardised, goes through one hidden layer, followed by the
    mean and the maximum over the points. Source: Zaheer et al., Deep Sets, 2017. A set may be one point: states [n, 3].
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, candidates: int, *, hidden: int = 32) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("scale", torch.ones(5))
        self.point = nn.Sequential(nn.Linear(5, hidden), nn.Tanh())
        self.set = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.Tanh(), nn.Linear(hidden, candidates))

    @torch.no_grad()
    def standardise(self, h0: Tensor, k1: Tensor) -> None:
        """Set the features' mean and scale to those of data [N, P, 3] or [N, 3]."""
        features = _features(h0, k1).flatten(0, 1)
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0).clamp(min=1e-6))

    def forward(self, h0: Tensor, k1: Tensor) -> Tensor:
        """[n, P, 3] or [n, 3], twice → [n, K]."""
        points = self.point((_features(h0, k1) - self.mean) / self.scale)
        return self.set(torch.cat([points.mean(1), points.amax(1)], dim=1))


def _features(h0: Tensor, k1: Tensor) -> Tensor:
    """[n, P, 5]; without the log-density at the start, which is 0."""
    features = torch.cat([h0[..., :2], k1], dim=-1)
    return features if features.ndim == 3 else features.unsqueeze(1)
