"""Integrators that choose one of several candidates for each sample."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor

from dise.integrate.annotations import Float, Inexact, Int
from dise.integrate.argument_types import checked_arguments
from dise.integrate.integrator import Integrator
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration, Request, Result, merge, with_outcomes, with_slopes
from dise.integrate.problem.run import Run
from dise.integrate.tracing import in_transform, known_finite
from dise.integrate.value import check_tensor
from dise.select.model.states import concatenate_state

Selector = Callable[..., Tensor]


def is_conditional(selector: object) -> bool:
    """Whether a selector, or its network, is given conditions after h0 and k1: its attribute `conditional`."""
    return bool(getattr(selector, "conditional", False))


def selector_inputs(
    selector: object, h0: Tensor, k1: Tensor, conditions: Sequence[Tensor]
) -> tuple[Inexact[Tensor, "n ..."], ...]:
    """The arguments of a selector or of its network: h0 and k1, and the conditions if it is conditional."""
    return (h0, k1, *conditions) if is_conditional(selector) else (h0, k1)


def cheapest_candidate(scores: Float[Tensor, "n K"]) -> Int[Tensor, " n"]:
    """[n] index of the smallest score [n, K]; NaN counts as the largest.

    If all of a sample's scores are NaN, since its features are not finite, it gets the last candidate, the safest.
    """
    return (scores if known_finite(scores) else without_nan(scores)).argmin(1)


def without_nan(scores: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
    """Scores [n, K] of which the smallest is that of `cheapest_candidate`, with infinity instead of NaN."""
    unknown = scores.isnan()
    last = torch.arange(scores.shape[1], device=scores.device) == scores.shape[1] - 1
    return scores.nan_to_num(nan=torch.inf).masked_fill(unknown.all(1, keepdim=True) & last, 0)


@checked_arguments
@dataclass(frozen=True, eq=False)
class Dynamic(Integrator):
    """Policy that gives each sample the candidate with the smallest score.

    The batch is one loop, not one solve per candidate: candidates share k1 = f(t0, h0), and their n-th evaluations are
    merged into one call of f. So `Solution.calls` is the maximum over the candidates, not the sum. `Solution.choice` is
    the index of each sample's candidate.

    Args:
        candidates: integrators to choose from.
        selector: (h0 [B, ...], k1 [B, ...]) → scores [B, K], e.g. a `CostSelector`; states of several tensors are
            passed as one (`concatenate_state`). It costs no evaluation of f where the candidate needs k1, as all but
            some tables do. If it has an attribute `conditional = True`, the conditions follow, which are the rows of
            the solve's `sample_args`: selector(h0, k1, *conditions). If it is a module, it becomes part of the block
            that the policy is assigned to: it moves with the model and is in its `state_dict`.
        granularity: "sample", or "batch": the smallest mean score decides for all samples together. With batched=False
            only "batch" is possible; the selector then gets the state as it is, and may return [1, K].

    Raises:
        ValueError: no candidates, or an unknown granularity; when solving: scores of another shape or on another
            device, or batched=False with granularity "sample".
    """

    chooses = True

    candidates: Sequence[Integrator]
    selector: Selector
    granularity: Literal["sample", "batch"] = field(default="sample", kw_only=True)

    def __post_init__(self) -> None:
        if not self.candidates or not all(isinstance(c, Integrator) for c in self.candidates):
            raise ValueError(f"candidates: expected at least one integrator, got {list(self.candidates)!r}")
        if self.granularity not in ("sample", "batch"):
            raise ValueError(f"granularity: expected 'sample' or 'batch', got {self.granularity!r}")

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Choose a candidate for each sample, then integrate all samples in lockstep."""
        if not problem.layout.batched and self.granularity == "sample":
            raise ValueError(
                "batched: Dynamic chooses for each sample, batched=False has only one system; use granularity='batch'"
            )
        k1 = yield from problem.first_stage()
        problem.check_choice(k1, problem.y0)
        choice = self.choose(problem, k1, run)
        return (yield from integrate_assigned(self.candidates, choice, problem, k1, run))

    def choose(self, problem: Problem, k1: Tensor, run: Run) -> Tensor:
        """[n] index of each sample's candidate."""
        if torch.is_grad_enabled():  # entering no_grad takes as long as some operations
            with torch.no_grad():
                return self.choose(problem, k1, run)
        h0, slope = (concatenate_state(problem.layout.unpack(x)) for x in (problem.y0, k1))
        conditions = run.sample_args(problem) if is_conditional(self.selector) else ()
        scores = self.selector(h0, slope, *conditions)
        check_tensor("selector", scores, "scores")
        # with batched=False the selector may return a row for each part of the system
        rows = len(problem) if problem.layout.batched else len(scores)
        if scores.shape != (rows, len(self.candidates)):
            expected = (rows, len(self.candidates))
            raise ValueError(f"selector: expected scores of shape {expected}, got {tuple(scores.shape)}")
        if scores.device != k1.device:
            raise ValueError(f"selector: expected scores on {k1.device} like the state, got them on {scores.device}")
        if self.granularity == "batch":
            scores = scores.mean(0, keepdim=True)
        return cheapest_candidate(scores).expand(len(problem))

    def mapped(self, change: Callable[[Integrator], Integrator]) -> "Dynamic":
        """The policy with each candidate changed."""
        return with_candidates(self, change)

    def __str__(self) -> str:
        return f"Dynamic({', '.join(str(candidate) for candidate in self.candidates)})"


P = TypeVar("P")


def with_candidates(policy: P, change: Callable[[Integrator], Integrator]) -> P:
    """A policy with each of its candidates changed; the policy itself, if none of them is."""
    before = cast(Any, policy).candidates
    after = tuple(candidate.mapped(change) for candidate in before)
    same = all(new is old for new, old in zip(after, before, strict=True))
    return policy if same else cast(P, replace(cast(Any, policy), candidates=after))


def integrate_assigned(
    candidates: Sequence[Integrator], choice: Tensor, problem: Problem, k1: Tensor, run: Run
) -> Generator[Request, Tensor, Result]:
    """Integrate each sample with its assigned candidate, all in lockstep.

    Args:
        candidates: K integrators.
        choice: [n] index of each sample's candidate.
        problem: problem of the n samples.
        k1: [n, F] f(t0, y0).
        run: how to integrate.
    """
    # bincount would read from the device twice, this reads once
    chosen = (choice == torch.arange(len(candidates), device=choice.device)[:, None]).sum(1)
    counts = [int(count) for count in chosen] if in_transform() else chosen.tolist()  # which torch 2.6 cannot transform
    if len(problem) in counts:  # one candidate for all: nothing to reorder
        result = yield from candidates[counts.index(len(problem))].integrate(problem.with_first_stage(k1), run)
        return result._replace(choice=choice)
    order = choice.argsort(stable=True)
    parts = [
        (rows, candidate.integrate(problem.take(rows, k1), run))
        for rows, candidate in zip(order.split(counts), candidates, strict=True)
        if len(rows)
    ]
    results = yield from merge(parts)
    back = torch.zeros_like(order).index_copy(0, order, torch.arange(len(order), device=order.device))
    columns = zip(*(with_outcomes if run.end_only else with_slopes)(*results), strict=True)
    whole = (None if any(x is None for x in column) else torch.cat(column).index_select(0, back) for column in columns)
    return Result._make(whole)._replace(choice=choice)
