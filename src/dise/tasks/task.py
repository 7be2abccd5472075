"""What an experiment is made of."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from dise.integrate import Solution


@dataclass(frozen=True)
class Loss:
    """The task's part of Eq. 3 on one batch, and what regularizers and logs need beside it."""

    value: Tensor  # L_task, a scalar
    solution: Solution | None  # of the model's ODE; None if it has none
    dynamics: nn.Module  # the module whose parameters are θ
    metrics: dict[str, Tensor]


class Task(Protocol):
    """One of the paper's experiments: data, models, loss and settings.

    Attributes:
        name: on the command line.
        presets: settings by name (pydantic models with at least `epochs`).
        weights: the paper's λ by name of the regularizer.
        models: constructors by name.
    """

    name: str
    presets: Mapping[str, Any]
    weights: Mapping[str, float]
    models: Mapping[str, Callable[[], nn.Module]]

    def load(self, preset: Any, data_dir: Path | None) -> Any:
        """The data, split."""
        ...

    def training_batches(self, splits: Any, preset: Any, *, seed: int, epoch: int) -> Iterable[Any]:
        """One epoch's batches, a pure function of the arguments, so that a resumed run sees the same ones."""
        ...

    def monitored_batches(self, splits: Any, preset: Any) -> Iterable[Any]:
        """Batches on which the metrics are logged after each epoch."""
        ...

    def loss(self, model: nn.Module, batch: Any, accumulate: Any) -> Loss:
        """L_task of one batch; `accumulate` goes to the solver."""
        ...

    def optimizer(self, model: nn.Module, preset: Any, steps_per_epoch: int) -> dict[str, Any]:
        """Optimizer and schedule, in the form of Lightning's `configure_optimizers`."""
        ...
