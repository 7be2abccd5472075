"""One attempted step in the open, and going on from where a solve ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dise.integrate.adjoint import Backsolve
from dise.integrate.arguments import as_sequence, as_times, check_options, check_sample_args, check_state
from dise.integrate.integrators import Integrator, RungeKutta, StepDoubling
from dise.integrate.problem.field import Field
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration, Request
from dise.integrate.problem.state import Layout, State
from dise.integrate.runge_kutta.step import Attempt
from dise.integrate.solution import Solution
from dise.integrate.solve import solve


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """What became of one attempted step of B samples (with batched=False the shapes [B] are []).

    Attributes:
        t: [B] end of the step.
        y: state there, in the structure, shapes and dtype of y.
        error: embedded error estimate, structured like y, in the solver's dtype; None if the method embeds none.
        ratio: [B] scaled error estimate, which step-size control tests against 1; NaN if the method embeds none.
        accept: [B] bool, whether the integrator accepts the step.
        dt: [B] step that it would try next: from `t` if it accepts, else again from the start.
        k1: f(t, y) at the end, structured like y, where the method evaluated it ("first same as last"), else None: the
            next step's k1 of the samples that accept.
        memory: [B] what the controller wants to know at the next step (`PIController`).
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
) -> Stepped:
    """Attempt one Runge–Kutta step y(t) → y(t + dt) of every sample: a pure function of its arguments.

    Args:
        f: vector field, as of `dise.solve`.
        t: start, a number or [B].
        y: [B, ...] state there, or a tuple or dict of such tensors.
        dt: signed length, a number or [B].
        integrator: a Runge–Kutta method, whose tableau, tolerances and controller are used.
        k1: f(t, y), structured like y, if it is known: it is evaluated otherwise.
        memory: [B] the last accepted step's `Stepped.memory`.
        args, sample_args, batched: as of `dise.solve`.

    Returns:
        the `Stepped`, differentiable in everything but `accept` and `dt`.

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
    problem = Problem(y0=packed, t0=start, t1=start + length, layout=layout, drop_finished=True)
    field = Field(f, problem, as_sequence("args", args), own)
    first = None if k1 is None else _packed("k1", k1, y, layout)
    attempt = Attempt(integrator.tableau, start, problem.t1, packed, first)
    while attempt.pending:
        attempt.stages.append(field(Request(None, *attempt.point())))
    taken = attempt.finish()
    before = torch.ones_like(start) if memory is None else as_times("memory", memory, packed, batched=batched)
    verdict = integrator.control.judge(taken, before, problem)

    def each(x: Tensor) -> Tensor:
        return x if batched else x.reshape(())

    tableau = integrator.tableau
    return Stepped(
        t=each(problem.t1),
        y=layout.unpack(taken.y_next),
        error=None if tableau.b_err is None else layout.unpack(taken.error()),
        ratio=each(verdict.error),
        accept=each(verdict.accept),
        dt=each(verdict.dt),
        k1=layout.unpack(taken.stages[-1]) if tableau.fsal else None,
        memory=each(verdict.memory),
    )


def _packed(name: str, value: State, y: State, layout: Layout) -> Tensor:
    check_state(name, value, batched=layout.batched)
    if replace(Layout.of(value, batched=layout.batched), dtype=layout.dtype) != layout:
        raise ValueError(f"{name}: expected a state structured like y, got another one")
    packed = layout.pack(value)
    if packed.shape[0] != layout.pack(y).shape[0]:
        raise ValueError(f"{name}: expected as many samples as y has, got {packed.shape[0]}")
    return packed


def resume(
    solution: Solution, f: Callable[..., State], t1: float | Tensor, integrator: Integrator, **options: Any
) -> Solution:
    """Go on from where a solve ended, to t1: with its state, its step sizes and, where known, its f(t, y).

    Two parts cost no more than one solve to the second t1, but for a step that the end of the first made shorter: no
    first step is chosen anew, and f is not evaluated again at the joint if the method knows it there.

    Args:
        solution: where to start: `y` at `t`, with steps of `dt`. Of a failed sample its last good state.
        f: vector field, as of `dise.solve`; k1 is taken over only if it is the one that the solution was made with.
        t1: new end, a number or [B].
        integrator: how to go on; a method that chooses its steps begins with the solution's.
        options: of `dise.solve`; `batched` is the solution's.

    Returns:
        the `Solution` of the second part alone; gradients flow into the first.

    Raises:
        TypeError, ValueError, SolveError: as of `dise.solve`.
    """
    if not isinstance(solution, Solution):
        raise TypeError(f"solution: expected what dise.solve returned, got {type(solution).__name__}")
    if not isinstance(integrator, Integrator):
        raise TypeError(f"integrator: expected an integrator such as dise.Dopri5(), got {integrator!r}")
    batched = solution.status.ndim == 1
    if options.setdefault("batched", batched) is not batched:
        raise ValueError(f"batched: expected {batched}, as the solution was made, got {options['batched']!r}")
    gradient = options.get("gradient", "direct")
    if gradient == "backsolve" or isinstance(gradient, Backsolve):
        how = gradient if isinstance(gradient, Backsolve) else Backsolve()
        options["gradient"] = replace(how, integrator=how.integrator or integrator)  # the way back is another start
    return solve(f, solution.y, solution.t, t1, _Resumed(integrator, solution), **options)


@dataclass(frozen=True, eq=False)
class _Resumed(Integrator):
    """An integrator that begins where a solution ended."""

    integrator: Integrator
    solution: Solution

    def __post_init__(self) -> None:
        object.__setattr__(self, "chooses", self.integrator.chooses)

    def integrate(self, problem: Problem) -> Integration:
        """Integrate with the solution's step sizes, and with its k1 if it is known of all samples."""
        samples = problem.sample
        dt = torch.atleast_1d(self.solution.dt)
        dt = dt if samples is None else dt[samples]
        k1 = None if self.solution.k1 is None else problem.layout.pack(self.solution.k1)
        if k1 is not None and samples is not None:
            k1 = k1[samples]
        known = k1 is not None and bool(k1.isfinite().all())
        result = yield from self.integrator.integrate(replace(problem, dt=dt, k1=k1 if known else None))
        return result._replace(nfe=result.nfe - 1) if known else result
