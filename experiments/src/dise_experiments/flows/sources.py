"""What each field is trained on: data x with conditions, drawn from a generator, and the field's network."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dise_experiments.flows.networks import FieldNetwork
from dise_experiments.flows.simulators.simulator import Simulator
from dise_experiments.flows.simulators.tasks import SIMULATORS
from dise_experiments.flows.targets import TARGETS
from dise_experiments.flows.unet import NULL_LABEL, UNet
from dise_experiments.mnist.data import Images, load_mnist, load_mnist_sample, to_input

Pair = tuple[Tensor, tuple[Tensor, ...]]  # data [n, ...] and conditions [n, ...]
UNLABELLED = 0.1  # share of digits that are trained without their label


class Source(ABC):
    """Data to train a field on."""

    @abstractmethod
    def field(self) -> nn.Module:
        """A field f(t, x, *conditions), with random weights from torch's global generator."""

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> Pair:
        """n data with their conditions."""


@dataclass(frozen=True)
class PlaneSource(Source):
    """A distribution in the plane, without condition."""

    name: str

    def field(self) -> nn.Module:
        """A `FieldNetwork` of 2 coordinates."""
        return FieldNetwork(2)

    def draw(self, n: int, generator: torch.Generator) -> Pair:
        """n points."""
        return TARGETS[self.name](n, generator), ()


class PosteriorSource(Source):
    """Standardized parameters of a simulator, with data simulated from them as the condition.

    Args:
        simulator: of the task.
        simulations: number of pairs; training draws from these alone.
    """

    def __init__(self, simulator: Simulator, simulations: int) -> None:
        self.theta, self.x = simulator.joint(simulations, torch.Generator().manual_seed(0))

    def field(self) -> nn.Module:
        """A `FieldNetwork` of the parameters under the data."""
        network = FieldNetwork(self.theta.shape[1], self.x.shape[1])
        network.standardize(self.x)
        return network

    def draw(self, n: int, generator: torch.Generator) -> Pair:
        """n of the pairs, with replacement."""
        rows = torch.randint(len(self.theta), (n,), generator=generator)
        return self.theta[rows], (self.x[rows],)


class DigitsSource(Source):
    """Images of digits in [−1, 1] with their labels, some without."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def field(self) -> nn.Module:
        """A `UNet`."""
        return UNet()

    def draw(self, n: int, generator: torch.Generator) -> Pair:
        """n of the images, with replacement."""
        batch = self.images[torch.randint(len(self.images), (n,), generator=generator)]
        unlabelled = torch.rand(n, generator=generator) < UNLABELLED
        return 2 * to_input(batch.images) - 1, (torch.where(unlabelled, NULL_LABEL, batch.labels),)


NAMES = (*TARGETS, *SIMULATORS, "digits")


def field(name: str) -> nn.Module:
    """The untrained field of a task, whose weights are then loaded."""
    if name in TARGETS:
        return FieldNetwork(2)
    if name in SIMULATORS:
        simulator = SIMULATORS[name]
        return FieldNetwork(len(simulator.prior.location), simulator.data)
    return UNet()


def source(name: str, *, simulations: int, sample: bool, data_dir: Path | None) -> Source:
    """The source of a task; `sample` takes the digits shipped with the package."""
    if name in TARGETS:
        return PlaneSource(name)
    if name in SIMULATORS:
        return PosteriorSource(SIMULATORS[name], simulations)
    return DigitsSource((load_mnist_sample() if sample else load_mnist(data_dir)).train)
