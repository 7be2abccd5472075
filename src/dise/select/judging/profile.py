"""Measured time as the price of a candidate, instead of the paper's evaluations of f."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dise.integrate import Euler, Integrator
from dise.integrate.argument_types import checked_arguments
from dise.integrate.problem.state import Layout
from dise.nn import BlockSolve, NeuralODE
from dise.select.judging.costs import Costs
from dise.select.model.block import device_of, find_block
from dise.select.model.data import Data, as_batches


@dataclass(frozen=True)
class Profile:
    """Measured time of each candidate on one machine.

    Attributes:
        candidates: the K integrators.
        batches: the S batch sizes, in rising order.
        milliseconds: [S, K] median time to integrate a batch of that size.
        nfe: [S, K] mean NFE per sample in those batches.
        device: device of the measurement, e.g. "cpu, 2 threads".
    """

    candidates: tuple[Integrator, ...]
    batches: tuple[int, ...]
    milliseconds: Tensor
    nfe: Tensor
    device: str

    def price(self, nfe: Tensor, batch: int) -> Tensor:
        """Milliseconds per sample in batches of this size.

        A candidate's time is divided among the samples in proportion to their NFE, so with an adaptive candidate a hard
        sample costs more.

        Args:
            nfe: [N, K] NFE of each sample and candidate.
            batch: one of the measured sizes.

        Returns:
            [N, K].

        Raises:
            ValueError: a size that was not measured.
        """
        if batch not in self.batches:
            raise ValueError(f"batch: expected one of the measured sizes {self.batches}, got {batch!r}")
        row = self.batches.index(batch)
        return (self.milliseconds[row] / batch / self.nfe[row]).to(nfe.device) * nfe

    def apply(self, costs: Costs, batch: int) -> Costs:
        """Costs with measured milliseconds as Δ, for batches of this size.

        Raises:
            ValueError: costs of other candidates, or a size that was not measured.
        """
        if costs.candidates != self.candidates:
            expected, got = ([str(c) for c in candidates] for candidates in (self.candidates, costs.candidates))
            raise ValueError(f"costs: expected those of {expected}, got {got}")
        return replace(costs, milliseconds=self.price(costs.nfe, batch))


class _InitialStates(NamedTuple):
    """Initial states, spans and further arguments of f, of n samples of a block."""

    layout: Layout
    args: tuple[Any, ...]  # that all samples share
    y0: Tensor  # [n, F]
    t0: Tensor  # [n]
    t1: Tensor  # [n]
    sample_args: tuple[Tensor, ...]  # [n, ...] each

    @property
    def device(self) -> torch.device:
        return self.t0.device

    def rows(self, start: int, size: int) -> "_InitialStates":
        """`size` samples from `start` on, beginning again after the last."""
        index = (torch.arange(start, start + size) % len(self.t0)).to(self.device)
        y0, t0, t1, *sample_args = (x[index] for x in (self.y0, self.t0, self.t1, *self.sample_args))
        return _InitialStates(self.layout, self.args, y0, t0, t1, tuple(sample_args))


@checked_arguments
@torch.no_grad()
def profile_candidates(
    model: nn.Module,
    data: Data,
    candidates: Sequence[Integrator],
    *,
    batches: Sequence[int] = (1, 32, 100),
    repeats: int = 20,
    block: NeuralODE | str | None = None,
) -> Profile:
    """Measure the time that each candidate takes to integrate batches of the data, on the model's device.

    Only the model's block is timed. The machine should be otherwise idle.

    Args:
        model: contains a NeuralODE; put it in evaluation mode first.
        data: batches of inputs or (inputs, target), with at least as many samples as the largest batch size.
        candidates: the K integrators.
        batches: batch sizes to measure.
        repeats: number of measurements, of which the median is used.
        block: the NeuralODE or its name; default: the model's only one.

    Raises:
        ValueError: no candidates, sizes or repeats, or too few samples.
    """
    if not candidates or not batches or repeats < 1 or min(batches) < 1:
        raise ValueError(
            "candidates, batches, repeats: expected at least one integrator, size and repetition, got "
            f"{len(candidates)}, {tuple(batches)} and {repeats}"
        )
    own, sizes = find_block(model, block), tuple(sorted(set(batches)))
    starts = _initial_states(model, own, data, max(sizes))
    times, evaluations = [], []
    for size in sizes:
        inputs = [starts.rows(turn * size, size) for turn in range(repeats)]
        nfe: list[list[Tensor]] = [[] for _ in candidates]
        calls = {str(index): _solver(own, candidate, nfe[index]) for index, candidate in enumerate(candidates)}
        times.append(list(time_side_by_side(calls, inputs, device=starts.device).values()))
        evaluations.append([float(torch.cat(column).double().mean()) for column in nfe])
    device = f"cpu, {torch.get_num_threads()} threads" if starts.device.type == "cpu" else str(starts.device)
    return Profile(tuple(candidates), sizes, torch.tensor(times), torch.tensor(evaluations), device)


def _initial_states(model: nn.Module, block: NeuralODE, data: Data, number: int) -> _InitialStates:
    """Initial states and spans of the model's block for at least `number` samples."""
    count, device = 0, device_of(model)
    with block.using(Euler()), block.recording(throw=False) as records:
        for inputs, _ in as_batches("data", data, model):
            inputs.to(device).call(model)
            count += len(inputs)
            if count >= number:
                break
    if count < number:
        raise ValueError(f"data: expected at least {number} samples for the largest batch, got {count}")
    layout = Layout.of(records[0].y0, batched=True)
    rows = ((layout.pack(record.y0), _begin(record), _end(record), *record.sample_args) for record in records)
    y0, t0, t1, *sample_args = (torch.cat(column) for column in zip(*rows, strict=True))
    return _InitialStates(layout, records[0].args, y0, t0, t1, tuple(sample_args))


def _begin(record: BlockSolve) -> Tensor:
    return torch.as_tensor(record.t0).to(record.solution.t).expand(record.solution.t.shape)


def _end(record: BlockSolve) -> Tensor:
    return torch.as_tensor(record.t1).to(record.solution.t).expand(record.solution.t.shape)


def _solver(block: NeuralODE, candidate: Integrator, nfe: list[Tensor]) -> Callable[[_InitialStates], None]:
    """A call that integrates initial states and appends the samples' NFE to `nfe`."""

    def run(start: _InitialStates) -> None:
        with block.using(candidate):
            solution = block.solve(
                start.layout.unpack(start.y0),
                t0=start.t0,
                t1=start.t1,
                args=start.args,
                sample_args=start.sample_args,
                throw=False,
            )
            nfe.append(solution.nfe)

    return run


@torch.no_grad()
def time_side_by_side(
    calls: Mapping[str, Callable[[Any], Any]],
    inputs: Sequence[Any],
    *,
    device: torch.device | None = None,
    average: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Median milliseconds of each call per input, all measured in one run.

    The calls take turns on each input, so other load on the machine affects all of them. Their order is random for each
    input, because the contents of the caches depend on the previous call.

    Args:
        calls: functions of one input.
        inputs: inputs of the calls, e.g. batches; the first one is also used to warm up.
        device: device that the calls compute on, to be synchronized; default: the CPU.
        average: of a call's times, one per input in their order, instead of the median.
    """
    finish = torch.cuda.synchronize if device is not None and device.type == "cuda" else lambda device: None
    for call in calls.values():
        call(inputs[0])
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    draw = random.Random(0)
    for x in inputs:
        for name in draw.sample(list(calls), len(calls)):
            finish(device)
            start = time.perf_counter()
            calls[name](x)
            finish(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * average(values) for name, values in seconds.items()}
