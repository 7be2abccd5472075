"""What an experiment is made of."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from dise.integrate import Integrator, Solution
from dise.select import ClassificationCost


@dataclass(frozen=True)
class Loss:
    """The task's part of Eq. 3 on one batch, and what regularizers and logs need beside it."""

    value: Tensor  # L_task, a scalar
    solution: Solution | None  # of the model's ODE; None if it has none
    dynamics: nn.Module  # the module whose parameters are θ
    metrics: dict[str, Tensor]


class Task(ABC):
    """One of the paper's experiments: data, models, loss and settings.

    Attributes:
        name: on the command line.
        presets: settings by name (pydantic models with at least `epochs`).
        weights: the paper's λ by name of the regularizer.
        models: constructors by name.
        candidates: the integrators that selectors choose from; the last is the reference.
        baselines: further integrators to evaluate alone.
        selectors: selector networks by name, made for a number of candidates.
    """

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Any]]
    weights: ClassVar[Mapping[str, float]]
    models: ClassVar[Mapping[str, Callable[[], nn.Module]]]
    candidates: ClassVar[tuple[Integrator, ...]]
    baselines: ClassVar[tuple[Integrator, ...]]
    selectors: ClassVar[Mapping[str, Callable[[int], nn.Module]]]

    @abstractmethod
    def rule(self, alpha: float | None, penalty: float | None) -> ClassificationCost:
        """The cost of a candidate; α and M are the paper's unless given."""

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
    def selection_batches(self, splits: Any, *, on: str) -> Iterable[Any]:
        """Batches (x, target) on which costs are collected: `on` is "held-out" or "train"."""

    @abstractmethod
    def test_batches(self, splits: Any) -> Iterable[Any]:
        """Batches (x, target) of the test set, of the size that the paper evaluates on."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, accumulate: Any) -> Loss:
        """L_task of one batch; `accumulate` goes to the solver."""

    @abstractmethod
    def optimizer(self, model: nn.Module, preset: Any, steps_per_epoch: int) -> dict[str, Any]:
        """Optimizer and schedule, in the form of Lightning's `configure_optimizers`."""
