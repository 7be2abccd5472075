"""Outcomes of running a model with every candidate on every sample."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.integrate.annotations import Float, Inexact, Int, Shaped
from dise.nn import BlockSolve, NeuralODE
from dise.select.model.block import device_of, find_block
from dise.select.model.states import channel_means, concatenate_state

MAX_CHANNELS = 256  # states with more channels have no channel means: they would need much memory


class Input(Protocol):
    """Input of a model: a tensor [B, ...], or an object of B samples with `len`, `device` and `to` like a tensor's."""

    @property
    def device(self) -> torch.device:
        """Device of the input."""
        ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str, /) -> Self:
        """The same input on another device."""
        ...


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of K candidates on N samples.

    Attributes:
        candidates: the K integrators.
        h0: [N, ...] states at t0; tuples and dicts as one tensor (`dise.select.concatenate_state`).
        k1: [N, ...] f(t0, h0), as one tensor too.
        nfe: [N, K] evaluations of f.
        output: [N, K, ...] outputs of the model.
        target: [N, ...] targets of the data.
        means: [N, K, D] channel means of the states at t1 (`dise.select.channel_means`); D is 0 if a state has more
            than MAX_CHANNELS channels.
    """

    candidates: tuple[Integrator, ...]
    h0: Inexact[Tensor, "N ..."]
    k1: Inexact[Tensor, "N ..."]
    nfe: Int[Tensor, "N K"]
    output: Shaped[Tensor, "N K ..."]
    target: Shaped[Tensor, "N ..."]
    means: Float[Tensor, "N K D"] | None = None

    def take_candidates(self, candidates: Sequence[int]) -> "Outcomes":
        """Outcomes of some of the candidates, given by their indices."""
        columns = list(candidates)
        return replace(
            self,
            candidates=tuple(self.candidates[i] for i in columns),
            nfe=self.nfe[:, columns],
            output=self.output[:, columns],
            means=None if self.means is None else self.means[:, columns],
        )

    def __len__(self) -> int:
        return len(self.target)


@torch.no_grad()
def run_candidates(
    model: nn.Module, data: Iterable[tuple[Input, Tensor]], candidates: Sequence[Integrator]
) -> Outcomes:
    """Run the model with each candidate on all data.

    Args:
        model: contains one NeuralODE and calls it once; put it in evaluation mode first.
        data: batches (x, target).
        candidates: the K integrators.

    Raises:
        ValueError: no candidates, no data, or a model without exactly one NeuralODE.
    """
    if not candidates:
        raise ValueError("candidates: expected at least one integrator, got none")
    block, device = find_block(model), device_of(model)
    batches = [
        [column.cpu() for column in (*_run_batch(model, block, candidates, x.to(device)), target)] for x, target in data
    ]
    if not batches:
        raise ValueError("data: expected batches (x, target), got none")
    h0, k1, nfe, output, means, target = (torch.cat(column) for column in zip(*batches, strict=True))
    return Outcomes(tuple(candidates), h0, k1, nfe, output, target, means)


def _run_batch(
    model: nn.Module, block: NeuralODE, candidates: Sequence[Integrator], x: Input
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h0, k1, nfe, output and means of one batch; see `Outcomes`."""
    runs = [_run(model, block, candidate, x) for candidate in candidates]
    first = runs[0][0]
    k1 = block.first_stage(first.y0, t0=first.t0, args=first.args, sample_args=first.sample_args)
    solutions = [record.solution for record, _ in runs]
    nfe = torch.stack([solution.nfe for solution in solutions], 1)
    output = torch.stack([output for _, output in runs], 1)
    means = torch.stack([channel_means(solution.y) for solution in solutions], 1)
    means = means if means.shape[2] <= MAX_CHANNELS else means.new_zeros(*means.shape[:2], 0)
    return concatenate_state(first.y0), concatenate_state(k1), nfe, output, means


def _run(model: nn.Module, block: NeuralODE, candidate: Integrator, x: Input) -> tuple[BlockSolve, Tensor]:
    """The solve of the block and the output [B, ...] of the model, with one candidate."""
    with block.using(candidate), block.recording() as records:
        output = model(x)
    if len(records) != 1:
        raise ValueError(f"model: expected one integration per forward pass, got {len(records)}")
    return records[0], output
