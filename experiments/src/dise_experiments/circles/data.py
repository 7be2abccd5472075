"""Distributions in the plane to learn, by name. There is no data set: points are drawn, as many as are wanted.

All lie roughly within [−1.5, 1.5]², where the two circles are, so that one flow's settings (base of variance 0.1)
suit them all. A target that is a mixture has its components equally often, as far as n allows, in random order, as
scikit-learn's generators do; each point alone still has the target's density, whatever n. That makes the mean of
log p over n points vary less than that of n independent points.

Sources: scikit-learn's `make_circles` and `make_moons`; FFJORD's `lib/toy_data.py` (Grathwohl et al., 2019), whose
sizes are scaled to fit.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

NOISE, FACTOR = 0.06, 0.5  # of torchdiffeq's examples/cnf.py


def circles(n: int, generator: torch.Generator) -> Tensor:
    """[n, 2] two circles around 0 of radius 1 and 0.5, with normal noise of 0.06 in both coordinates.

    As `sklearn.datasets.make_circles(n, noise=0.06, factor=0.5)`: angles are equally spaced on each circle, which
    makes gradients less noisy. Here each circle is also turned at random, so that points are those of a density, with
    entropy 0.788 nats.
    """
    circle = _component(n, 2, generator)
    angle = torch.empty(n, device=generator.device)
    for i in range(2):
        rows = (circle == i).nonzero().flatten()
        angle[rows] = (_ranks(len(rows), generator) + _uniform(1, generator)) / max(len(rows), 1)
    return _polar(torch.where(circle == 0, 1.0, FACTOR), 2 * math.pi * angle) + NOISE * _normal(n, generator)


def moons(n: int, generator: torch.Generator) -> Tensor:
    """[n, 2] two interleaving half circles of radius 0.8, with normal noise of 0.08 in both coordinates.

    As `sklearn.datasets.make_moons(n, noise=0.1)` with drawn angles, moved to be symmetric about 0, and scaled by 0.8.
    """
    sign = torch.where(_component(n, 2, generator) == 0, 1.0, -1.0)
    half = _polar(torch.ones_like(sign), math.pi * _uniform(n, generator))
    # the lower moon (1 − cos, 1/2 − sin) is the upper one (cos, sin), mirrored at (1/2, 1/4)
    centre = half.new_tensor([0.5, 0.25])
    return 0.8 * (sign[:, None] * (half - centre) + 0.1 * _normal(n, generator))


def eight_gaussians(n: int, generator: torch.Generator) -> Tensor:
    """[n, 2] eight normal distributions of standard deviation 0.125, equally spaced on the circle of radius 1.

    FFJORD's `8gaussians`: radius 4 and standard deviation 0.5, scaled by 1/4.
    """
    angle = _component(n, 8, generator) * (math.pi / 4)
    return _polar(torch.ones_like(angle), angle) + 0.125 * _normal(n, generator)


def pinwheel(n: int, generator: torch.Generator) -> Tensor:
    """[n, 2] five arms that bend the more the further out they are; the mean radius is about 0.75.

    FFJORD's `pinwheel` (Johnson et al., 2016): an arm is normal with mean 1 and standard deviation 0.3 along it and
    0.1 across, turned by exp(along)/4; scaled by 0.75.
    """
    arm = _component(n, 5, generator)
    along, across = _normal(n, generator).unbind(1)
    along, across = 1 + 0.3 * along, 0.1 * across
    turn = arm * (2 * math.pi / 5) + along.exp() / 4
    cos, sin = turn.cos(), turn.sin()
    return 0.75 * torch.stack([along * cos + across * sin, across * cos - along * sin], dim=1)


def checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """[n, 2] uniform on every other of the 4 × 4 cells of [−1, 1]²; entropy log 2.

    FFJORD's `checkerboard`, scaled by 1/4.
    """
    cell = _component(n, 8, generator)
    column = cell // 2
    row = 2 * (cell % 2) + column % 2
    corner = torch.stack([column, row], dim=1)
    return (corner + _uniform((n, 2), generator)) / 2 - 1


TARGETS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "circles": circles,
    "moons": moons,
    "eight-gaussians": eight_gaussians,
    "pinwheel": pinwheel,
    "checkerboard": checkerboard,
}
"""Targets by name: (n, generator) → float32 [n, 2] on the generator's device, a function of the generator's state.

Errors: `ValueError` if n is negative.
"""


def _component(n: int, count: int, generator: torch.Generator) -> Tensor:
    """[n] in 0 to `count` - 1, each equally often as far as n allows; what is left over is not always the first."""
    if n < 0:
        raise ValueError(f"n: expected 0 points or more, got {n}")
    device = generator.device
    first = torch.randint(count, (), generator=generator, device=device)
    return (torch.randperm(n, generator=generator, device=device) + first) % count


def _ranks(n: int, generator: torch.Generator) -> Tensor:
    """[n] 0 to n − 1 in random order."""
    return torch.randperm(n, generator=generator, device=generator.device)


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    """[n, 2] points of polar coordinates."""
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def _uniform(shape: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)


def _normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn((n, 2), generator=generator, device=generator.device, dtype=torch.float32)
