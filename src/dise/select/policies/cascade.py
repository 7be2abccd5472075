"""Cascades: candidates are tried in turn, the cheapest first, until an answer is accepted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dise.integrate.argument_types import checked_arguments
from dise.integrate.integrator import Integrator
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration, Result, of_rows, with_outcomes, with_slopes
from dise.integrate.problem.run import Run
from dise.integrate.problem.state import State
from dise.integrate.value import check_callable
from dise.select.policies.dynamic import with_candidates
from dise.select.policies.judgement import judgement
from dise.select.policies.shared_stage import SharedStage, second_node, share_stage

AcceptanceRule = Callable[[State], Tensor]

FEW = 256  # samples


@checked_arguments
@dataclass(frozen=True, eq=False)
class Cascade(Integrator):
    """Policy that gives each sample the first candidate whose answer is accepted; the last one is always accepted.

    All candidates share k1 = f(t0, h0): a sample that Euler and then RK4 integrate needs 1 + 3 evaluations, not 1 + 4.
    They also share the next evaluation if it is the same one, f at t0 + c·span and h0 + c·span·k1: Midpoint, Euler(2),
    Bosh3 and RK4 all have c = 1/2, so Euler, Midpoint and RK4 in turn need 1 + 1 + 2 evaluations, as many as RK4 alone.
    `Solution.nfe` counts all evaluations of a sample, `Solution.choice` is the index of the candidate whose answer it
    kept, and `Solution.calls` is the sum over the candidates.

    An answer with a status other than SUCCESS is never accepted. So an adaptive candidate with max_steps=1 is accepted
    by its embedded error estimate, without any `accept`:

        Cascade((Bosh3(rtol=1e-1, atol=1e-1, first_step="span", max_steps=1), Dopri5(rtol=1e-3, atol=1e-3)))

    Args:
        candidates: integrators, the cheapest first.
        accept: states at t1 [n, ...] → [n] bool, e.g. a `Confidence`; or one such rule for each candidate but the last;
            default: every answer with status SUCCESS is accepted.

    Raises:
        ValueError: no candidates, or a wrong number of rules; when solving: results of `accept` of another shape or
            dtype, batched=False, or an event.
    """

    chooses = True

    candidates: Sequence[Integrator]
    accept: AcceptanceRule | Sequence[AcceptanceRule] | None = None

    def __post_init__(self) -> None:
        if not self.candidates or not all(isinstance(c, Integrator) for c in self.candidates):
            raise ValueError(f"candidates: expected at least one integrator, got {list(self.candidates)!r}")
        for rule in self.accept if isinstance(self.accept, Sequence) else ():
            check_callable("accept", rule, "rules, functions of states at t1")
        if isinstance(self.accept, Sequence) and len(self.accept) != len(self.candidates) - 1:
            raise ValueError(
                f"accept: expected a rule for each candidate but the last, {len(self.candidates) - 1}, got "
                f"{len(self.accept)}"
            )

    def mapped(self, change: Callable[[Integrator], Integrator]) -> "Cascade":
        """The policy with each candidate changed."""
        return with_candidates(self, change)

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Try the candidates in turn, each on the samples that are not accepted yet."""
        if not problem.layout.batched:
            raise ValueError("batched: Cascade decides for each sample, batched=False has only one system")
        if run.events is not None and run.events.stops:
            raise ValueError("event: Cascade judges states at t1, but events stop samples earlier; use one integrator")
        k1 = yield from problem.first_stage()
        problem.check_choice(k1, problem.y0, problem.t0, problem.t1)
        some, rows = problem.with_first_stage(k1), None  # None: all samples are tried
        del k1  # later candidates keep that of their samples alone
        nfe: Tensor | None = None  # of the candidates before
        stages: dict[float, SharedStage] = {}
        final: Result | None = None
        for index, candidate in enumerate(self.candidates):
            number = some.y0.shape[0]
            integration = share_stage(candidate.integrate(some, run), second_node(candidate, some), stages, number)
            result = yield from (integration if rows is None else of_rows(rows, integration))
            if not run.end_only and result.nfe is not None:
                nfe = result.nfe if nfe is None else nfe + result.nfe - 1  # k1 is counted once
                result = result._replace(nfe=nfe, choice=torch.full_like(nfe, index))
            if final is None or rows is None:
                final, copied = result, False
            else:
                final, copied = _overwrite(final, rows, result, copied=copied, end_only=run.end_only), True
            if index + 1 == len(self.candidates):
                break
            left = self._rejected(index, problem, result)
            if left is None:
                break
            if left.shape[0] < number:  # otherwise there is nothing to gather
                rows = left if rows is None else rows.index_select(0, left)
                nfe = None if nfe is None else nfe.index_select(0, left)
                stages = {node: stage.take(left) for node, stage in stages.items()}
                some = some.take(left, some.k1)
            for observer in run.observers:
                observer.start_over(some.samples(torch.arange(some.y0.shape[0], device=some.y0.device)))
        if final is None:
            raise RuntimeError("a cascade has at least one candidate")
        return final

    def _rejected(self, index: int, problem: Problem, result: Result) -> Tensor | None:
        """[r] rows of a candidate's answers that are not accepted; None: all are. The device is read once."""
        if torch.is_grad_enabled():  # entering no_grad takes as long as some operations
            with torch.no_grad():
                return self._rejected(index, problem, result)
        if self.accept is None:
            return None if result.status is None else _nonzero(result.status)  # SUCCESS is 0
        accept = self.accept if callable(self.accept) else self.accept[index]
        answer = judgement(accept, problem.layout, result.y)
        if answer.shape != (expected := result.y.shape[:1]) or answer.dtype is not torch.bool:
            got = f"{answer.dtype} of {tuple(answer.shape)}"
            raise ValueError(f"accept: expected bool of shape {tuple(expected)}, got {got}")
        if result.status is not None:
            # one comparison: a status is at least 0, which is SUCCESS, and above that at least 1, which is True
            return _nonzero(result.status >= answer)
        if answer.shape[0] <= FEW and answer.is_cpu:  # a list is read in less time than two operations take
            rows = [row for row, accepted in enumerate(answer.tolist()) if not accepted]
            return torch.tensor(rows) if rows else None
        return _nonzero(~answer)

    def __str__(self) -> str:
        return f"Cascade({', '.join(str(candidate) for candidate in self.candidates)})"


def _nonzero(values: Tensor) -> Tensor | None:
    """[r] rows of values [n] that are not 0; None: there are none."""
    rows = values.nonzero()
    return rows.flatten() if rows.shape[0] else None


def _overwrite(final: Result, rows: Tensor, result: Result, *, copied: bool, end_only: bool) -> Result:
    """The final results with those of some rows replaced: in a copy, or in place if they are a copy already.

    A candidate's result may share memory with inputs of the next candidate, so it is never written to.
    """
    if end_only:
        y = (final.y if copied else final.y.clone()).index_put_((rows,), result.y)
        before, after = (part.status for part in with_outcomes(final, result))
        status = None if before is None or after is None else before.clone().index_put_((rows,), after)
        return final._replace(y=y, status=status)
    if not copied:  # torch's out-of-place `index_put` takes several times as long
        final = Result._make(None if column is None else column.clone() for column in final)
    pairs = zip(*with_slopes(final, result), strict=True)
    return Result._make(None if old is None or new is None else old.index_put_((rows,), new) for old, new in pairs)
