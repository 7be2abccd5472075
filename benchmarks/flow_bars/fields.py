"""The trained fields, with noise to start from and conditions."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import dise
from dise_experiments.flows.simulators.reference import observation
from dise_experiments.flows.simulators.tasks import SIMULATORS
from dise_experiments.flows.stored import load_field

RESULTS = Path(__file__).parents[2] / "results" / "flows-cpu"
POINTS = ("checkerboard", "moons", "two_moons", "slcp")
OBSERVATION = 1  # of the posteriors


@dataclass(frozen=True)
class Draws:
    """Noise to be moved to data by a field, from t = 0 to 1.

    Attributes:
        f: field f(t, x, *conditions).
        noise: [N, ...].
        conditions: tensors [N, ...].
    """

    f: nn.Module
    noise: Tensor
    conditions: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def solve(self, integrator: dise.Integrator, **options: bool) -> dise.Solution:
        """The solve from noise to data."""
        return dise.solve(self.f, self.noise, 0.0, 1.0, integrator, sample_args=self.conditions, **options)

    def double(self) -> "Draws":
        """The same in double precision, with a copy of the field."""
        conditions = tuple(c.double() if c.is_floating_point() else c for c in self.conditions)
        return Draws(copy.deepcopy(self.f).double(), self.noise.double(), conditions)

    def rows(self, rows: slice) -> "Draws":
        """Some of the draws."""
        return replace(self, noise=self.noise[rows], conditions=tuple(c[rows] for c in self.conditions))

    def __iter__(self) -> Iterator["Draws"]:
        """Each draw alone."""
        return (self.rows(slice(i, i + 1)) for i in range(len(self.noise)))


def points(task: str, n: int) -> Draws:
    """n draws of a field of points; of posteriors, those of observation 1."""
    f = load_field(RESULTS / f"{task}-seed0")
    noise = torch.randn(n, f.dim, generator=torch.Generator().manual_seed(1))
    conditions = (observation(task, OBSERVATION).expand(n, -1),) if task in SIMULATORS else ()
    return Draws(f, noise, conditions)


def digits(n: int, seed: int = 1) -> Draws:
    """n digits, with labels 0 to 9 in turn, from noise of a seed."""
    noise = torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    return Draws(load_field(RESULTS / "digits-seed0"), noise, (torch.arange(n) % 10,))


def rms(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square distance per draw [N]."""
    return (a.double() - b.double()).flatten(1).square().mean(1).sqrt()


def adams() -> Callable[..., dise.Integrator] | None:
    """`dise.Adams`, the own-step method; None where this version has none."""
    return getattr(dise, "Adams", None)
