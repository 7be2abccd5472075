"""`step`: one attempted Runge–Kutta step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dise.integrate.arguments import as_sequence, as_times, check_options, check_sample_args, check_state
from dise.integrate.clock import real_dtype
from dise.integrate.integrator import Integrator
from dise.integrate.integrators import RungeKutta, StepDoubling
from dise.integrate.problem.field import Field
from dise.integrate.problem.requests import Request
from dise.integrate.problem.run import Run
from dise.integrate.problem.state import Layout, State
from dise.integrate.runge_kutta.step import Attempt


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The outcome of one attempted step of B samples (with batched=False the shapes [B] are []).

    Attributes:
        t: [B] end of the step, float64 (see `dise.solve`).
        y: state there, in the structure, shapes and dtype of y.
        error: embedded error estimate, structured like y, in the solver's dtype; None if the method has none.
        ratio: [B] scaled error estimate, which step-size control compares with 1; NaN if the method has none.
        accept: [B] bool, whether the integrator accepts the step.
        dt: [B] step that it would attempt next: from `t` after an accepted step, else again from the start.
        k1: f(t, y) at the end, structured like y, if the method evaluated it ("first same as last"), else None: k1 of
            the next step for samples that accept.
        memory: [B] input of the controller at the next step (`PIController`).
    """

    t: Tensor
    y: State
    error: State | None
    ratio: Tensor
    accept: Tensor
    dt: Tensor
    k1: State | None
    memory: Tensor


def step(
    f: Callable[..., State],
    t: float | Tensor,
    y: State,
    dt: float | Tensor,
    integrator: Integrator,
    *,
    k1: State | None = None,
    memory: Tensor | None = None,
    args: Sequence[Any] = (),
    sample_args: Sequence[Tensor] = (),
    batched: bool = True,
) -> StepResult:
    """Attempt one Runge–Kutta step y(t) → y(t + dt) of every sample: a pure function of its arguments.

    Args:
        f: vector field (see `dise.solve`).
        t: start, a number or [B].
        y: [B, ...] state there, or a tuple or dict of such tensors.
        dt: signed length, a number or [B].
        integrator: a Runge–Kutta method, whose tableau, tolerances and controller are used.
        k1: f(t, y), structured like y, if it is known; otherwise it is evaluated.
        memory: [B] `StepResult.memory` of the last accepted step.
        args, sample_args, batched: see `dise.solve`.

    Returns:
        the `StepResult`, differentiable in everything but `accept` and `dt`.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described.
    """
    check_options({"batched": batched}, {"f": f})
    check_state("y", y, batched=batched)
    if not isinstance(integrator, RungeKutta | StepDoubling):
        raise TypeError(f"integrator: expected one Runge–Kutta method such as dise.Dopri5(), got {integrator!r}")
    layout = Layout.of(y, batched=batched)
    packed = layout.pack(y)
    start, length = (as_times(name, x, packed, batched=batched) for name, x in (("t", t), ("dt", dt)))
    own = check_sample_args(sample_args, packed, batched=batched)
    field = Field(f, layout, None, as_sequence("args", args), own)
    first = None if k1 is None else _packed("k1", k1, y, layout)
    attempt = Attempt(integrator.tableau, start, start + length, packed, first)
    before = as_times("memory", 1.0 if memory is None else memory, packed, batched=batched).to(real_dtype(packed))
    return _attempted(attempt, field, integrator, before, layout)


def _attempted(
    attempt: Attempt, field: Field, integrator: RungeKutta | StepDoubling, before: Tensor, layout: Layout
) -> StepResult:
    """The outcome of an attempt; `before` [B] is what the controller remembers."""
    while attempt.pending:
        attempt.stages.append(field(Request(None, *attempt.point())))
    taken = attempt.finish()
    error = None if integrator.control.test is None else attempt.error()
    verdict = integrator.control.judge(taken, error, before, layout, Run())

    def each(x: Tensor) -> Tensor:
        return x if layout.batched else x.reshape(())

    tableau = integrator.tableau
    return StepResult(
        t=each(attempt.t_next),
        y=layout.unpack(taken.y_next),
        error=None if tableau.b_err is None else layout.unpack(taken.error()),
        ratio=each(verdict.error),
        accept=each(verdict.accept),
        dt=each(verdict.dt),
        k1=layout.unpack(taken.stages[-1]) if tableau.fsal else None,
        memory=each(before if verdict.memory is None else verdict.memory),
    )


def _packed(name: str, value: State, y: State, layout: Layout) -> Tensor:
    check_state(name, value, batched=layout.batched)
    if replace(Layout.of(value, batched=layout.batched), dtype=layout.dtype) != layout:
        raise ValueError(f"{name}: expected a state structured like y, got another one")
    packed = layout.pack(value)
    if packed.shape[0] != layout.pack(y).shape[0]:
        raise ValueError(f"{name}: expected as many samples as y has, got {packed.shape[0]}")
    return packed
