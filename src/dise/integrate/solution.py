"""What a solve returns, and every message a failed one can give."""

import cmath
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dise.integrate.output.interpolation import Interpolant

_exports = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # the latter before torch 2.7

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


class Steps(NamedTuple):
    """The accepted steps of B samples, in each sample's order; rows are padded with NaN at the end."""

    t: Tensor  # [B, S] where each step ended
    ratio: Tensor  # [B, S] its scaled error estimate; NaN if the method embeds none


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
    interpolant: "Interpolant | None" = field(default=None, repr=False)

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
        if not readable(self.status):
            return self
        failed = torch.atleast_1d(self.status != int(Status.SUCCESS)).nonzero().flatten()
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


def readable(x: Tensor) -> bool:
    """Whether a tensor has values to look at; not while torch exports a graph, or maps over it (`torch.vmap`)."""
    return not (_exports() if torch.compiler.is_compiling() else _is_mapped(x))


def at_hand(x: Tensor) -> bool:
    """Whether a tensor's values can be looked at for nothing: they are in the host's memory, and no graph is made."""
    return x.is_cpu and not torch.compiler.is_compiling() and readable(x)


def all_seen(mask: Tensor) -> bool:
    """Whether a mask is known to be True throughout: by looking, if that costs nothing."""
    return at_hand(mask) and bool(mask.all())


def none_seen(one: Tensor, other: Tensor) -> bool:
    """Likewise whether two masks are known to be False throughout."""
    return at_hand(one) and not (one | other).any()


def seen_finite(x: Tensor) -> bool:
    """Likewise whether a tensor is free of NaN and infinity: if its sum is. That of large numbers may overflow."""
    return at_hand(x) and cmath.isfinite(x.sum().item())


def _is_mapped(x: Tensor) -> bool:
    """Whether torch.vmap maps over a tensor, which then stands for many; at any level of torch.func's transforms."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False
