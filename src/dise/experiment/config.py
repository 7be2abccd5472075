"""What one run is: everything that its result depends on."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dise.regularize import L1, L2, ErrorEstimate, KineticEnergy, NoRegularizer, RawErrorEstimate, Regularizer
from dise.tasks.errors import UserError
from dise.tasks.registry import TASKS
from dise.tasks.task import Task

REGULARIZERS: dict[str, type[Regularizer]] = {
    "none": NoRegularizer,
    "kinetic": KineticEnergy,
    "l1": L1,
    "l2": L2,
    "error": ErrorEstimate,
    "raw-error": RawErrorEstimate,
}


class ExperimentError(UserError):
    """A wrong setting or run directory; the message is one line that says what to do."""


class RunConfig(BaseModel):
    """One training run. Saved as `config.json` in its directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    preset: str
    settings: dict[str, Any] = Field(description="the preset's values when the run was made")
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
    ) -> "RunConfig":
        """The run that these names mean; λ is the paper's unless given.

        Raises:
            ExperimentError: a name that there is not, or a model that cannot have the regularizer.
        """
        found = choose("task", task, TASKS)
        settings = choose("preset", preset, found.presets).model_dump()
        model = model or next(iter(found.models))
        choose("model", model, found.models)
        choose("reg", reg, found.weights)
        if model == "resnet" and reg not in ("none", "l1", "l2"):
            raise ExperimentError(f"reg: {reg!r} needs an ODE, and model 'resnet' has none; use none, l1 or l2")
        if model == "rknet" and "error" in reg:
            raise ExperimentError(f"reg: {reg!r} needs DOPRI's error estimate, and model 'rknet' is trained with RK4")
        weight = found.weights[reg] if weight is None else weight
        return cls(task=task, preset=preset, settings=settings, model=model, reg=reg, weight=weight, seed=seed)

    @property
    def name(self) -> str:
        """The name of the run's directory: what the run differs in from others of its task and preset."""
        paper = TASKS[self.task].weights[self.reg]
        weight = "" if self.weight == paper else f"-{self.weight:g}"
        return f"{self.model}-{self.reg}{weight}-seed{self.seed}"

    def directory(self, out: Path) -> Path:
        """Where the run lives: OUT/task/preset/name."""
        return out / self.task / self.preset / self.name

    @property
    def found(self) -> tuple[Task, Any]:
        """The task and the preset's settings."""
        task = TASKS[self.task]
        return task, type(task.presets[self.preset])(**self.settings)

    @property
    def regularizer(self) -> Regularizer:
        """The regularizer."""
        return REGULARIZERS[self.reg]()


def choose(what: str, name: str, options: Any) -> Any:
    """options[name], or one line that says which there are."""
    if name not in options:
        raise ExperimentError(f"{what}: there is no {name!r}; choose one of {', '.join(options)}")
    return options[name]
