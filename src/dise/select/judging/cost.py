"""What each candidate costs on each sample: running them all, and Eq. 4 and 5."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.nn import BlockSolve, NeuralODE
from dise.select.policies.dynamic import channel_means, joined

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
class CostRule(ABC):
    """What a candidate costs on a sample: c = price^α where it is adequate, M^α where it is not.

    Args:
        alpha: exponent, positive.
        M: penalty, larger than any price.
    """

    alpha: float = 0.3
    M: float = 1000.0

    def __post_init__(self) -> None:
        for name in ("alpha", "M"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}: expected a positive number, got {value!r}")

    @abstractmethod
    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """[N, K] task error Γ of the model's outputs [N, K, ...] for targets [N, ...]; smaller is better."""

    @abstractmethod
    def adequate(self, error: Tensor) -> Tensor:
        """[N, K] bool, whether an error is small enough."""

    @abstractmethod
    def price(self, delta: Tensor, error: Tensor) -> Tensor:
        """[N, K] what an adequate candidate costs, before the exponent."""

    def __call__(self, delta: Tensor, error: Tensor) -> Tensor:
        """Costs [N, K].

        Args:
            delta: [N, K] Δ, each candidate's NFE, or its measured time.
            error: [N, K] Γ.

        Raises:
            ValueError: M is not larger than the largest price: being inadequate would be cheaper than being adequate.
        """
        adequate, price = self.adequate(error), self.price(delta, error).float()
        largest = float(price[adequate].max()) if adequate.any() else 0.0
        if largest >= self.M:
            raise ValueError(
                f"M: expected more than the largest price of an adequate result, {largest:g}, got {self.M:g}"
            )
        return torch.where(adequate, price, self.M) ** self.alpha


@dataclass(frozen=True)
class ClassificationCost(CostRule):
    """Eq. 4: Δ^α where the prediction is right, M^α where it is not."""

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """[N, K] 1 where logits [N, K, C] do not predict labels [N], else 0."""
        return (output.argmax(-1) != target[:, None]).float()

    def adequate(self, error: Tensor) -> Tensor:
        """[N, K] whether the prediction is right."""
        return error == 0

    def price(self, delta: Tensor, error: Tensor) -> Tensor:
        """Δ."""
        return delta


@dataclass(frozen=True)
class BinaryCost(ClassificationCost):
    """Eq. 4 for one logit: an answer is yes if its probability is above the threshold.

    Args:
        threshold: in (0, 1). At 1/2 a rare class is hardly ever answered, so take the class's prevalence for it.
    """

    threshold: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold: expected a number between 0 and 1, got {self.threshold!r}")

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """[N, K] 1 where logits [N, K] do not give the answers [N], 0 or 1; else 0."""
        return ((output.sigmoid() > self.threshold) != (target[:, None] > 0)).float()


@dataclass(frozen=True)
class TaskErrorCost(CostRule):
    """Eq. 5: (Δ·Γ)^α where Γ ≤ β, M^α elsewhere. Mirrored, where larger is better: (Δ/Γ)^α where Γ ≥ β.

    Args:
        task_error: (output [N, K, ...], target [N, ...]) → Γ [N, K]. Where smaller is better, at least 0: of something
            that can be negative, such as a likelihood, which a coarse integrator can also overstate, take the distance
            to what the reference integrator gives. Where larger is better, any number.
        beta: β > 0, the largest (mirrored: smallest) Γ that is adequate.
        resolution: Γ that is better than it counts as it: otherwise Γ → 0 makes the dearest candidate look free. As
            large as β, NFE alone decides among adequate candidates.
        larger_is_better: mirror the equation.
    """

    task_error: Callable[[Tensor, Tensor], Tensor] = field(kw_only=True)
    beta: float = field(kw_only=True)
    resolution: float = field(kw_only=True)
    larger_is_better: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        worst, best = (self.beta, self.resolution) if self.larger_is_better else (self.resolution, self.beta)
        if not 0 < worst <= best < float("inf"):
            order = "beta <= resolution" if self.larger_is_better else "resolution <= beta"
            raise ValueError(
                f"beta, resolution: expected 0 < {order}, got beta={self.beta!r}, resolution={self.resolution!r}"
            )

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """Γ."""
        error = self.task_error(output, target)
        if not self.larger_is_better and error.numel() and not (error >= 0).all():
            raise ValueError(f"task_error: expected errors of at least 0, got {float(error.min())}")
        return error

    def adequate(self, error: Tensor) -> Tensor:
        """Γ ≤ β, or Γ ≥ β."""
        return error >= self.beta if self.larger_is_better else error <= self.beta

    def price(self, delta: Tensor, error: Tensor) -> Tensor:
        """Δ·Γ, or Δ/Γ; of an inadequate candidate it means nothing."""
        if self.larger_is_better:
            return delta / error.clamp(min=self.beta, max=self.resolution)
        return delta * error.clamp(min=self.resolution)


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


@dataclass(frozen=True)
class Costs:
    """Costs of every candidate on every sample, with what a selector may look at.

    Attributes:
        candidates: the K integrators.
        h0, k1: [N, ...] states at t0 and f(t0, h0).
        nfe: [N, K].
        error: [N, K] task error Γ.
        rule: what makes `cost` and `adequate` of `delta` and `error`.
        milliseconds: [N, K] measured time, which is Δ if it is there; else the NFE is.
    """

    candidates: tuple[Integrator, ...]
    h0: Tensor
    k1: Tensor
    nfe: Tensor
    error: Tensor
    rule: CostRule
    milliseconds: Tensor | None = None

    @classmethod
    def of(cls, outcomes: Outcomes, rule: CostRule) -> "Costs":
        """Costs of outcomes by a rule."""
        error = rule.error(outcomes.output, outcomes.target)
        return cls(outcomes.candidates, outcomes.h0, outcomes.k1, outcomes.nfe, error, rule)

    @property
    def delta(self) -> Tensor:
        """[N, K] Δ: measured milliseconds, or the NFE."""
        return self.nfe if self.milliseconds is None else self.milliseconds

    @cached_property
    def adequate(self) -> Tensor:
        """[N, K] bool."""
        return self.rule.adequate(self.error)

    @cached_property
    def cost(self) -> Tensor:
        """[N, K], Eq. 4 or 5."""
        return self.rule(self.delta, self.error)

    def among(self, candidates: Sequence[int]) -> "Costs":
        """The costs of some of the candidates, given by their indices."""
        columns = list(candidates)
        tables = {name: table[:, columns] for name, table in self._tables.items()}
        return replace(self, candidates=tuple(self.candidates[i] for i in columns), **tables)

    def take(self, rows: Tensor) -> "Costs":
        """The costs of some of the samples."""
        tables = {name: table[rows] for name, table in self._tables.items()}
        return replace(self, h0=self.h0[rows], k1=self.k1[rows], **tables)

    @property
    def _tables(self) -> dict[str, Any]:
        """The tensors [N, K]."""
        tables = {"nfe": self.nfe, "error": self.error, "milliseconds": self.milliseconds}
        return {name: table for name, table in tables.items() if table is not None}

    def states(self, size: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
        """h0 and k1, `size` samples at a time: what a selector is called with."""
        return zip(self.h0.split(size), self.k1.split(size), strict=True)

    def with_penalty(self, M: float, alpha: float | None = None) -> "Costs":
        """The costs with another penalty M, and another exponent α if it is given."""
        return replace(self, rule=replace(self.rule, M=M, alpha=self.rule.alpha if alpha is None else alpha))

    def __len__(self) -> int:
        return len(self.nfe)


def has_block(model: nn.Module) -> bool:
    """Whether the model has a NeuralODE."""
    return any(isinstance(module, NeuralODE) for module in model.modules())


def find_block(model: nn.Module) -> NeuralODE:
    """The model's one NeuralODE.

    Raises:
        ValueError: there is none, or more than one.
    """
    blocks = [module for module in model.modules() if isinstance(module, NeuralODE)]
    if len(blocks) != 1:
        raise ValueError(f"model: expected one dise.NeuralODE inside, found {len(blocks)}")
    return blocks[0]


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are, or its buffers; the CPU if it has none."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


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


def collect_costs(
    model: nn.Module,
    data: Iterable[tuple[Input, Tensor]],
    candidates: Sequence[Integrator],
    rule: CostRule | None = None,
) -> Costs:
    """Costs (by default Eq. 4's) of every candidate on every sample of the data; arguments as of `run_candidates`.

    Take held-out data: on the data that the model was trained on, nearly every prediction is right with every
    candidate, so the costs hardly vary (the paper takes training data).
    """
    return Costs.of(run_candidates(model, data, candidates), rule or ClassificationCost())
