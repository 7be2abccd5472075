"""The configuration of one run: everything that determines its result."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dise.regularize import Regularizer
from dise_experiments.common.errors import UserError
from dise_experiments.common.task import PER_SAMPLE, Task
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
    weight: float = Field(ge=0, description="λ of Eq. 3; of steer the width of the end's distribution")
    reduce: Literal["mean", "sum"] = Field(default="mean", description="R over a batch; Eq. 2 is a sum")
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
        reduce: str | None = None,
        seed: int = 0,
        changes: Sequence[str] = (),
    ) -> "RunConfig":
        """The run with these names; λ is the paper's by default.

        Args:
            reduce: "mean" or "sum" of R over a batch; default: the paper's reading, a sum, in the preset `paper`, and
                the mean in the others. It must not be given for a regularizer that is not of samples.
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
        reading = _reading(preset, reg, reduce)
        return cls(
            task=task, preset=preset, settings=settings, model=model, reg=reg, weight=weight, reduce=reading, seed=seed
        )

    @property
    def name(self) -> str:
        """The name of the run's directory: model, regularizer, "sum" if R is one, λ, changed settings, seed."""
        paper = TASKS[self.task].weights[self.reg]
        weight = "" if self.weight == paper else f"-{self.weight:g}"
        standard = TASKS[self.task].presets[self.preset].model_dump()
        changes = "".join(f"-{name}={value}" for name, value in self.settings.items() if value != standard.get(name))
        reading = "-sum" if self.reduce == "sum" else ""
        return f"{self.model}-{self.reg}{reading}{weight}{changes}-seed{self.seed}"

    @property
    def command(self) -> str:
        """The command that makes the run, in the shell's form."""
        standard = TASKS[self.task].presets[self.preset].model_dump()
        changes = [f"--set {name}={value}" for name, value in self.settings.items() if value != standard.get(name)]
        weight = [] if self.weight == TASKS[self.task].weights[self.reg] else [f"--weight {self.weight:g}"]
        reduce = [f"--reduce {self.reduce}"] if self.reg in PER_SAMPLE else []
        parts = [f"--preset {self.preset}", f"--model {self.model}", f"--reg {self.reg}", *weight, *reduce, *changes]
        return " ".join(["dise run", self.task, *parts, f"--seed {self.seed}"])

    def directory(self, out: Path) -> Path:
        """The run's directory, OUT/task/preset/name."""
        return out / self.task / self.preset / self.name

    @property
    def found(self) -> tuple[Task, Any]:
        """The task and the preset's settings."""
        task = TASKS[self.task]
        return task, type(task.presets[self.preset])(**self.settings)

    @property
    def with_error(self) -> "RunConfig":
        """The run with the same seed and settings, DOPRI's error estimate as regularizer, and the paper's λ.

        R over a batch is reduced as the preset does by default, or as in this run if its own is of samples.
        """
        reduce = self.reduce if self.reg in PER_SAMPLE else _reading(self.preset, "error", None)
        return self.model_copy(update={"reg": "error", "weight": TASKS[self.task].weights["error"], "reduce": reduce})

    @property
    def regularizer(self) -> Regularizer:
        """The regularizer."""
        make = TASKS[self.task].regularizers[self.reg]
        if self.reg == "steer":
            return make(self.weight, generator=torch.Generator())
        return make(reduce="sum") if self.reduce == "sum" else make()


def _reading(preset: str, reg: str, reduce: str | None) -> Literal["mean", "sum"]:
    """How R is reduced over a batch."""
    if reduce not in (None, "mean", "sum"):
        raise ExperimentError(f"reduce: there is no {reduce!r}; choose one of mean, sum")
    if reg not in PER_SAMPLE:
        if reduce == "sum":
            raise ExperimentError(f"reduce: {reg!r} is no sum over samples; it takes none")
        return "mean"
    return "sum" if reduce == "sum" or (reduce is None and preset == "paper") else "mean"


def _changed(preset: BaseModel, changes: Sequence[str]) -> dict[str, Any]:
    """The preset's settings with the changes "name=value"."""
    pairs = [change.partition("=") for change in changes]
    for change, (name, equals, _) in zip(changes, pairs, strict=True):
        if not equals or name not in type(preset).model_fields:
            names = ", ".join(type(preset).model_fields)
            raise ExperimentError(f"set: expected NAME=VALUE with a NAME of {names}; got {change!r}")
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


def combinations(task: str, models: Sequence[str], regs: Sequence[str]) -> list[tuple[str, str]]:
    """Models and regularizers to run: the first model with each regularizer, the others without regularizer.

    Raises:
        ExperimentError: an unknown name, or a model that is trained without regularizer, and "none" is not among them.
    """
    found = choose("task", task, TASKS)
    first = next(iter(found.models))
    for reg in regs:
        choose("reg", reg, found.weights)
    for model in models:
        if choose("model", model, found.models) and model != first and "none" not in regs:
            raise ExperimentError(f"reg: model {model!r} is a baseline, trained without regularizer; add --reg none")
    return [(model, reg) for model in models or [first] for reg in regs if model == first or reg == "none"]
