"""The result of a solve, and the error that a failed one raises."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dise.integrate.annotations import Bool, Float, Int
from dise.integrate.arguments import Span, as_query_times
from dise.integrate.output.event_log import Events
from dise.integrate.output.interpolation import DenseSolution
from dise.integrate.output.observers import Steps
from dise.integrate.problem.state import Layout, State
from dise.integrate.status import FAILURES, NO_EVENT, Status
from dise.integrate.tracing import has_values


@dataclass(frozen=True)
class Interpolant:
    """A dense solution in the structure of the user's state."""

    path: DenseSolution
    span: Span
    layout: Layout

    def __call__(self, t: object) -> State:
        """States at t; see `Solution.evaluate`."""
        times, single = as_query_times(t, self.span, batched=self.layout.batched)
        values = self.path.at(times, torch.ones_like(times, dtype=torch.bool))
        return self.layout.unpack(values[:, 0]) if single else self.layout.unpack_saved(values)


def all_succeeded(status: Tensor) -> bool:
    """Whether no sample failed, by their status [n]; True also where a status has no value to read."""
    return not has_values(status) or not status.any()  # SUCCESS is 0


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
        nfe: [B] int64, number of evaluations of f that the sample needed, including rejected steps and the choice
            of the first step.
        calls: number of batch calls of f in the whole solve.
        n_steps: [B] int64, number of attempted steps.
        n_accepted: [B] int64, number of accepted steps.
        error: [B] Σ over accepted steps of the scaled error estimate (which step-size control compares with 1; the
            summand of Eq. 2), differentiable; NaN if the method has no embedded error estimate.
        status: [B] int64, see `Status`.
        dt: [B] signed size of the step that would be attempted next.
        k1: f(t, y) in the structure and dtype of y0, if the method evaluated it ("first same as last"), else NaN.
        accumulated: [B] Σ over accepted steps of `solve`'s `accumulate`, or [B, ...] of a `Statistic`, in a dict if
            several were given; None if none was.
        saved: states at the save points, [B, T, ...] in the structure and dtype of y0 ([T, ...] with batched=False), or
            the values of `solve`'s `save` there, in their own structure and dtypes; 0 where they are masked, NaN (0 for
            integers) beyond the time that a sample reached. With `save_every` [B, S, ...] at every n-th step's end,
            padded like that at the end. None without save points.
        saved_t: [B, S] times of `saved` with `save_every`, padded with NaN; else None.
        which: [B] int64, index of the event that stopped the sample, among those given to `solve` (-1: none did, as in
            a sample that reached t1), or None if none was given.
        events: all events of each sample, with their times and states (see `Events`), or None if none was given.
        steps: with `record`, the accepted steps' ends and error ratios (see `Steps`), else None.
        choice: [B] int64, index of each sample's candidate if the integrator chooses one per sample (-1 for an empty
            span), else None.
    """

    y: State
    t: Float[Tensor, "*B"]
    nfe: Int[Tensor, "*B"]
    calls: int
    n_steps: Int[Tensor, "*B"]
    n_accepted: Int[Tensor, "*B"]
    error: Float[Tensor, "*B"]
    status: Int[Tensor, "*B"]
    dt: Float[Tensor, "*B"]
    k1: State | None = None
    accumulated: Any = None
    saved: Any = None  # the structure is that of y0, or of what `save` returns
    saved_t: Float[Tensor, "..."] | None = None
    steps: Steps | None = None
    choice: Int[Tensor, "*B"] | None = None
    which: Int[Tensor, "*B"] | None = None
    events: Events | None = None
    interpolant: Interpolant | None = field(default=None, repr=False)

    @property
    def event(self) -> Bool[Tensor, "*B"] | None:
        """[B] bool, whether an event stopped the sample; None if none was given to `solve`."""
        return None if self.which is None else self.which >= 0

    def evaluate(self, t: float | Sequence[float] | Tensor) -> State:
        """State at any time within the span, by dense output of the method's order; needs `solve(..., dense=True)`.

        Args:
            t: a number, times [T] for all samples, or times [B, T] per sample, in any order. With batched=False a
                number or [T].

        Returns:
            the states [B, ...] for a number, else [B, T, ...] ([...] and [T, ...] with batched=False), in the structure
            and dtype of y0; NaN beyond the time that a sample reached. Differentiable, also with respect to t.

        Raises:
            ValueError: the solve kept no steps, or a time is outside a sample's span.
            TypeError: t does not consist of real numbers.
        """
        if self.interpolant is None:
            raise ValueError("evaluate: this solve kept no steps; use solve(..., dense=True)")
        return self.interpolant(t)

    def raise_for_status(self) -> "Solution":
        """Return self if every sample succeeded; else raise a SolveError that names the first failed sample.

        Under `torch.export` and `torch.vmap` tensors have no values to read, so nothing is raised.
        """
        if all_succeeded(self.status):
            return self
        failed = torch.atleast_1d(self.status).nonzero().flatten()
        i = int(failed[0])
        status = Status(int(torch.atleast_1d(self.status)[i]))
        problem, remedy = FAILURES[status]
        if status == Status.MAX_STEPS and self.which is not None:
            problem, remedy = NO_EVENT
        t, dt = (float(torch.atleast_1d(x.detach())[i]) for x in (self.t, self.dt))
        raise SolveError(
            f"{len(failed)} of {self.status.numel()} samples failed; first: sample {i} at t={t:.6g} with step "
            f"{dt:.3g}: {status.name}, {problem}. What to try: {remedy}. "
            "throw=False returns the other samples' results.",
            self,
        )
