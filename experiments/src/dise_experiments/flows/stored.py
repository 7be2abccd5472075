"""Trained fields in their directories."""

from pathlib import Path

from torch import nn

from dise_experiments.flows.config import FieldConfig
from dise_experiments.flows.sources import field
from dise_experiments.run.config import ExperimentError
from dise_experiments.run.rundir import CONFIG, MODEL, load_weights, write_text


def load_field(path: Path) -> nn.Module:
    """The trained field of a directory, in evaluation mode and in single precision.

    Raises:
        ExperimentError: it is not trained yet, or the weights are those of another network.
    """
    if not (path / MODEL).is_file():
        raise ExperimentError(f"{path} has no trained field ({MODEL} is missing); `dise_experiments.flows` trains it")
    config = read_config(path)
    network = field(config.task)
    load_weights(network, path / MODEL)
    return network.eval()


def read_config(path: Path) -> FieldConfig:
    """The settings of a directory's training."""
    return FieldConfig.model_validate_json((path / CONFIG).read_text(encoding="utf-8"))


def claim(path: Path, config: FieldConfig) -> None:
    """Create the directory, or check that an existing one belongs to the same training."""
    if not (path / CONFIG).exists():
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / CONFIG, config.model_dump_json(indent=2) + "\n")
    elif read_config(path) != config:
        raise ExperimentError(f"{path} holds a training with other settings; choose another --out, or move it away")
