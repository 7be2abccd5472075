"""What an experiment is made of."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from dise.integrate import Adaptive, Integrator, Solution
from dise.regularize import L1, L2, ErrorEstimate, KineticEnergy, NoRegularizer, Regularizer, UnscaledErrorEstimate
from dise.select import CostRule, Dynamic, Input, has_block
from dise_experiments.common.table import Table

REGULARIZERS: Mapping[str, Callable[[], Regularizer]] = {
    "none": NoRegularizer,
    "kinetic": KineticEnergy,
    "l1": L1,
    "l2": L2,
    "error": ErrorEstimate,
    "raw-error": UnscaledErrorEstimate,
}


@dataclass(frozen=True)
class Loss:
    """The task's part of Eq. 3 on one batch, and what regularizers and logs need beside it."""

    value: Tensor  # L_task, a scalar
    solution: Solution | None  # of the model's ODE; None if it has none
    dynamics: nn.Module  # the module whose parameters are θ
    metrics: dict[str, Tensor]


class SelectorSpec(NamedTuple):
    """A selector that a task fits."""

    network: Callable[[nn.Module, int], nn.Module]  # made for a model and a number of candidates
    tolerance: float | None = None  # of `choose_penalty`, which chooses M on held-out data; None: M is the paper's
    unit: str = "sample"  # what gets an integrator: a name that `Task.selection_batches` knows
    equation: int = 4  # of the costs: a number that `Task.rule` knows
    candidates: tuple[int, ...] | None = None  # indices of the task's candidates that it chooses from; None: all

    @property
    def costs(self) -> str:
        """The name of the costs that it is fitted to."""
        return f"{self.unit}, Eq. {self.equation}"

    def choosable(self, candidates: Sequence[Integrator]) -> tuple[Integrator, ...]:
        """Those of the task's candidates that it chooses from."""
        return tuple(candidates) if self.candidates is None else tuple(candidates[i] for i in self.candidates)


@dataclass(frozen=True)
class Run:
    """An evaluated run, as reports see it.

    Attributes:
        name: of its directory.
        model, reg, weight, seed: its settings.
        metrics: what `Task.evaluate` returned.
        training: seconds, threads, and the last values logged.
        timing: wall-clock; None if it was not measured.
    """

    name: str
    model: str
    reg: str
    weight: float
    seed: int
    metrics: dict[str, Any]
    training: dict[str, Any]
    timing: dict[str, Any] | None

    def policies(self, prefix: str = "") -> list[dict[str, Any]]:
        """Rows of the evaluation whose policy starts with `prefix`."""
        return [row for row in self.metrics["policies"] if row["policy"].startswith(prefix)]


class Task(ABC):
    """One of the paper's experiments: data, models, loss, settings, measures and tables.

    Attributes:
        name: on the command line.
        presets: settings by name (pydantic models with at least `epochs`).
        regularizers: by name.
        weights: the paper's λ by name of the regularizer.
        models: constructors by name; the first is the one to run if none is named.
        candidates: the integrators that selectors choose from; the last is `reference`.
        reference: the adaptive integrator that the others are judged by.
        baselines: further integrators to evaluate alone.
        selectors: by name.
        keeps: the logged metric, larger is better, by which the epoch is chosen whose weights are kept; None: the last.
    """

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Any]]
    regularizers: ClassVar[Mapping[str, Callable[[], Regularizer]]] = REGULARIZERS
    weights: ClassVar[Mapping[str, float]]
    models: ClassVar[Mapping[str, Callable[[], nn.Module]]]
    candidates: ClassVar[tuple[Integrator, ...]]
    reference: ClassVar[Adaptive]
    baselines: ClassVar[tuple[Integrator, ...]] = ()
    selectors: ClassVar[Mapping[str, SelectorSpec]]
    keeps: ClassVar[str | None] = None

    def check(self, model: str, reg: str) -> str | None:
        """Why a model cannot be trained with a regularizer; None if it can."""
        return None

    def selects(self, model: nn.Module) -> bool:
        """Whether the model's answers depend on its integrator, so that there is something to select."""
        return has_block(model)

    @abstractmethod
    def rule(self, alpha: float | None, penalty: float | None, equation: int) -> CostRule:
        """The cost of a candidate by the paper's Eq. 4 or 5; α and M are the paper's unless given."""

    @abstractmethod
    def load(self, preset: Any, data_dir: Path | None) -> Any:
        """The data, split."""

    @abstractmethod
    def training_batches(self, splits: Any, preset: Any, *, seed: int, epoch: int) -> Iterable[Any]:
        """One epoch's batches, a pure function of the arguments, so that a resumed run sees the same ones."""

    @abstractmethod
    def monitored_batches(self, splits: Any, preset: Any) -> Iterable[Any]:
        """Batches on which the metrics are logged after each epoch."""

    @abstractmethod
    def selection_batches(self, model: nn.Module, splits: Any, *, on: str, unit: str) -> Iterable[Any]:
        """Batches (x, target) on which costs are collected: `on` is "held-out" or "train"."""

    @abstractmethod
    def timed_batches(self, splits: Any, number: int, *, unit: str) -> Iterable[Input]:
        """At most `number` inputs x, of which each row is a unit, on which costs are measured."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, accumulate: Any) -> Loss:
        """L_task of one batch; `accumulate` goes to the solver."""

    @abstractmethod
    def optimizer(self, model: nn.Module, preset: Any, steps_per_epoch: int) -> dict[str, Any]:
        """Optimizer and schedule, in the form of Lightning's `configure_optimizers`."""

    @abstractmethod
    def evaluate(
        self, model: nn.Module, dynamics: Mapping[str, Dynamic], selector_macs: Mapping[str, float], splits: Any
    ) -> dict[str, Any]:
        """Every policy on the test set.

        Args:
            model: trained, in evaluation mode.
            dynamics: fitted selectors by name; none for a model that does not select.
            selector_macs: a selector's multiply–adds, in units of one evaluation of f.
            splits: the data.

        Returns:
            "samples", and "policies": rows with at least "policy", "nfe" and the task's measure of quality.
        """

    @abstractmethod
    def tables(self, runs: Sequence[Run]) -> list[Table]:
        """The paper's tables beside the runs' numbers."""

    @abstractmethod
    def details(self, run: Run) -> list[Table]:
        """Every policy on one run's model."""

    @abstractmethod
    def plots(self, runs: Sequence[Run], folder: Path, load: Callable[[Run], nn.Module]) -> list[Path]:
        """Draw figures of the runs, whose directories are folder/run.name; the files. `load` gives a run's model."""
