"""Settings of the training of a field."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from dise_experiments.flows.sources import NAMES
from dise_experiments.run.config import choose


class FieldConfig(BaseModel):
    """One training. Saved as `config.json` in its directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    preset: str
    seed: int = Field(default=0, ge=0)
    epochs: int = Field(ge=1, description="a checkpoint is written after each")
    iterations: int = Field(default=100, ge=1, description="iterations per epoch")
    batch_size: int = Field(default=1024, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0, description="of Adam, falling to 0 along a cosine")
    simulations: int = Field(default=100_000, ge=1, description="of a simulator, drawn once")
    half: bool = Field(default=False, description="train in bfloat16 where it is safe")

    @classmethod
    def of(cls, task: str, preset: str, seed: int = 0) -> "FieldConfig":
        """The preset's settings for a task.

        Raises:
            ExperimentError: an unknown task or preset.
        """
        settings = choose("preset", preset, PRESETS)
        choose("target", task, dict.fromkeys(NAMES))
        kind = "digits" if task == "digits" else "points"
        return cls(task=task, preset=preset, seed=seed, **settings[kind])

    @property
    def name(self) -> str:
        """The name of the run's directory."""
        return f"{self.task}-seed{self.seed}"

    def directory(self, out: Path) -> Path:
        """The run's directory, OUT/flows/preset/name."""
        return out / "flows" / self.preset / self.name


PRESETS: Mapping[str, Mapping[str, dict[str, float | bool]]] = {
    # seconds per field of points, one minute for digits
    "sample": {
        "points": {"epochs": 5, "batch_size": 512, "simulations": 10_000},
        "digits": {"epochs": 2, "iterations": 50, "batch_size": 64, "half": True},
    },
    # a minute per field of points, ten for digits, on one free core
    "cpu": {
        "points": {"epochs": 60, "batch_size": 512},
        "digits": {"epochs": 50, "iterations": 50, "batch_size": 64, "learning_rate": 1e-3, "half": True},
    },
}
