"""What a solve returns, and every message a failed one can give."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dise.integrate.arguments import as_query_times
from dise.integrate.output.interpolation import DenseSolution
from dise.integrate.output.observers import Steps
from dise.integrate.problem.state import Layout, State
from dise.integrate.status import FAILURES, Status
from dise.integrate.tracing import has_values


@dataclass(frozen=True)
class Interpolant:
    """A dense solution in the structure of the user's state."""

    path: DenseSolution
    layout: Layout

    def __call__(self, t: object) -> State:
        """States at t; see `Solution.evaluate`."""
        times, single = as_query_times(t, self.path.t0, self.path.t1, batched=self.layout.batched)
        values = self.path.at(times, torch.ones_like(times, dtype=torch.bool))
        return self.layout.unpack(values[:, 0]) if single else self.layout.unpack_saved(values)


class SolveError(RuntimeError):
    """At least one sample could not be integrated; `solution` holds the last good states."""

    def __init__(self, message: str, solution: "Solution") -> None:
        super().__init__(message)
        self.solution = solution


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The end of an integration; B is the number of samples (with batched=False the shapes [B] are []).

    Attributes:
        y: state at `t`, in the structure, shapes and dtype of y0; for a failed sample the last good state.
        t: [B] time reached: t1, the event's time, or earlier for a failed sample; differentiable.
        nfe: [B] int64, evaluations of f that this sample needed (rejected steps and first-step choice included).
        calls: batch calls of f that the whole solve made.
        n_steps: [B] int64, attempted steps.
        n_accepted: [B] int64, accepted steps.
        error: [B] Σ over accepted steps of the scaled error estimate (what the step-size controller tests
            against 1; Eq. 2's summand), differentiable; NaN where the method embeds no error estimate.
        status: [B] int64, see `Status`.
        dt: [B] step size that the controller would try next (signed).
        k1: f(t, y) in the structure and dtype of y0, if the method evaluated it there ("first same as last"), else NaN.
        accumulated: [B] Σ over accepted steps of `solve`'s `accumulate`, or None if none was given.
        saved: states at the save points, [B, T, ...] in the structure and dtype of y0 ([T, ...] with batched=False);
            0 where they are masked, NaN where a sample ended before; None if none were asked for.
        event: [B] bool, whether `solve`'s `event` stopped the sample, or None if none was given.
        steps: with `record`, the accepted steps' ends and error ratios (see `Steps`), else None.
        choice: [B] int64, index of the candidate used, if the integrator is one that chooses (-1 for a sample whose
            span has no length), else None.
    """

    y: State
    t: Tensor
    nfe: Tensor
    calls: int
    n_steps: Tensor
    n_accepted: Tensor
    error: Tensor
    status: Tensor
    dt: Tensor
    k1: State | None = None
    accumulated: Tensor | None = None
    saved: State | None = None
    steps: Steps | None = None
    choice: Tensor | None = None
    event: Tensor | None = None
    interpolant: Interpolant | None = field(default=None, repr=False)

    def evaluate(self, t: float | Sequence[float] | Tensor) -> State:
        """State at any time within the span, by dense output of the method's order; needs `solve(..., dense=True)`.

        Args:
            t: a number, times [T] for all samples, or [B, T] for each its own, in any order. With batched=False a
                number or [T].

        Returns:
            the states [B, ...] of a number, else [B, T, ...] ([...] and [T, ...] with batched=False), in the structure
            and dtype of y0; NaN beyond the time that a sample reached. Differentiable, in t as well.

        Raises:
            ValueError: the solve kept no steps, or a time is outside a sample's span.
            TypeError: t is not made of real numbers.
        """
        if self.interpolant is None:
            raise ValueError("evaluate: this solve kept no steps; ask for them by solve(..., dense=True)")
        return self.interpolant(t)

    def raise_for_status(self) -> "Solution":
        """Return self if every sample succeeded; else raise one SolveError that names the first that did not.

        While torch exports or maps (`torch.vmap`) there are no values to look at: nothing is raised.
        """
        if not has_values(self.status):
            return self
        failed = torch.atleast_1d(self.status != int(Status.SUCCESS)).nonzero().flatten()
        if len(failed) == 0:
            return self
        i = int(failed[0])
        status = Status(int(torch.atleast_1d(self.status)[i]))
        problem, remedy = FAILURES[status]
        t, dt = (float(torch.atleast_1d(x)[i]) for x in (self.t, self.dt))
        raise SolveError(
            f"{len(failed)} of {self.status.numel()} samples failed; first: sample {i} at t={t:.6g} with step "
            f"{dt:.3g}: {status.name}, {problem}. What to try: {remedy}. "
            "throw=False returns the other samples' results.",
            self,
        )
