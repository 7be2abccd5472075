"""A run's directory: its files, and reading and writing them without losing anything."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dise.select.deploy import strict_json
from dise.select.deploy.atomic import atomic_write
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.registry import TASKS

CONFIG, MODEL, TRAINING = "config.json", "model.safetensors", "training.json"


def open_run(path: Path) -> RunConfig:
    """The config of an existing run directory.

    Raises:
        ExperimentError: `path` is no run directory, or its config cannot be read.
    """
    file = path / CONFIG
    if not file.is_file():
        raise ExperimentError(f"{path} is not a run directory ({CONFIG} is missing); `dise train` creates one")
    try:
        config = RunConfig.model_validate_json(file.read_text(encoding="utf-8"))
        # the names must exist in this version, and the settings must be those of the preset's class
        RunConfig.of(config.task, config.preset, model=config.model, reg=config.reg)
        _, settings = config.found
        # a setting that a later version added has the value that keeps the run what it was
        config = config.model_copy(update={"settings": settings.model_dump()})
    except UnicodeDecodeError as error:
        raise ExperimentError(f"{file}: not a text file ({error}); move it away") from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise ExperimentError(f"{file}: {'; '.join(problems)}") from error
    return config


def claim_run(path: Path, config: RunConfig) -> None:
    """Create the run's directory, or check that an existing one belongs to the same run.

    Raises:
        ExperimentError: the directory belongs to a run with other settings.
    """
    if (path / CONFIG).exists():
        found = open_run(path)
        if found != config:
            raise ExperimentError(
                f"{path} holds a run with other settings ({_difference(found, config)}); "
                "choose another --out, or move it away"
            )
        return
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / CONFIG, config.model_dump_json(indent=2) + "\n")


def _difference(found: RunConfig, expected: RunConfig) -> str:
    flat = [{**c.model_dump(exclude={"settings"}), **c.settings} for c in (found, expected)]
    keys = dict.fromkeys([*flat[0], *flat[1]])
    return ", ".join(
        f"{k}: found {flat[0].get(k)}, expected {flat[1].get(k)}" for k in keys if flat[0].get(k) != flat[1].get(k)
    )


def load_model(path: Path, config: RunConfig) -> nn.Module:
    """The run's trained model, in evaluation mode.

    Raises:
        ExperimentError: it is not trained yet, or the weights are those of another model.
    """
    file = path / MODEL
    if not file.is_file():
        raise ExperimentError(f"{path} has no trained model ({MODEL} is missing); `dise train` trains it")
    model = TASKS[config.task].models[config.model]()
    load_weights(model, file)
    return model.eval()


def load_weights(module: nn.Module, file: Path) -> None:
    """Load safetensors into a module.

    Raises:
        ExperimentError: the file is damaged, or its parameters are not those of the module.
    """
    try:
        module.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        detail = reason[1].strip() if len(reason) > 1 else reason[0]
        raise ExperimentError(f"{file} does not contain the weights of {type(module).__name__}: {detail}") from error


def weight_names(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file; none if it is damaged, which `load_weights` reports."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except SafetensorError:
        return []


def save_weights(module: nn.Module, file: Path) -> None:
    """Write a module's parameters and buffers as safetensors; the file appears whole or not at all."""
    tensors: dict[str, Tensor] = {
        name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()
    }
    with atomic_write(file) as partial:
        save_file(tensors, partial)


def write_json(file: Path, values: Any) -> None:
    """Write JSON; the file appears whole or not at all."""
    write_text(file, strict_json.dumps(values, indent=2) + "\n")


def read_json(file: Path) -> Any:
    """Read JSON.

    Raises:
        ExperimentError: the file is damaged.
    """
    try:
        return strict_json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{file}: not JSON ({error}); move it away and run again") from error


def write_text(file: Path, text: str) -> None:
    """Write a text; the file appears whole or not at all."""
    with atomic_write(file) as partial:
        partial.write_text(text, encoding="utf-8")
