"""Outcomes of running a model with every candidate on every sample."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.integrate.annotations import Bool, Float, Inexact, Int, Shaped
from dise.integrate.argument_types import checked_arguments
from dise.integrate.exact import inner
from dise.nn import BlockSolve, NeuralODE
from dise.select.model.block import device_of, find_block
from dise.select.model.data import Data, as_batches
from dise.select.model.inputs import Inputs, concatenate_batches
from dise.select.model.rows import check_rows
from dise.select.model.run import run_model
from dise.select.model.states import channel_means, concatenate_state

TABLES = ("h0", "k1", "nfe", "output", "means", "failed")
MAX_CHANNELS = 256  # states with more channels have no channel means: they would need much memory


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of K candidates on N samples.

    Attributes:
        candidates: the K integrators.
        h0: [N, ...] states at t0; tuples and dicts as one tensor (`dise.select.concatenate_state`).
        k1: [N, ...] f(t0, h0), as one tensor too.
        nfe: [N, K] evaluations of f in a policy, with f(t0, h0) also for a candidate that does not need it.
        output: [N, K, ...] outputs of the model; NaN where the candidate failed.
        target: [N, ...] targets of the data; None if they have none.
        means: [N, K, D] channel means of the states at t1 (`dise.select.channel_means`); D is 0 if a state has more
            than MAX_CHANNELS channels.
        failed: [N, K] whether the candidate could not integrate the sample; None: no.
        conditions: [N, ...] each, the block's `sample_args`; left out if batches have them in different shapes.
    """

    candidates: tuple[Integrator, ...]
    h0: Inexact[Tensor, "N ..."]
    k1: Inexact[Tensor, "N ..."]
    nfe: Int[Tensor, "N K"]
    output: Shaped[Tensor, "N K ..."]
    target: Shaped[Tensor, "N ..."] | None
    means: Float[Tensor, "N K D"] | None = None
    failed: Bool[Tensor, "N K"] | None = None
    conditions: tuple[Tensor, ...] = ()

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


@checked_arguments
@torch.no_grad()
def run_candidates(
    model: nn.Module, data: Data, candidates: Sequence[Integrator], *, block: NeuralODE | str | None = None
) -> Outcomes:
    """Run the model with each candidate on all data.

    A candidate that cannot integrate a sample does not stop the run: its output for the sample is NaN.

    Args:
        model: contains a NeuralODE and calls it once; put it in evaluation mode first.
        data: batches of inputs or (inputs, target), of one input or several (see `dise.select.model.data.as_batches`).
        candidates: the K integrators.
        block: the NeuralODE or its name; default: the model's only one.

    Raises:
        ValueError: no candidates, data of another form, targets that are not tensors of one shape, no such block, or an
            f that mixes the samples of a batch.
    """
    if not candidates:
        raise ValueError("candidates: expected at least one integrator, got none")
    own, device = find_block(model, block), device_of(model)
    batches: list[Outcomes] = []
    for inputs, target in as_batches("data", data, model):
        inputs = inputs.to(device)
        if not batches:
            check_rows(model, own, inputs)
        batches.append(_run_batch(model, own, candidates, inputs, target))
    if len({batch.target is None for batch in batches}) > 1:
        raise ValueError("data: expected targets for all batches or for none")
    return _concatenate(batches)


def _run_batch(
    model: nn.Module, block: NeuralODE, candidates: Sequence[Integrator], inputs: Inputs, target: Tensor | None
) -> Outcomes:
    """Outcomes of one batch."""
    runs = [run_model(model, block, candidate, inputs) for candidate in candidates]
    solves = [_only(run.solves) for run in runs]
    first = solves[0]
    with block.using(inner(candidates[0])):  # in the precision of a policy, which evaluates k1 for all candidates
        k1 = block.first_stage(first.y0, t0=first.t0, args=first.args, sample_args=first.sample_args)
    nfe = torch.stack([solve.solution.nfe for solve in solves], 1)
    nfe += torch.tensor([not candidate.uses_first_stage for candidate in candidates], device=nfe.device)
    output = torch.stack([run.output for run in runs], 1)
    failed = torch.stack([run.failed for run in runs], 1)
    means = torch.stack([channel_means(solve.solution.y) for solve in solves], 1)
    means = means if means.shape[2] <= MAX_CHANNELS else means.new_zeros(*means.shape[:2], 0)
    h0, k1 = concatenate_state(first.y0), concatenate_state(k1)
    return Outcomes(tuple(candidates), h0, k1, nfe, output, target, means, failed, first.sample_args)


def _concatenate(batches: list[Outcomes]) -> Outcomes:
    """The outcomes of all batches, on the CPU."""

    def whole(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.cpu() for part in parts])

    tables: dict[str, Any] = {name: whole([getattr(batch, name) for batch in batches]) for name in TABLES}
    shapes = {tuple(condition.shape[1:] for condition in batch.conditions) for batch in batches}
    columns = zip(*(batch.conditions for batch in batches), strict=True) if len(shapes) == 1 else ()
    targets = [batch.target for batch in batches]
    target = None if targets[0] is None else concatenate_batches("data: expected targets", targets).cpu()
    return replace(batches[0], **tables, target=target, conditions=tuple(whole(column) for column in columns))


def _only(solves: list[BlockSolve]) -> BlockSolve:
    if len(solves) != 1:
        raise ValueError(f"model: expected one integration per forward pass, got {len(solves)}")
    return solves[0]
