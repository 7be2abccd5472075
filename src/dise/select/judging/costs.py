"""Costs of every candidate on every sample."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from dise.integrate import Integrator
from dise.select.judging.rules import ClassificationCost, CostRule
from dise.select.model.outcomes import Input, Outcomes, run_candidates


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
