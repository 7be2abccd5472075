"""Target distributions in the plane, by name. There is no data set: any number of points can be drawn.

All are roughly within [−1.5, 1.5]², like the two circles, so the same settings of a flow (base of variance 0.1) suit
all. The components of a mixture occur equally often, as far as n allows, in random order, as in scikit-learn's
generators; each single point has the target's density for every n. The mean of log p over n points thus varies less
than over n independent points.

Sources: scikit-learn's `make_circles` and `make_moons`; FFJORD's `lib/toy_data.py` (Grathwohl et al., 2019), with
scaled sizes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

NOISE, FACTOR = 0.06, 0.5  # from torchdiffeq's examples/cnf.py


def circles(n: int, generator: torch.Generator) -> Tensor:
    """[n, 2] two circles around 0 of radius 1 and 0.5, with normal noise of 0.06 in both coordinates.

    As `sklearn.datasets.make_circles(n, noise=0.06, factor=0.5)`: angles are equally spaced on each circle, which
    reduces the noise of gradients. Here each circle is also rotated at random, so that each point has a density, with
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

    As `sklearn.datasets.make_moons(n, noise=0.1)` with random angles, centred at 0 and scaled by 0.8.
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
    """[n, 2] five arms whose curvature increases outwards; the mean radius is about 0.75.

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
    """[n] in 0 to `count` - 1, each equally often as far as n allows, the remainder at random."""
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
