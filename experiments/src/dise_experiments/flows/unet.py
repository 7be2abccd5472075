"""A small U-Net of the time, an image and its label: the vector field of digits."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LABELS = 10
NULL_LABEL = LABELS  # "no label", for guidance
EMBEDDING, GROUPS = 128, 8


class UNet(nn.Module):
    """dx/dt of images [n, 1, 28, 28] with labels 0 to 9, or `NULL_LABEL`.

    Residual blocks at 28 × 28, 14 × 14 and 7 × 7 pixels; time and label enter each block as a shift and a scale.

    Args:
        channels: of the blocks at the three sizes.

    Source: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020, appendix B, without attention.
    """

    def __init__(self, channels: tuple[int, int, int] = (16, 48, 120)) -> None:
        super().__init__()
        a, b, c = channels
        self.time = nn.Sequential(nn.Linear(EMBEDDING // 2, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING))
        self.label = nn.Embedding(LABELS + 1, EMBEDDING)
        self.inlet = nn.Conv2d(1, a, 3, padding=1)
        self.down = nn.ModuleList([_Block(a, a), _Block(a, b), _Block(b, c)])
        self.middle = _Block(c, c)
        self.up = nn.ModuleList([_Block(c + c, b), _Block(b + b, a), _Block(a + a, a)])
        last = nn.Conv2d(a, 1, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.outlet = nn.Sequential(nn.GroupNorm(GROUPS, a), nn.SiLU(), last)

    def forward(self, t: Tensor, x: Tensor, label: Tensor) -> Tensor:
        """dx/dt [n, 1, 28, 28] at times t [n, 1, 1, 1] or [], of images x and their labels, int64 [n]."""
        embedding = F.silu(self.time(_waves(t.expand(len(x), 1, 1, 1).flatten())) + self.label(label))
        h, skips = self.inlet(x), []
        for i, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if i else h, embedding)
            skips.append(h)
        h = self.middle(h, embedding)
        for i, block in enumerate(self.up):
            h = F.interpolate(h, scale_factor=2.0) if i else h
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.outlet(h)


class _Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(GROUPS, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.modulation = nn.Linear(EMBEDDING, 2 * outputs)
        self.norm = nn.GroupNorm(GROUPS, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm(self.first(x)) * (1 + scale) + shift
        return self.skip(x) + self.second(F.silu(h))


def _waves(t: Tensor) -> Tensor:
    """[n, EMBEDDING / 2] cosines and sines of times [n], with frequencies from 1 to 100."""
    frequencies = torch.logspace(0, 2, EMBEDDING // 4, dtype=t.dtype, device=t.device)
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
