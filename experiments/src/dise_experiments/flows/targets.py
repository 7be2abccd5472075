"""Distributions in the plane with mean 0 and variance 1 in each coordinate, like the noise that flows start from."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dise_experiments.circles.data import checkerboard, moons

CHECKERBOARD_SCALE = torch.tensor([3**-0.5, 3**-0.5])
"""Standard deviations of `circles.data.checkerboard`: those of a uniform distribution on [−1, 1]."""

MOONS_SCALE = 0.8 * torch.tensor([0.76, 0.5725 - 1 / math.pi]).sqrt()
"""Standard deviations of `circles.data.moons`: of cos a − 1/2 and sin a − 1/4 for a uniform on [0, π], and noise."""

TARGETS: Mapping[str, Callable[[int, torch.Generator], Tensor]] = {
    "checkerboard": lambda n, generator: checkerboard(n, generator) / CHECKERBOARD_SCALE,
    "moons": lambda n, generator: moons(n, generator) / MOONS_SCALE,
}
"""Targets by name: (n, generator) → float32 [n, 2]."""
