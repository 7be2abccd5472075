"""What every candidate did on every sample."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.nn import BlockSolve, NeuralODE
from dise.select.model.block import device_of, find_block
from dise.select.model.states import channel_means, joined

MOST_CHANNELS = 256  # of a state, whose means are kept for each candidate


class Input(Protocol):
    """What a model is called on: a tensor [B, ...], or whatever else has B rows and moves between devices alike."""

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str, /) -> Self:
        """The same on another device."""
        ...


@dataclass(frozen=True)
class Outcomes:
    """What every candidate did on every sample.

    Attributes:
        candidates: the K integrators.
        h0: [N, ...] states at t0; of a tuple, its tensors joined (`dise.select.joined`).
        k1: [N, ...] f(t0, h0), likewise.
        nfe: [N, K].
        output: [N, K, ...] the model's outputs.
        target: [N, ...] the data's targets.
        means: [N, K, D] over space of the channels of the states at t1, [N, D, ...] (`dise.select.channel_means`);
            D is 0 where there are more than MOST_CHANNELS, as of a large flat state.
    """

    candidates: tuple[Integrator, ...]
    h0: Tensor
    k1: Tensor
    nfe: Tensor
    output: Tensor
    target: Tensor
    means: Tensor | None = None

    def among(self, candidates: Sequence[int]) -> "Outcomes":
        """What some of the candidates did, given by their indices."""
        columns = list(candidates)
        chosen = tuple(self.candidates[i] for i in columns)
        means = None if self.means is None else self.means[:, columns]
        return replace(self, candidates=chosen, nfe=self.nfe[:, columns], output=self.output[:, columns], means=means)

    def __len__(self) -> int:
        return len(self.target)


@torch.no_grad()
def run_candidates(
    model: nn.Module, data: Iterable[tuple[Input, Tensor]], candidates: Sequence[Integrator]
) -> Outcomes:
    """Run the model with each candidate on all data.

    Args:
        model: contains one NeuralODE, which it calls once; put it in evaluation mode before.
        data: batches (x, target).
        candidates: integrators, the K choices.

    Raises:
        ValueError: no candidates, no data, or a model without one NeuralODE.
    """
    if not candidates:
        raise ValueError("candidates: expected at least one integrator, got none")
    block = find_block(model)
    device = device_of(model)
    columns: dict[str, list[Tensor]] = {name: [] for name in ("h0", "k1", "nfe", "output", "target", "means")}
    for x, target in data:
        runs = [_run(model, block, candidate, x.to(device)) for candidate in candidates]
        first = runs[0][0]
        k1 = block.first_stage(first.y0, t0=first.t0)
        solutions = [record.solution for record, _ in runs]
        nfe = torch.stack([solution.nfe for solution in solutions], 1)
        output = torch.stack([output for _, output in runs], 1)
        means = torch.stack([channel_means(solution.y) for solution in solutions], 1)
        means = means if means.shape[2] <= MOST_CHANNELS else means.new_zeros(*means.shape[:2], 0)
        row = (joined(first.y0), joined(k1), nfe, output, target, means)
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value.cpu())
    if not columns["h0"]:
        raise ValueError("data: expected batches (x, target), got none")
    return Outcomes(candidates=tuple(candidates), **{name: torch.cat(column) for name, column in columns.items()})


def _run(model: nn.Module, block: NeuralODE, candidate: Integrator, x: Input) -> tuple[BlockSolve, Tensor]:
    """The integration, and the output [B, ...], of the model with this candidate."""
    with block.using(candidate), block.recording() as records:
        output = model(x)
    if len(records) != 1:
        raise ValueError(f"model: expected one integration a forward pass, got {len(records)}")
    return records[0], output
