"""Trained fields as samplers: the flow, its conditions, and the observations at which its draws are compared."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dise.flow import DiagonalNormal, Flow, Guided
from dise.integrate import Adaptive, Dopri5, Dopri8
from dise_experiments.flows.simulators.reference import observation
from dise_experiments.flows.simulators.simulator import Simulator
from dise_experiments.flows.simulators.tasks import SIMULATORS
from dise_experiments.flows.stored import load_field, read_config
from dise_experiments.flows.unet import LABELS, NULL_LABEL

IMAGE = (1, 28, 28)
GUIDANCE = 2.0  # scale: v without label + 2 · (v with label − v without)
DrawConditions = Callable[[int], Tensor]


@dataclass(frozen=True)
class Case:
    """A trained field with a source of conditions.

    Attributes:
        task: of the field, as in `NAMES`.
        flow: from noise at 0 to data at 1; its integrator is the reference in single precision.
        condition: draws conditions as in use, from torch's global generator; None for a field without.
        guidance: scale of the classifier-free guidance; None: without.
    """

    task: str
    flow: Flow
    condition: DrawConditions | None
    guidance: float | None = None

    @property
    def name(self) -> str:
        """As in tables."""
        return self.task if self.guidance is None else f"{self.task}, guidance {self.guidance:g}"

    @property
    def stem(self) -> str:
        """As in names of files."""
        return self.task if self.guidance is None else f"{self.task}-guidance-{self.guidance:g}"

    @property
    def images(self) -> bool:
        """Whether draws are images."""
        return self.task == "digits"

    @property
    def calls_per_evaluation(self) -> int:
        """Calls of the network per sample and evaluation of the field."""
        return 1 if self.guidance is None else 2

    @property
    def tight(self) -> Adaptive:
        """The integrator of the solves that errors are measured against, by the flow of `exact`."""
        return Dopri5(rtol=1e-6, atol=1e-6) if self.images else Dopri8(rtol=1e-8, atol=1e-8)

    @property
    def exact(self) -> Flow:
        """The flow for tight solves: a copy in double precision, or for images, where that takes five times as long,
        the flow itself.
        """
        return self.flow if self.images else copy.deepcopy(self.flow).double()

    def observed(self, index: int) -> DrawConditions | None:
        """Conditions at which draws are compared: those of a posterior are always one observation of the benchmark."""
        if self.task not in SIMULATORS:
            return self.condition
        x = observation(self.task, index)
        return lambda number: x.expand(number, -1)


def cases(path: Path) -> list[Case]:
    """What a field's directory is measured as: digits also with guidance.

    Raises:
        ExperimentError: the field is not trained yet.
    """
    field, task = load_field(path), read_config(path).task
    if task != "digits":
        simulator = SIMULATORS.get(task)
        return [Case(task, points_flow(field), None if simulator is None else observations(simulator))]
    guided = Guided(field, GUIDANCE, null=(NULL_LABEL,))
    return [Case(task, images_flow(field), labels), Case(task, images_flow(guided), labels, GUIDANCE)]


def points_flow(field: nn.Module) -> Flow:
    """The flow of a `FieldNetwork`."""
    zeros = torch.zeros(cast(int, field.dim))
    return Flow(field, DiagonalNormal(zeros, torch.ones_like(zeros)), Dopri5(rtol=1e-6, atol=1e-6))


def images_flow(field: nn.Module) -> Flow:
    """The flow of a field of images."""
    return Flow(field, DiagonalNormal(torch.zeros(IMAGE), torch.ones(IMAGE)), Dopri5(rtol=1e-5, atol=1e-5))


def labels(number: int) -> Tensor:
    """Labels of digits, uniform."""
    return torch.randint(LABELS, (number,))


def observations(simulator: Simulator) -> DrawConditions:
    """Draws of data of a simulator, with parameters from the prior."""

    def condition(number: int) -> Tensor:
        seed = int(torch.randint(2**31, ()))
        return simulator.joint(number, torch.Generator().manual_seed(seed))[1]

    return condition
