"""The configuration of one run: everything that determines its result."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dise.regularize import Regularizer
from dise_experiments.common.errors import UserError
from dise_experiments.common.task import Task
from dise_experiments.run.registry import TASKS


class ExperimentError(UserError):
    """A wrong setting or run directory; the message is one line that says what to do."""


class RunConfig(BaseModel):
    """One training run. Saved as `config.json` in its directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    preset: str
    settings: dict[str, Any] = Field(description="the preset's values when the run was created")
    model: str
    reg: str
    weight: float = Field(ge=0, description="λ of Eq. 3")
    seed: int = Field(ge=0)

    @classmethod
    def of(
        cls,
        task: str,
        preset: str,
        *,
        model: str | None = None,
        reg: str = "none",
        weight: float | None = None,
        seed: int = 0,
        changes: Sequence[str] = (),
    ) -> "RunConfig":
        """The run with these names; λ is the paper's by default.

        Args:
            changes: changes of the preset's settings, "name=value".

        Raises:
            ExperimentError: an unknown name, a wrong value, or a model that cannot be trained with the regularizer.
        """
        found = choose("task", task, TASKS)
        settings = _changed(choose("preset", preset, found.presets), changes)
        model = model or next(iter(found.models))
        choose("model", model, found.models)
        choose("reg", reg, found.weights)
        if reason := found.check(model, reg):
            raise ExperimentError(reason)
        weight = found.weights[reg] if weight is None else weight
        return cls(task=task, preset=preset, settings=settings, model=model, reg=reg, weight=weight, seed=seed)

    @property
    def name(self) -> str:
        """The name of the run's directory: model, regularizer, changed settings, seed."""
        paper = TASKS[self.task].weights[self.reg]
        weight = "" if self.weight == paper else f"-{self.weight:g}"
        standard = TASKS[self.task].presets[self.preset].model_dump()
        changes = "".join(f"-{name}={value}" for name, value in self.settings.items() if value != standard.get(name))
        return f"{self.model}-{self.reg}{weight}{changes}-seed{self.seed}"

    def directory(self, out: Path) -> Path:
        """The run's directory, OUT/task/preset/name."""
        return out / self.task / self.preset / self.name

    @property
    def found(self) -> tuple[Task, Any]:
        """The task and the preset's settings."""
        task = TASKS[self.task]
        return task, type(task.presets[self.preset])(**self.settings)

    @property
    def regularizer(self) -> Regularizer:
        """The regularizer."""
        return TASKS[self.task].regularizers[self.reg]()


def _changed(preset: BaseModel, changes: Sequence[str]) -> dict[str, Any]:
    """The preset's settings with the changes "name=value"."""
    pairs = [change.partition("=") for change in changes]
    for name, equals, _ in pairs:
        if not equals or name not in type(preset).model_fields:
            names = ", ".join(type(preset).model_fields)
            raise ExperimentError(f"set: expected NAME=VALUE with a NAME of {names}; got {name + equals!r}")
    try:
        return type(preset)(**preset.model_dump() | {name: value for name, _, value in pairs}).model_dump()
    except ValidationError as error:
        reasons = [f"{e['loc'][0]}: {e['msg']}" for e in error.errors()]
        raise ExperimentError(f"set: {'; '.join(reasons)}") from error


def choose(what: str, name: str, options: Any) -> Any:
    """options[name], or an error that lists the options."""
    if name not in options:
        raise ExperimentError(f"{what}: there is no {name!r}; choose one of {', '.join(options)}")
    return options[name]
