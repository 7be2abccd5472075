"""Cheap first: integrators tried in turn until an answer is accepted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dise.integrate.integrators import Integrator
from dise.integrate.problem import Integration, Problem, Result, merge
from dise.integrate.solution import State, Status

Accept = Callable[[State], Tensor]


@dataclass(frozen=True, eq=False)
class Cascade(Integrator):
    """Each sample gets the first candidate whose answer is accepted; the last candidate's is accepted always.

    All candidates share k1 = f(t0, h0): a sample that goes on from Euler to RK4 needs 1 + 3 evaluations, not 1 + 4.
    `Solution.nfe` counts all that a sample tried, `Solution.choice` is the candidate whose answer it kept, and
    `Solution.calls` the batch's calls, the sum over the rounds.

    An answer with a status other than SUCCESS is never accepted. So an adaptive candidate with max_steps=1 is
    accepted by its embedded error estimate, without any `accept`:

        Cascade((Bosh3(rtol=1e-1, atol=1e-1, first_step="span", max_steps=1), Dopri5(rtol=1e-3, atol=1e-3)))

    Args:
        candidates: integrators, the cheapest first.
        accept: states at t1 [n, ...] → [n] bool, e.g. a `Confidence`; default: everything that succeeded.

    Raises:
        ValueError: no candidates; when solving: answers of `accept` of another shape or kind, batched=False, an event.
    """

    chooses = True

    candidates: Sequence[Integrator]
    accept: Accept | None = None

    def __post_init__(self) -> None:
        if not self.candidates or not all(isinstance(c, Integrator) for c in self.candidates):
            raise ValueError(f"candidates: expected at least one integrator, got {list(self.candidates)!r}")

    def integrate(self, problem: Problem) -> Integration:
        """Try the candidates in turn, each on the samples that are left."""
        if not problem.layout.batched:
            raise ValueError("batched: Cascade decides for each sample, batched=False has only one system")
        if problem.event is not None:
            raise ValueError("event: Cascade judges states at t1, which an event forestalls; solve with one integrator")
        k1 = yield from problem.first_stage()
        rows = torch.arange(len(problem), device=problem.t0.device)
        spent = torch.ones_like(rows)  # k1
        kept: list[tuple[Tensor, Result]] = []
        for index, candidate in enumerate(self.candidates):
            (result,) = yield from merge([(rows, candidate.integrate(problem.take(rows, k1)))])
            spent = spent + result.nfe - 1
            result = result._replace(nfe=spent, choice=torch.full_like(rows, index))
            last = index + 1 == len(self.candidates)
            accepted = torch.ones_like(rows, dtype=torch.bool) if last else self._accepted(problem, result)
            kept.append((rows[accepted], _take(result, accepted)))
            rows, spent = rows[~accepted], spent[~accepted]
            if len(rows) == 0:
                break
            for observer in problem.observers:
                observer.start_over(problem.samples(rows))
        return _in_order(kept)

    @torch.no_grad()
    def _accepted(self, problem: Problem, result: Result) -> Tensor:
        """[n] bool."""
        succeeded = result.status == Status.SUCCESS
        if self.accept is None:
            return succeeded
        answer = self.accept(problem.layout.unpack(result.y))
        if answer.shape != succeeded.shape or answer.dtype != torch.bool:
            raise ValueError(
                f"accept: expected bool of shape {tuple(succeeded.shape)}, got {answer.dtype} of {tuple(answer.shape)}"
            )
        return succeeded & answer

    def __str__(self) -> str:
        return f"Cascade({', '.join(str(candidate) for candidate in self.candidates)})"


def _take(result: Result, rows: Tensor) -> Result:
    return Result(**{name: column[rows] for name, column in result._asdict().items() if column is not None})


def _in_order(parts: Sequence[tuple[Tensor, Result]]) -> Result:
    """The parts' results in the order of the problem's samples."""
    order = torch.cat([rows for rows, _ in parts]).argsort()
    columns = zip(*(result for _, result in parts), strict=True)
    return Result(*(torch.cat(column)[order] for column in columns))


class Confidence(nn.Module):
    """Accepts states whose logits are sure enough: for a `Cascade` of a classifier.

    Args:
        head: h(t1) [n, ...] → logits [n, C]. It is evaluated once more for each answer that is judged.
        threshold: smallest confidence to accept, in [0, 1].
        measure: "top" probability; "margin" between the two largest probabilities; or "entropy", as
            1 − entropy / log C.

    Raises:
        ValueError: a threshold outside [0, 1], or an unknown measure.
    """

    def __init__(
        self, head: nn.Module, threshold: float, *, measure: Literal["top", "margin", "entropy"] = "top"
    ) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold: expected a number in [0, 1], got {threshold!r}")
        if measure not in ("top", "margin", "entropy"):
            raise ValueError(f"measure: expected 'top', 'margin' or 'entropy', got {measure!r}")
        self.head, self.threshold, self.measure = head, threshold, measure

    def score(self, h: Tensor) -> Tensor:
        """[n] confidence, in [0, 1]."""
        log_p = self.head(h).log_softmax(1)
        if self.measure == "entropy":
            entropy = -(log_p.exp() * log_p).sum(1)
            return 1 - entropy / torch.tensor(float(log_p.shape[1])).log().to(entropy)
        best = log_p.exp().topk(2, dim=1).values
        return best[:, 0] if self.measure == "top" else best[:, 0] - best[:, 1]

    def forward(self, h: Tensor) -> Tensor:
        """[n] bool."""
        return self.score(h) >= self.threshold

    def extra_repr(self) -> str:
        """What a printed cascade says of its rule."""
        return f"threshold={self.threshold:g}, measure={self.measure!r}"
