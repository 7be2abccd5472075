"""What each candidate costs on each sample: running them all, and Eq. 4."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.nn import NeuralODE


@dataclass(frozen=True)
class ClassificationCost:
    """Eq. 4: Δ^α where the prediction is right, M^α where it is not; Δ is the candidate's NFE.

    Args:
        alpha: exponent, positive.
        M: penalty, larger than any NFE.
    """

    alpha: float = 0.3
    M: float = 1000.0

    def __post_init__(self) -> None:
        for name in ("alpha", "M"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}: expected a positive number, got {value!r}")

    def __call__(self, nfe: Tensor, adequate: Tensor) -> Tensor:
        """Costs [N, K].

        Args:
            nfe: [N, K].
            adequate: [N, K] bool, whether the candidate's prediction is right.

        Raises:
            ValueError: M is not larger than the largest NFE: being wrong would be cheaper than being right.
        """
        if nfe.numel() and nfe.max() >= self.M:
            raise ValueError(f"M: expected more than the largest NFE, {int(nfe.max())}, got {self.M:g}")
        penalty = torch.tensor(self.M, dtype=torch.float32, device=nfe.device)
        return torch.where(adequate, nfe.float(), penalty) ** self.alpha

    def adequate(self, output: Tensor, target: Tensor) -> Tensor:
        """[N, K] whether logits [N, K, C] predict labels [N]."""
        return output.argmax(-1) == target[:, None]


@dataclass(frozen=True)
class Outcomes:
    """What every candidate did on every sample.

    Attributes:
        candidates: the K integrators.
        h0: [N, ...] states at t0.
        k1: [N, ...] f(t0, h0).
        nfe: [N, K].
        output: [N, K, ...] the model's outputs.
        target: [N, ...] the data's targets.
    """

    candidates: tuple[Integrator, ...]
    h0: Tensor
    k1: Tensor
    nfe: Tensor
    output: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class Costs:
    """Costs of every candidate on every sample, with what a selector may look at.

    Attributes:
        candidates: the K integrators.
        h0, k1: [N, ...] states at t0 and f(t0, h0).
        nfe: [N, K].
        adequate: [N, K] bool.
        cost: [N, K], Eq. 4.
        rule: what made `cost` of `nfe` and `adequate`.
    """

    candidates: tuple[Integrator, ...]
    h0: Tensor
    k1: Tensor
    nfe: Tensor
    adequate: Tensor
    cost: Tensor
    rule: ClassificationCost

    @classmethod
    def of(cls, outcomes: Outcomes, rule: ClassificationCost) -> "Costs":
        """Costs of outcomes by a rule."""
        adequate = rule.adequate(outcomes.output, outcomes.target)
        cost = rule(outcomes.nfe, adequate)
        return cls(outcomes.candidates, outcomes.h0, outcomes.k1, outcomes.nfe, adequate, cost, rule)

    def first(self, number: int) -> "Costs":
        """The costs of the first `number` candidates alone."""
        columns = {name: getattr(self, name)[:, :number] for name in ("nfe", "adequate", "cost")}
        return replace(self, candidates=self.candidates[:number], **columns)

    def __len__(self) -> int:
        return len(self.cost)


def find_block(model: nn.Module) -> NeuralODE:
    """The model's one NeuralODE.

    Raises:
        ValueError: there is none, or more than one.
    """
    blocks = [module for module in model.modules() if isinstance(module, NeuralODE)]
    if len(blocks) != 1:
        raise ValueError(f"model: expected one dise.NeuralODE inside, found {len(blocks)}")
    return blocks[0]


@torch.no_grad()
def run_candidates(
    model: nn.Module, data: Iterable[tuple[Tensor, Tensor]], candidates: Sequence[Integrator]
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
    device = next(model.parameters()).device
    columns: dict[str, list[Tensor]] = {name: [] for name in ("h0", "k1", "nfe", "output", "target")}
    for x, target in data:
        runs = [_run(model, block, candidate, x.to(device)) for candidate in candidates]
        h0 = runs[0][0]
        row = (h0, block.first_stage(h0), *(torch.stack([run[i] for run in runs], 1) for i in (1, 2)), target)
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value.cpu())
    if not columns["h0"]:
        raise ValueError("data: expected batches (x, target), got none")
    return Outcomes(candidates=tuple(candidates), **{name: torch.cat(column) for name, column in columns.items()})


def _run(model: nn.Module, block: NeuralODE, candidate: Integrator, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Start [B, ...], NFE [B] and output [B, ...] of the model with this candidate."""
    with block.using(candidate), block.recording() as records:
        output = model(x)
    if len(records) != 1:
        raise ValueError(f"model: expected one integration a forward pass, got {len(records)}")
    if not isinstance(records[0].y0, Tensor):
        raise TypeError("model: selection takes a state that is one tensor, got a tuple")
    return records[0].y0, records[0].solution.nfe, output


def collect_costs(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]],
    candidates: Sequence[Integrator],
    rule: ClassificationCost | None = None,
) -> Costs:
    """Eq. 4's costs of every candidate on every sample of the data; arguments as of `run_candidates`.

    Take held-out data: on the data that the model was trained on, nearly every prediction is right with every
    candidate, so the costs hardly vary (the paper takes training data).
    """
    return Costs.of(run_candidates(model, data, candidates), rule or ClassificationCost())
