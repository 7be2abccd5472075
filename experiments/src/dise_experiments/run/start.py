"""Torch as a command's options ask for it."""

import torch

from dise_experiments.run.config import ExperimentError


def start(device: str, threads: int | None) -> str:
    """Set up torch; the torch device of Lightning's accelerator.

    Raises:
        ExperimentError: an unknown accelerator, or a GPU is asked for and there is none.
    """
    if device not in ("auto", "cpu", "gpu"):
        raise ExperimentError(f"device: there is no {device!r}; choose one of auto, cpu, gpu")
    if device == "gpu" and not torch.cuda.is_available():
        raise ExperimentError("device: no GPU that torch can use was found; use --device cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
