"""ODE-Net and its baselines: a stem x → h(0), a block h(0) → h(1), a head h(1) → logits.

Source: Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, 2018, section 3, with the
layers of torchdiffeq's `examples/odenet_mnist.py` (convolutional stem).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dise.integrate import RK4, Dopri5, Solution, Step
from dise.nn import NeuralODE

CHANNELS, GROUPS, CLASSES = 64, 32, 10


class ImageClassifier(nn.Module):
    """Images [B, 1, 28, 28] in [0, 1] → logits [B, 10], in the three parts of the paper's Figure 1."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.block, self.head = _stem(), block, _head()

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 10]."""
        return self.head(self.block(self.stem(x)))

    def solve(self, x: Tensor, *, accumulate: Callable[[Step], Tensor] | None = None) -> tuple[Tensor, Solution | None]:
        """Logits [B, 10] and the block's solution; None for a model without an ODE."""
        if not isinstance(self.block, NeuralODE):
            return self(x), None
        h0 = self.stem(x)
        h0 = h0.to(torch.promote_types(h0.dtype, torch.float32))  # autocast halves it; f's products alone are halved
        solution = self.block.solve(h0, accumulate=accumulate)
        return self.head(solution.y), solution

    @property
    def dynamics(self) -> nn.Module:
        """The part with the regularized parameters θ: the vector field, or a ResNet's residual blocks."""
        return self.block.f if isinstance(self.block, NeuralODE) else self.block


def odenet() -> ImageClassifier:
    """ODE-Net: the block is dh/dt = f(t, h) on [0, 1], DOPRI at 1e-3; 208,266 parameters."""
    return ImageClassifier(NeuralODE(VectorField(), Dopri5(rtol=1e-3, atol=1e-3)))


def rknet() -> ImageClassifier:
    """RKNet: ODE-Net trained through one classical Runge–Kutta step; 208,266 parameters."""
    return ImageClassifier(NeuralODE(VectorField(), RK4(steps=1)))


def resnet() -> ImageClassifier:
    """ResNet: six pre-activation residual blocks instead of the ODE; 576,778 parameters."""
    return ImageClassifier(nn.Sequential(*(ResidualBlock() for _ in range(6))))


class VectorField(nn.Module):
    """f(t, h) of ODE-Net on h [n, 64, 6, 6]: two convolutions with t as an additional channel; 75,392 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (_norm() for _ in range(3))
        self.conv1, self.conv2 = (nn.Conv2d(CHANNELS + 1, CHANNELS, 3, padding=1) for _ in range(2))

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        """dh/dt [n, 64, 6, 6] at t [n, 1, 1, 1] or []."""
        time = torch.ones_like(h[:, :1]) * t
        h = self.conv1(torch.cat([time, F.relu(self.norm1(h))], dim=1))
        h = self.conv2(torch.cat([time, F.relu(self.norm2(h))], dim=1))
        return self.norm3(h)


class ResidualBlock(nn.Module):
    """Pre-activation residual block, without biases; 73,984 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(), _norm()
        self.conv1, self.conv2 = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        """[B, 64, H, W] → the same shape."""
        out = self.conv1(F.relu(self.norm1(h)))
        return h + self.conv2(F.relu(self.norm2(out)))


def _norm() -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, CHANNELS)


def _stem() -> nn.Sequential:
    """[B, 1, 28, 28] → [B, 64, 6, 6]."""
    return nn.Sequential(
        nn.Conv2d(1, CHANNELS, 3),
        _norm(),
        nn.ReLU(inplace=True),
        nn.Conv2d(CHANNELS, CHANNELS, 4, stride=2, padding=1),
        _norm(),
        nn.ReLU(inplace=True),
        nn.Conv2d(CHANNELS, CHANNELS, 4, stride=2, padding=1),
    )


def _head() -> nn.Sequential:
    """[B, 64, 6, 6] → [B, 10]."""
    return nn.Sequential(
        _norm(), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES)
    )
