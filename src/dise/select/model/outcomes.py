"""Outcomes of running a model with every candidate on every sample."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.integrate.annotations import Bool, Float, Inexact, Int, Shaped
from dise.nn import BlockSolve, NeuralODE
from dise.select.model.block import device_of, find_block
from dise.select.model.data import Data, Input, as_batches
from dise.select.model.rows import check_rows
from dise.select.model.run import run_model
from dise.select.model.states import channel_means, concatenate_state

MAX_CHANNELS = 256  # states with more channels have no channel means: they would need much memory


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of K candidates on N samples.

    Attributes:
        candidates: the K integrators.
        h0: [N, ...] states at t0; tuples and dicts as one tensor (`dise.select.concatenate_state`).
        k1: [N, ...] f(t0, h0), as one tensor too.
        nfe: [N, K] evaluations of f.
        output: [N, K, ...] outputs of the model; NaN where the candidate failed.
        target: [N, ...] targets of the data; None if they have none.
        means: [N, K, D] channel means of the states at t1 (`dise.select.channel_means`); D is 0 if a state has more
            than MAX_CHANNELS channels.
        failed: [N, K] whether the candidate could not integrate the sample; None: no.
    """

    candidates: tuple[Integrator, ...]
    h0: Inexact[Tensor, "N ..."]
    k1: Inexact[Tensor, "N ..."]
    nfe: Int[Tensor, "N K"]
    output: Shaped[Tensor, "N K ..."]
    target: Shaped[Tensor, "N ..."] | None
    means: Float[Tensor, "N K D"] | None = None
    failed: Bool[Tensor, "N K"] | None = None

    def take_candidates(self, candidates: Sequence[int]) -> "Outcomes":
        """Outcomes of some of the candidates, given by their indices."""
        columns = list(candidates)
        return replace(
            self,
            candidates=tuple(self.candidates[i] for i in columns),
            nfe=self.nfe[:, columns],
            output=self.output[:, columns],
            means=None if self.means is None else self.means[:, columns],
            failed=None if self.failed is None else self.failed[:, columns],
        )

    def __len__(self) -> int:
        return len(self.nfe)


@torch.no_grad()
def run_candidates(
    model: nn.Module, data: Data, candidates: Sequence[Integrator], *, block: NeuralODE | str | None = None
) -> Outcomes:
    """Run the model with each candidate on all data.

    A candidate that cannot integrate a sample does not stop the run: its output for the sample is NaN.

    Args:
        model: contains a NeuralODE and calls it once; put it in evaluation mode first.
        data: batches (x, target), or x alone (see `dise.select.model.data.as_batches`).
        candidates: the K integrators.
        block: the NeuralODE or its name; default: the model's only one.

    Raises:
        ValueError: no candidates, data of another form, no such block, or an f that mixes the samples of a batch.
    """
    if not candidates:
        raise ValueError("candidates: expected at least one integrator, got none")
    own, device = find_block(model, block), device_of(model)
    batches: list[tuple[tuple[Tensor, ...], Tensor | None]] = []
    for x, target in as_batches("data", data):
        x = x.to(device)
        if not batches:
            check_rows(model, own, x)
        batches.append((_run_batch(model, own, candidates, x), target))
    targets = [target.cpu() for _, target in batches if target is not None]
    if len(targets) not in (0, len(batches)):
        raise ValueError("data: expected targets for all batches or for none")
    h0, k1, nfe, output, means, failed = (
        torch.cat([part.cpu() for part in column]) for column in zip(*(parts for parts, _ in batches), strict=True)
    )
    return Outcomes(
        tuple(candidates), h0, k1, nfe, output, torch.cat(targets) if targets else None, means=means, failed=failed
    )


def _run_batch(
    model: nn.Module, block: NeuralODE, candidates: Sequence[Integrator], x: Input
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h0, k1, nfe, output, means and failed of one batch; see `Outcomes`."""
    runs = [run_model(model, block, candidate, x) for candidate in candidates]
    solves = [_only(run.solves) for run in runs]
    first = solves[0]
    k1 = block.first_stage(first.y0, t0=first.t0, args=first.args, sample_args=first.sample_args)
    nfe = torch.stack([solve.solution.nfe for solve in solves], 1)
    output = torch.stack([run.output for run in runs], 1)
    failed = torch.stack([run.failed for run in runs], 1)
    means = torch.stack([channel_means(solve.solution.y) for solve in solves], 1)
    means = means if means.shape[2] <= MAX_CHANNELS else means.new_zeros(*means.shape[:2], 0)
    return concatenate_state(first.y0), concatenate_state(k1), nfe, output, means, failed


def _only(solves: list[BlockSolve]) -> BlockSolve:
    if len(solves) != 1:
        raise ValueError(f"model: expected one integration per forward pass, got {len(solves)}")
    return solves[0]
