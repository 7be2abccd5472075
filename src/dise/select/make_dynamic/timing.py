"""Milliseconds of the model with the policy, beside the reference and the best single candidate."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from dise.integrate import Integrator
from dise.nn import NeuralODE
from dise.select.judging.profile import time_side_by_side
from dise.select.model.block import device_of
from dise.select.model.inputs import Inputs

TIMED = 5  # batches, of whose times the median is taken
MOST_SERVED = 60  # batches that policies are compared on
TURNS = 3  # times that a batch is served, of which the shortest counts
NOISE = 1.05  # times that differ by less are alike


@dataclass(frozen=True)
class Timing:
    """Milliseconds that the whole model takes per batch.

    Attributes:
        batch: samples per batch.
        policy, reference: with each of them.
        candidate: name of the best single candidate; None if there is none, or the policy is a single one.
        single: milliseconds with it.
    """

    batch: int
    policy: float
    reference: float
    candidate: str | None = None
    single: float | None = None

    def __str__(self) -> str:
        per = f"milliseconds per batch of {self.batch}"
        text = f"{self.policy:.2f} {per}, {self.reference:.2f} with the reference"
        if self.single is not None:
            text += f", {self.single:.2f} with {self.candidate}, the best single candidate"
        slower = []
        if self.policy > NOISE * self.reference:
            slower.append("the reference")
        if self.single is not None and self.policy > NOISE * self.single:
            slower.append(f"{self.candidate} for all samples")
        if slower:
            text += f"\nAt this batch size the policy is slower than {' and '.join(slower)}, on this machine."
        return text


def time_policy(
    model: nn.Module,
    block: NeuralODE,
    policy: Integrator,
    *,
    reference: Integrator,
    single: Integrator | None,
    batches: Sequence[Inputs],
) -> Timing | None:
    """Time the model on some batches with each integrator, in one run; None if the policy is the reference.

    Args:
        model: contains the block.
        block: the model's.
        policy: to time.
        reference: the integrator to compare with.
        single: the best single candidate, if there is one.
        batches: inputs, of which the first few are used; the first gives the batch size.
    """
    device = device_of(model)
    if policy is reference:
        return None
    inputs = [x.to(device) for x in batches if len(x) == len(batches[0])][:TIMED]
    integrators = {"policy": policy, "reference": reference}
    if single is not None and policy.chooses:
        integrators["single"] = single
    calls = {name: partial(_run, model, block, integrator) for name, integrator in integrators.items()}
    times = time_side_by_side(calls, inputs, device=device)
    name = str(single) if "single" in times else None
    return Timing(len(inputs[0]), times["policy"], times["reference"], name, times.get("single"))


def served_batches(parts: Sequence[Inputs], size: int) -> list[Inputs]:
    """At most MOST_SERVED batches of a size, of the samples in these parts, again from the first one if need be."""
    inputs = Inputs.concatenate(parts, "data")
    number = max(1, min(MOST_SERVED, len(inputs) // size))
    rows = torch.arange(number * size) % len(inputs)
    return [inputs.take(some) for some in rows.split(size)]


def time_served(
    model: nn.Module, block: NeuralODE, policies: Mapping[str, Integrator], batches: Sequence[Inputs]
) -> dict[str, float]:
    """Mean milliseconds of the model per batch with each policy; the mean, since only some batches have hard samples.

    The time of a batch is the shortest of several, for the load of the machine.

    Args:
        model: contains the block.
        block: gets the policies.
        policies: by name.
        batches: inputs, all of one size.
    """
    device = device_of(model)
    inputs = [x.to(device) for x in batches]

    def average(seconds: list[float]) -> float:
        return statistics.fmean(min(seconds[i :: len(inputs)]) for i in range(len(inputs)))

    calls = {name: partial(_run, model, block, policy) for name, policy in policies.items()}
    return time_side_by_side(calls, TURNS * inputs, device=device, average=average)


@torch.no_grad()
def _run(model: nn.Module, block: NeuralODE, integrator: Integrator, inputs: Inputs) -> None:
    with block.using(integrator), block.recording(throw=False):
        inputs.call(model)
