"""Integrators that give each sample an integrator of its own."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dise.integrate.integrators import Integrator
from dise.integrate.problem import Integration, Problem, Request, Result, leaves, merge
from dise.integrate.solution import State

Selector = Callable[[Tensor, Tensor], Tensor]


def joined(state: State) -> Tensor:
    """A state as selectors see it: a tensor as it is; the tensors of a tuple or dict side by side, in their order.

    They are joined along the last dimension if they agree in all others, else flattened first: [n, F].
    """
    if isinstance(state, Tensor):
        return state
    parts = leaves(state)
    if len({part.shape[:-1] for part in parts}) > 1:
        parts = tuple(part.reshape(len(part), -1) for part in parts)
    return torch.cat(parts, dim=-1)


def cheapest(scores: Tensor) -> Tensor:
    """[n] index of the smallest score [n, K]; NaN is never the smallest."""
    return scores.nan_to_num(nan=torch.inf).argmin(1)


@dataclass(frozen=True, eq=False)
class Dynamic(Integrator):
    """Each sample gets the candidate of the smallest score.

    The batch is one loop, not one solve per candidate: candidates share k1 = f(t0, h0), and their n-th evaluations
    are one call of f. `Solution.calls` is therefore the largest of the candidates' calls, not the sum, and
    `Solution.choice` says which candidate each sample got.

    Args:
        candidates: integrators to choose from.
        selector: (h0 [B, ...], k1 [B, ...]) → scores [B, K], e.g. a `CostSelector`; states of several tensors are
            `joined`. It costs no evaluation of f, since every candidate needs k1.

    Raises:
        ValueError: no candidates; when solving: scores of another shape, or batched=False. NaN is never the smallest.
    """

    chooses = True

    candidates: Sequence[Integrator]
    selector: Selector

    def __post_init__(self) -> None:
        if not self.candidates or not all(isinstance(c, Integrator) for c in self.candidates):
            raise ValueError(f"candidates: expected at least one integrator, got {list(self.candidates)!r}")

    def integrate(self, problem: Problem) -> Integration:
        """Choose, then integrate all samples in lockstep."""
        if not problem.layout.batched:
            raise ValueError("batched: Dynamic chooses for each sample, batched=False has only one system")
        k1 = yield from problem.first_stage()
        choice = self.choose(problem, k1)
        return (yield from integrate_chosen(self.candidates, choice, problem, k1))

    @torch.no_grad()
    def choose(self, problem: Problem, k1: Tensor) -> Tensor:
        """[n] index of each sample's candidate."""
        unpack = problem.layout.unpack
        scores = self.selector(joined(unpack(problem.y0)), joined(unpack(k1)))
        if scores.shape != (len(problem), len(self.candidates)):
            expected = (len(problem), len(self.candidates))
            raise ValueError(f"selector: expected scores of shape {expected}, got {tuple(scores.shape)}")
        return cheapest(scores)

    def __str__(self) -> str:
        return f"Dynamic({', '.join(str(candidate) for candidate in self.candidates)})"


def integrate_chosen(
    candidates: Sequence[Integrator], choice: Tensor, problem: Problem, k1: Tensor
) -> Generator[Request, Tensor, Result]:
    """Integrate each sample with the candidate chosen for it, all in lockstep.

    Args:
        candidates: K integrators.
        choice: [n] index of each sample's candidate.
        problem: the samples.
        k1: [n, F] f(t0, y0).
    """
    order = choice.argsort(stable=True)
    counts = torch.bincount(choice, minlength=len(candidates)).tolist()  # one read of the device
    parts = [
        (rows, candidate.integrate(problem.take(rows, k1)))
        for rows, candidate in zip(order.split(counts), candidates, strict=True)
        if len(rows)
    ]
    results = yield from merge(parts)
    # the last field is `choice`, which is known
    back = order.argsort()
    columns = zip(*(result[:-1] for result in results), strict=True)
    return Result(*(torch.cat(column)[back] for column in columns))._replace(choice=choice)
