"""The parts of an experiment: task, loss, selectors, runs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from dise.integrate import RK4, Adaptive, Euler, Integrator, Solution
from dise.regularize import (
    L1,
    L2,
    ErrorEstimate,
    JacobianNorm,
    KineticEnergy,
    NoRegularizer,
    RandomEndTime,
    Regularizer,
    StiffnessEstimate,
    TaylorSpeed,
    UnscaledErrorEstimate,
    WeightedErrorEstimate,
)
from dise.select import CostRule, Dynamic, Input, contains_block
from dise_experiments.common.table import Table

REGULARIZERS: Mapping[str, Callable[..., Regularizer]] = {
    "none": NoRegularizer,
    "kinetic": KineticEnergy,
    "l1": L1,
    "l2": L2,
    "error": ErrorEstimate,
    "raw-error": UnscaledErrorEstimate,
    "weighted-error": WeightedErrorEstimate,
    "stiffness": StiffnessEstimate,
    "jacobian": JacobianNorm,
    "taylor2": partial(TaylorSpeed, 2),
    "taylor3": partial(TaylorSpeed, 3),
    "steer": RandomEndTime,  # its λ is the width of the end's distribution
}
PER_SAMPLE = tuple(name for name in REGULARIZERS if name not in ("none", "l1", "l2", "steer"))  # those with `reduce`


@dataclass(frozen=True)
class Loss:
    """The task's part of Eq. 3 on one batch, with the quantities that regularizers and logs need."""

    value: Tensor  # L_task, a scalar
    solution: Solution | None  # of the model's ODE; None for a model without one
    dynamics: nn.Module  # the module whose parameters are θ
    metrics: dict[str, Tensor]


class SelectorSpec(NamedTuple):
    """A selector that a task fits.

    Attributes:
        network: makes the network for a model and a number of candidates.
        tolerance: tolerance of `choose_penalty`, which chooses M on held-out data; None: M is the paper's.
        unit: the unit to which one integrator is assigned, one of those that `Task.selection_batches` knows.
        equation: equation of the costs, 4 or 5.
        candidates: indices of the task's candidates among which it chooses; None: all.
    """

    network: Callable[[nn.Module, int], nn.Module]
    tolerance: float | None = None
    unit: str = "sample"
    equation: int = 4
    candidates: tuple[int, ...] | None = None

    @property
    def costs(self) -> str:
        """Name of the costs to which the selector is fitted."""
        return f"{self.unit}, Eq. {self.equation}"

    def choosable(self, candidates: Sequence[Integrator]) -> tuple[Integrator, ...]:
        """The task's candidates among which the selector chooses."""
        return tuple(candidates) if self.candidates is None else tuple(candidates[i] for i in self.candidates)


@dataclass(frozen=True)
class Run:
    """An evaluated run, the input of reports.

    Attributes:
        name: name of its directory.
        model, reg, weight, seed: its settings.
        reduce: how R is reduced over a batch, "mean" or "sum".
        metrics: result of `Task.metrics`.
        training: seconds, threads, and the last logged values.
        timing: wall-clock times; None if they were not measured.
    """

    name: str
    model: str
    reg: str
    weight: float
    seed: int
    metrics: dict[str, Any]
    training: dict[str, Any]
    timing: dict[str, Any] | None
    reduce: str = "mean"

    def policies(self, prefix: str = "") -> list[dict[str, Any]]:
        """Rows of the evaluation whose policy starts with `prefix`."""
        return [row for row in self.metrics["policies"] if row["policy"].startswith(prefix)]


class AsPublished(NamedTuple):
    """What the paper leaves open about its selector.

    Attributes:
        euler, rk4: steps of Euler and of RK4 over the whole span.
        limit: number of training samples on which costs are collected; None: all of them.
    """

    euler: int = 1
    rk4: int = 1
    limit: int | None = None

    @property
    def folder(self) -> str:
        """Name of the folder in a run's directory, as in "published-euler50-rk4x5-limit5000"."""
        steps = (f"-euler{self.euler}" if self.euler != 1 else "") + (f"-rk4x{self.rk4}" if self.rk4 != 1 else "")
        return "published" + steps + (f"-limit{self.limit}" if self.limit else "")

    @property
    def label(self) -> str:
        """Name of its rows in tables."""
        steps = f", Euler × {self.euler}, RK4 × {self.rk4}" if (self.euler, self.rk4) != (1, 1) else ""
        return "as published" + steps + (f", {self.limit:,} training samples" if self.limit else "")

    def candidates(self, reference: Adaptive) -> tuple[Integrator, ...]:
        """The paper's three candidates."""
        return (Euler(steps=self.euler), RK4(steps=self.rk4), reference)

    def cut(self, samples: Any) -> Any:
        """The first `limit` of a sequence of training samples."""
        return samples if self.limit is None else samples[: self.limit]


class Coarse(NamedTuple):
    """How an epoch of training computes, if more coarsely than the model does afterwards.

    Attributes:
        integrator: in place of the model's; None: the model's own.
        dtype: of matrix products and convolutions, by autocast; None: that of the weights.
    """

    integrator: Integrator | None
    dtype: torch.dtype | None


class Quality(NamedTuple):
    """A task's measure of quality.

    Attributes:
        name: its name, as in "accuracy".
        logged: its key among the metrics of `Loss`, or "loss".
        value: its value in a row of the evaluation.
    """

    name: str
    logged: str
    value: Callable[[dict[str, Any]], float]


class Task(ABC):
    """One of the paper's experiments: data, models, loss, settings, measures and tables.

    Attributes:
        name: name on the command line.
        quality: the measure of quality that summaries give.
        presets: settings by name (pydantic models with at least `epochs`), from the smallest to the largest.
        regularizers: regularizers by name.
        weights: λ by name of the regularizer: the paper's, or of a regularizer that it lacks one that is felt.
        models: constructors by name; the first is the default.
        candidates: the integrators among which selectors choose; the last is `reference`.
        reference: the adaptive integrator to which the others are compared.
        baselines: further integrators that are evaluated alone.
        selectors: selectors by name.
        default_selector: the selector whose results summaries give.
        keeps: the logged metric, larger is better, that decides which epoch's weights are kept; None: the last epoch's.
        splits_systems: whether `take` splits what is solved as one system, so that each part is a system of its own.
    """

    name: ClassVar[str]
    quality: ClassVar[Quality]
    presets: ClassVar[Mapping[str, Any]]
    regularizers: ClassVar[Mapping[str, Callable[..., Regularizer]]] = REGULARIZERS
    weights: ClassVar[Mapping[str, float]]
    models: ClassVar[Mapping[str, Callable[[], nn.Module]]]
    candidates: tuple[Integrator, ...]
    reference: ClassVar[Adaptive]
    baselines: tuple[Integrator, ...] = ()
    selectors: Mapping[str, SelectorSpec]
    default_selector: str
    keeps: ClassVar[str | None] = None
    splits_systems: ClassVar[bool] = False

    def check(self, model: str, reg: str) -> str | None:
        """The reason why a model cannot be trained with a regularizer; None if it can."""
        return None

    def coarse(self, preset: Any, epoch: int, reg: str) -> Coarse | None:
        """How an epoch (from 0) is trained more coarsely than the model computes afterwards; None: it is not.

        Its integrator has what the regularizer needs.
        """
        return None

    def reaches_all_parameters(self, preset: Any) -> bool:
        """Whether each of a model's parameters gets a gradient; if not, several processes look for those that do."""
        return True

    def selects(self, model: nn.Module) -> bool:
        """Whether the model's answers depend on its integrator, which selection requires."""
        return contains_block(model)

    @abstractmethod
    def rule(self, alpha: float | None, penalty: float | None, equation: int) -> CostRule:
        """The cost of a candidate by the paper's Eq. 4 or 5; None stands for the paper's α or M."""

    @abstractmethod
    def load(self, preset: Any, data_dir: Path | None) -> Any:
        """The data, split."""

    @abstractmethod
    def training_batches(self, splits: Any, preset: Any, *, seed: int, epoch: int) -> Iterable[Any]:
        """One epoch's batches, a pure function of the arguments, so that a resumed run gets the same ones."""

    @abstractmethod
    def monitored_batches(self, splits: Any, preset: Any) -> Iterable[Any]:
        """Held-out batches on which the metrics are logged after each epoch."""

    @abstractmethod
    def rows(self, batch: Any) -> int:
        """Number of rows of a training batch, among which processes can share it out."""

    @abstractmethod
    def take(self, batch: Any, rows: slice) -> Any:
        """Some rows of a training batch, consecutive ones."""

    @abstractmethod
    def selection_batches(self, model: nn.Module, splits: Any, *, on: str, unit: str) -> Iterable[Any]:
        """Batches (x, target) on which costs are collected: `on` is "held-out", "train" or "test"."""

    @abstractmethod
    def draw(self, axes: Axes, x: Any, row: int) -> None:
        """Draw one of the samples of `selection_batches`."""

    @abstractmethod
    def timed_batches(self, splits: Any, number: int, *, unit: str) -> Iterable[Input]:
        """At most `number` inputs x whose rows are units, on which wall-clock and multiply–adds are measured."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, accumulate: Any) -> Loss:
        """L_task of one batch; `accumulate` is passed to the solver."""

    @abstractmethod
    def optimizer(self, model: nn.Module, preset: Any, steps_per_epoch: int) -> dict[str, Any]:
        """Optimizer and schedule, in the form of Lightning's `configure_optimizers`."""

    @abstractmethod
    def metrics(
        self, model: nn.Module, dynamics: Mapping[str, Dynamic], selector_macs: Mapping[str, float], splits: Any
    ) -> dict[str, Any]:
        """Every policy on the test set.

        Args:
            model: a trained model, in evaluation mode.
            dynamics: fitted selectors by name; empty for a model without selection.
            selector_macs: multiply–adds of each selector, in units of one evaluation of f.
            splits: the data.

        Returns:
            "samples", and "policies": rows with at least "policy", "nfe" and the task's quality.
        """

    @abstractmethod
    def own_row(self, run: Run) -> dict[str, Any]:
        """The evaluation of a run's model with the integrator that it was trained with."""

    @abstractmethod
    def tables(self, runs: Sequence[Run]) -> list[Table]:
        """The paper's tables beside the runs' numbers."""

    @abstractmethod
    def details(self, run: Run) -> list[Table]:
        """Every policy on one run's model."""

    @abstractmethod
    def plots(self, runs: Sequence[Run], folder: Path, load: Callable[[Run], nn.Module]) -> list[Path]:
        """Draw figures of the runs in folder/run.name and return the files; `load` gives a run's model."""
