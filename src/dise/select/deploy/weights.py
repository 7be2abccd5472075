"""The weights of a policy's networks as a file of safetensors."""

from pathlib import Path
from types import ModuleType

from torch import Tensor, nn


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers, on the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def write_weights(weights: dict[str, Tensor], file: Path) -> None:
    """Write tensors by name.

    Raises:
        ImportError: safetensors is not installed.
    """
    _safetensors().save_file(weights, file)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors by name.

    Raises:
        ImportError: safetensors is not installed.
    """
    weights: dict[str, Tensor] = _safetensors().load_file(file)
    return weights


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("a policy with networks is saved as safetensors: pip install safetensors") from error
    return safetensors.torch
