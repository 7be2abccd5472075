"""Draws of posteriors: in closed form where there is one, else those of the benchmark."""

from pathlib import Path

import torch
from torch import Tensor

from dise_experiments.flows.simulators.gaussian_linear import VARIANCE
from dise_experiments.flows.simulators.gaussian_mixture import NARROW, WIDE
from dise_experiments.flows.simulators.reference import observation, reference_posterior


def posterior(task: str, index: int, number: int, generator: torch.Generator, data_dir: Path | None = None) -> Tensor:
    """Draws θ [number, D] of the posterior of an observation.

    Args:
        task: of the benchmark.
        index: of the observation, from 1.
        number: of draws; at most the benchmark's 10,000 where there is no closed form.
        generator: of the draws.
        data_dir: see `reference_posterior`.

    Raises:
        ValueError: there is no such observation.
        DataError: the task has no closed form, and the benchmark has no such draws under `data_dir`.
    """
    if task == "gaussian_linear":
        return gaussian_linear(observation(task, index), number, generator)
    if task == "gaussian_mixture":
        return gaussian_mixture(observation(task, index), number, generator)
    drawn = reference_posterior(task, index, data_dir)
    return drawn[torch.randperm(len(drawn), generator=generator)[:number]]


def gaussian_linear(x: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """N(x / 2, 0.05): prior and noise have the same variance, 0.1."""
    return x / 2 + (VARIANCE / 2) ** 0.5 * torch.randn((number, len(x)), generator=generator)


def gaussian_mixture(x: Tensor, number: int, generator: torch.Generator, *, bound: float = 10.0) -> Tensor:
    """The wide and the narrow normal distribution around x, within the uniform prior's bounds, by rejection."""
    kept = torch.empty(0, len(x))
    while len(kept) < number:
        narrow = torch.rand((number, 1), generator=generator) < 0.5
        drawn = x + torch.where(narrow, NARROW, WIDE) * torch.randn((number, len(x)), generator=generator)
        kept = torch.cat([kept, drawn[(drawn.abs() <= bound).all(1)]])
    return kept[:number]
