"""What a solve returns, and every message a failed one can give."""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

State = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


class Status(IntEnum):
    """How the integration of one sample ended."""

    SUCCESS = 0
    RUNNING = 1  # inside the loop only
    NON_FINITE = 2
    STEP_UNDERFLOW = 3
    MAX_STEPS = 4
    DT_MIN = 5


_MEANING = {
    Status.NON_FINITE: (
        "f or the state became NaN or infinite",
        "check y0 and f at this t; take more steps, a smaller first_step or a tighter tolerance",
    ),
    Status.STEP_UNDERFLOW: (
        "the step size fell below what the time's precision resolves",
        "loosen rtol/atol, use float64, or check f for a singularity or stiffness near this t",
    ),
    Status.DT_MIN: (
        "a step of length dt_min was not accurate enough",
        "lower dt_min or loosen rtol/atol; accept_at_dt_min=True goes on regardless",
    ),
    Status.MAX_STEPS: (
        "max_steps steps were not enough",
        "raise the integrator's max_steps or loosen rtol/atol; a stiff or badly scaled f needs many steps",
    ),
}


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
        t: [B] time reached: t1, or earlier for a failed sample.
        nfe: [B] int64, evaluations of f that this sample needed (rejected steps and first-step choice included).
        calls: batch calls of f that the whole solve made.
        n_steps: [B] int64, attempted steps.
        n_accepted: [B] int64, accepted steps.
        error: [B] Σ over accepted steps of the scaled error estimate (what the step-size controller tests
            against 1; Eq. 2's summand), differentiable; NaN where the method embeds no error estimate.
        status: [B] int64, see `Status`.
        dt: [B] step size last tried (signed), for diagnosis.
        accumulated: [B] Σ over accepted steps of `solve`'s `accumulate`, or None if none was given.
        saved: states at the save points, [B, T, ...] in the structure and dtype of y0 ([T, ...] with batched=False);
            0 where they are masked, NaN where a sample failed before; None if none were asked for.
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
    accumulated: Tensor | None = None
    saved: State | None = None
    choice: Tensor | None = None

    def raise_for_status(self) -> "Solution":
        """Return self if every sample succeeded; else raise one SolveError that names the first that did not."""
        failed = torch.atleast_1d(self.status != Status.SUCCESS).nonzero().flatten()
        if len(failed) == 0:
            return self
        i = int(failed[0])
        status = Status(int(torch.atleast_1d(self.status)[i]))
        problem, remedy = _MEANING[status]
        t, dt = (float(torch.atleast_1d(x)[i]) for x in (self.t, self.dt))
        raise SolveError(
            f"{len(failed)} of {self.status.numel()} samples failed; first: sample {i} at t={t:.6g} with step "
            f"{dt:.3g}: {status.name}, {problem}. What to try: {remedy}. "
            "throw=False returns the other samples' results.",
            self,
        )
