"""Costs of every candidate on every sample."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.integrate.annotations import Float, Inexact, Num
from dise.integrate.argument_types import checked_arguments
from dise.nn import NeuralODE
from dise.select.judging.rules import ClassificationCost, CostRule
from dise.select.model.data import Data
from dise.select.model.finite import non_finite_loss
from dise.select.model.outcomes import Outcomes, run_candidates
from dise.select.policies.dynamic import selector_inputs


@checked_arguments
@dataclass(frozen=True)
class Costs:
    """Costs of K candidates on N samples, with the inputs of a selector.

    Attributes:
        candidates: the K integrators.
        h0, k1: [N, ...] states at t0, and f(t0, h0).
        nfe: [N, K] evaluations of f.
        error: [N, K] task error Γ; NaN, which is never adequate, where the last candidate has a finite output and
            another has none, or fails.
        rule: cost rule, which computes `cost` and `adequate` from `delta` and `error`.
        milliseconds: [N, K] measured time. If given, it is Δ; otherwise the NFE is.
        conditions: [N, ...] each, the block's `sample_args`, for selectors that ask for them.
    """

    candidates: tuple[Integrator, ...]
    h0: Inexact[Tensor, "N ..."]
    k1: Inexact[Tensor, "N ..."]
    nfe: Num[Tensor, "N K"]
    error: Num[Tensor, "N K"]
    rule: CostRule
    milliseconds: Float[Tensor, "N K"] | None = None
    conditions: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, outcomes: Outcomes, rule: CostRule) -> "Costs":
        """Costs of outcomes by a cost rule.

        Raises:
            ValueError: the rule needs targets, and the data have none.
        """
        output, failed = outcomes.output, outcomes.failed
        lost = non_finite_loss(output, output[:, -1:], leading=2)
        if failed is not None:
            lost |= failed & ~failed[:, -1:]
        error = rule.error(output, outcomes.target).masked_fill(lost, torch.nan)
        states = (outcomes.h0, outcomes.k1)
        return cls(outcomes.candidates, *states, outcomes.nfe, error, rule, conditions=outcomes.conditions)

    @property
    def delta(self) -> Tensor:
        """[N, K] Δ: measured milliseconds, or the NFE."""
        return self.nfe if self.milliseconds is None else self.milliseconds

    @cached_property
    def adequate(self) -> Tensor:
        """[N, K] bool, whether each result is adequate."""
        return self.rule.adequate(self.error)

    @cached_property
    def cost(self) -> Tensor:
        """[N, K] costs by Eq. 4 or 5."""
        return self.rule(self.delta, self.error)

    def take_candidates(self, candidates: Sequence[int]) -> "Costs":
        """Costs of some of the candidates, given by their indices."""
        columns = list(candidates)
        tables = {name: table[:, columns] for name, table in self._tables.items()}
        return replace(self, candidates=tuple(self.candidates[i] for i in columns), **tables)

    def take(self, rows: Tensor | slice) -> "Costs":
        """Costs of some of the samples, given by their indices, a mask or a slice."""
        tables = {name: table[rows] for name, table in self._tables.items()}
        conditions = tuple(condition[rows] for condition in self.conditions)
        return replace(self, h0=self.h0[rows], k1=self.k1[rows], conditions=conditions, **tables)

    @property
    def _tables(self) -> dict[str, Any]:
        """The tensors [N, K] that are given."""
        tables = {"nfe": self.nfe, "error": self.error, "milliseconds": self.milliseconds}
        return {name: table for name, table in tables.items() if table is not None}

    def inputs(self, selector: object) -> tuple[Tensor, ...]:
        """The inputs of a selector or of its network (see `Dynamic`), for all samples."""
        return selector_inputs(selector, self.h0, self.k1, self.conditions)

    def input_batches(self, selector: object, size: int = 512) -> Iterator[tuple[Tensor, ...]]:
        """The inputs of a selector or of its network, `size` samples at a time."""
        return zip(*(x.split(size) for x in self.inputs(selector)), strict=True)

    def with_penalty(self, M: float, alpha: float | None = None) -> "Costs":
        """Costs with another penalty M and, if given, another exponent α."""
        return replace(self, rule=replace(self.rule, M=M, alpha=self.rule.alpha if alpha is None else alpha))

    def __len__(self) -> int:
        return len(self.nfe)


@checked_arguments
def collect_costs(
    model: nn.Module,
    data: Data,
    candidates: Sequence[Integrator],
    rule: CostRule | None = None,
    *,
    block: NeuralODE | str | None = None,
) -> Costs:
    """Costs of every candidate on all data, by default by Eq. 4; for the other arguments see `run_candidates`.

    Use held-out data: on training data nearly every prediction is right with every candidate, so the costs hardly vary.
    (The paper uses training data.)
    """
    return Costs.of(run_candidates(model, data, candidates, block=block), rule or ClassificationCost())


def concatenate_costs(parts: Sequence[Costs]) -> Costs:
    """The costs of the same candidates on the samples of all parts."""
    first = parts[0]
    tables: dict[str, Any] = {name: torch.cat([part._tables[name] for part in parts]) for name in first._tables}
    columns = zip(*(part.conditions for part in parts), strict=True)
    return replace(
        first,
        h0=torch.cat([part.h0 for part in parts]),
        k1=torch.cat([part.k1 for part in parts]),
        conditions=tuple(torch.cat(column) for column in columns),
        **tables,
    )
