"""`solve`: the door to integration. Checks the arguments, answers the integrator's requests, returns a Solution."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from dise.integrate.adjoint import Adjoint, Backsolve, as_backsolve
from dise.integrate.arguments import (
    as_save_points,
    as_sequence,
    as_times,
    check_options,
    check_sample_args,
    check_state,
)
from dise.integrate.integrators import Integrator
from dise.integrate.output.events import Event, EventMonitor, as_event
from dise.integrate.output.interpolation import DenseSolution, Trail
from dise.integrate.output.observers import Progress, Record
from dise.integrate.problem.field import Field
from dise.integrate.problem.hooks import Observer
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration, Request, Result, drive, merge
from dise.integrate.problem.state import Layout, State
from dise.integrate.runge_kutta.step import Step
from dise.integrate.solution import Interpolant, Solution
from dise.integrate.status import Status
from dise.integrate.tracing import has_values


def solve(
    f: Callable[..., State],
    y0: State,
    t0: float | Tensor,
    t1: float | Tensor,
    integrator: Integrator,
    *,
    args: Sequence[Any] = (),
    sample_args: Sequence[Tensor] = (),
    save_at: Tensor | Sequence[float] | None = None,
    save_mask: Tensor | None = None,
    dense: bool = False,
    event: Event | Callable[..., Tensor] | None = None,
    batched: bool = True,
    drop_finished: bool = True,
    accumulate: Callable[[Step], Tensor] | None = None,
    differentiate_step_sizes: bool = False,
    gradient: Literal["direct", "checkpoint", "backsolve"] | Backsolve = "direct",
    compile: bool | Mapping[str, Any] = False,
    record: bool = False,
    progress: Callable[[Progress], object] | None = None,
    throw: bool = True,
) -> Solution:
    """Solve y' = f(t, y), y(t0) = y0 for every sample of a batch, each on its own.

    Args:
        f: vector field, called as f(t, y, *args, *sample_args) with t [n, 1, …, 1] and y [n, ...] of the n ≤ B
            samples that need an evaluation; returns dy/dt in y's structure and shapes. With batched=False t is [].
            t has the real dtype of y: float32 for complex64, and for half precision too.
        y0: [B, ...] initial state, or a tuple or dict of such tensors, of one device and one dtype: float64, float32,
            complex128, complex64, bfloat16 or float16. Of complex states norms take the modulus. Half precision is what
            f gets and what is returned; the solver adds up in float32.
        t0, t1: start and end, numbers or [B] tensors. Forwards, backwards and zero length may be mixed in a batch. Zero
            length costs no evaluation of f, but one if gradients in times are wanted.
        integrator: how to solve, e.g. `dise.Dopri5(rtol=1e-3, atol=1e-3)`.
        args: passed on to f as they are.
        sample_args: tensors [B, ...] of which f gets the rows that it is called on (labels, conditions, …).
        save_at: save points, times [T] for all samples or [B, T] for each its own, in any order, within each sample's
            span; `Solution.saved` holds the states there. They cost no evaluation of f and change no step. With
            batched=False [T].
        save_mask: [B, T] or [T] bool; where it is False a save point is padding: its time may be anything, its state
            is 0.
        dense: keep the steps, so that `Solution.evaluate` gives the state at any time within the span.
        event: stop each sample where event(t, y, *args, *sample_args) → [n] crosses zero, or an `Event`, which may name
            the direction. `Solution.event` says which samples it stopped, `Solution.t` and `Solution.y` when and where,
            both differentiable. A sample without crossing goes on to t1, which may be infinite if the integrator is
            adaptive. Signs are compared at the ends of steps: two crossings within one step go unseen. `error` and
            `accumulated` count the whole of the last step.
        batched: False treats the whole state as one system: one step size, scalar t, norms over all of it.
        drop_finished: let finished samples leave the batch, so that f sees only rows that still run, in training as
            well. False: f always gets all samples (for an f that mixes samples, such as batch normalization in
            training).
        accumulate: function of an attempted `Step` of n samples → [n], summed over each sample's accepted steps
            into `Solution.accumulated` (what regularizers are made of).
        differentiate_step_sizes: differentiate through the choice of step sizes too; default: step sizes are constants.
        gradient: "direct" keeps what the backward pass needs of every step; "checkpoint" keeps √steps states and takes
            the steps between them again: less memory, the same gradients, one more forward pass. f is then called
            again during the backward pass. "backsolve" integrates the adjoint equation backwards: memory does not grow
            with the number of steps, but gradients are exact only up to the tolerance, `Solution.error` and
            `accumulated` have none, and a backward solve may be unstable. f's parameters are known if f is an
            nn.Module; a `Backsolve` names other tensors, or another integrator for going back.
        compile: True makes one graph of a whole step of a Runge–Kutta method (or of more, see the guide), f
            included, by `torch.compile`; a mapping gives torch.compile's arguments, e.g.
            {"mode": "max-autotune-no-cudagraphs"}. Graphs are kept for later solves with the same f and integrator. f
            must be traceable as a whole (no graph breaks). Integrators that choose run their candidates one after the
            other; backsolve's way back is not compiled; graphs give no second derivatives.
        record: keep every accepted step's end and error ratio in `Solution.steps`.
        progress: called with a `Progress` after each round of attempted steps (with gradient="checkpoint" after each
            segment of rounds).
        throw: raise if a sample fails; False returns each sample's status and last good state. Gradients of
            parameters are not usable where a failed sample was part of the batch.

    Returns:
        the `Solution`; gradients flow by backpropagation through the accepted steps to y0, f's parameters, args,
        sample_args, t0, t1 and save_at. An attempted step that left f's domain (f was NaN or infinite there) is
        retried with a shorter one, but leaves NaN gradients, since 0 · NaN is NaN in f's backward pass: train with a
        first_step that stays inside.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described.
        SolveError: a sample failed and throw is True.
    """
    check_options(
        {
            "batched": batched,
            "drop_finished": drop_finished,
            "dense": dense,
            "differentiate_step_sizes": differentiate_step_sizes,
            "record": record,
            "throw": throw,
        },
        {"f": f, "accumulate": accumulate, "progress": progress},
    )
    check_state("y0", y0, batched=batched)
    if not isinstance(integrator, Integrator):
        raise TypeError(f"integrator: expected an integrator such as dise.Dopri5(), got {integrator!r}")
    layout = Layout.of(y0, batched=batched)
    packed = layout.pack(y0)
    start, stop = as_times("t0", t0, packed, batched=batched), as_event(event)
    passed, own = as_sequence("args", args), check_sample_args(sample_args, packed, batched=batched)
    problem = Problem(
        y0=packed,
        t0=start,
        t1=as_times("t1", t1, packed, batched=batched, endless=stop is not None),
        moves=_moves(t0, t1),
        event=None if stop is None else EventMonitor(stop, layout, passed, own, start),
        layout=layout,
        drop_finished=drop_finished,
        differentiate_step_sizes=differentiate_step_sizes,
        accumulate=accumulate,
        checkpoint=gradient == "checkpoint" and torch.is_grad_enabled(),
    )
    points = as_save_points(save_at, save_mask, problem.t0, problem.t1, batched=batched)
    back = as_backsolve(gradient, integrator, {"differentiate_step_sizes": differentiate_step_sizes, "dense": dense})
    wanted = problem
    if back is not None:
        problem = replace(problem, y0=packed.detach(), t0=problem.t0.detach(), t1=problem.t1.detach())
    field = Field(f, problem, passed, own, _compile_options(compile))
    kept = points is not None or dense or problem.event is not None
    trail = Trail(len(packed), packed.device) if kept else None
    log = Record(len(packed), packed.device) if record else None
    meter = None if progress is None else Progress(progress, problem.t0, problem.t1)
    observers: tuple[Observer, ...] = tuple(o for o in (trail, log, meter) if o is not None)
    problem = replace(problem, field=field, observers=observers)
    with torch.set_grad_enabled(torch.is_grad_enabled() and back is None):
        of_times = torch.is_grad_enabled() and _has_gradients(problem.t0, problem.t1, *(points or ())[:1])
        result = drive(_integrate_moving(integrator, problem, of_times=of_times), field)
        result, path = _ended(result, problem, trail)
        saved = None if points is None or path is None else path.at(*points)
    if back is not None and back.integrator is not None:
        used = back.wanted(f, (*passed, *own))
        # the way back differentiates f itself, more than once a graph, which compiled graphs do not allow
        plain = field if field.options is None else Field(f, problem, passed, own)
        adjoint = Adjoint(wanted, plain, used, back.integrator, _run, check=back.params is None)
        result, saved = adjoint.attach(result, points, saved)
    solution = replace(
        _solution(result, layout, field.calls, accumulated=accumulate is not None),
        saved=None if saved is None else layout.unpack_saved(saved),
        event=None if problem.event is None else problem.event.stopped if batched else problem.event.stopped[0],
        interpolant=Interpolant(path, layout) if dense and path is not None else None,
        steps=None if log is None else log.steps(problem.t0, batched=batched),
    )
    return solution.raise_for_status() if throw else solution


def _run(integrator: Integrator, problem: Problem, answer: Callable[[Request], Tensor]) -> Result:
    return drive(_integrate_moving(integrator, problem), answer)


def _moves(t0: float | Tensor, t1: float | Tensor) -> bool | None:
    """Whether all spans have a length; None: the device would have to be read."""
    if not isinstance(t0, Tensor) and not isinstance(t1, Tensor):
        return t0 != t1
    # nobody can ask now: steps of no length leave a state as it is, but the first alone counts for gradients in time
    return None if all(has_values(t) for t in (t0, t1) if isinstance(t, Tensor)) else True


def _has_gradients(*tensors: Tensor) -> bool:
    return any(x.requires_grad for x in tensors)


def _compile_options(compile: object) -> Mapping[str, Any] | None:
    """Arguments of torch.compile; None: do not compile."""
    if isinstance(compile, Mapping):
        return compile
    if not isinstance(compile, bool):
        raise TypeError(f"compile: expected True, False or a mapping of torch.compile's arguments, got {compile!r}")
    return {} if compile else None


def _integrate_moving(integrator: Integrator, problem: Problem, *, of_times: bool = False) -> Integration:
    """Integrate the samples whose span has a length; the others are at their end.

    They need no evaluation of f but one if gradients `of_times` are wanted.
    """
    if problem.moves and problem.y0.shape[0] != 0:
        return (yield from integrator.integrate(problem))
    moving = problem.t0 != problem.t1
    rows = moving.nonzero().flatten()
    if len(rows) == len(problem) > 0:
        return (yield from integrator.integrate(problem))
    still = _still(problem, chooses=integrator.chooses)
    if of_times:
        still = yield from _about_to_move(problem, still, (~moving).nonzero().flatten())
    if len(rows) == 0:
        return still
    (moved,) = yield from merge([(rows, integrator.integrate(problem.take(rows, problem.k1)))])
    pairs = {name: (getattr(still, name), new) for name, new in moved._asdict().items() if new is not None}
    return still._replace(**{name: old.index_put((rows,), new) for name, (old, new) in pairs.items()})


def _still(problem: Problem, *, chooses: bool) -> Result:
    """The samples as they start."""
    none = torch.zeros_like(problem.t0, dtype=torch.int64)
    zero = torch.zeros_like(problem.t0)
    unknown = torch.full_like(problem.y0, torch.nan)
    status, choice = none + int(Status.SUCCESS), none - 1 if chooses else None
    return Result(problem.y0, problem.t1, none, none, none, zero, status, zero, zero, unknown, choice)


def _about_to_move(problem: Problem, still: Result, rows: Tensor) -> Integration:
    """`still`, its `rows` with the gradients in t0 and t1 of y = y0 + (t1 − t0)·f(t0, y0), whose second term is 0."""
    if len(rows) == 0:
        return still
    t0, y0 = problem.t0[rows], problem.y0[rows]
    # one system's arguments have no rows
    k1 = yield Request(rows if len(rows) < len(problem) else None, t0, y0)
    y = torch.addcmul(y0, (problem.t1[rows] - t0)[:, None], torch.where(k1.isfinite(), k1, 0))
    return still._replace(
        y=still.y.index_put((rows,), y),
        nfe=still.nfe.index_put((rows,), torch.ones_like(rows)),
        k1=still.slope.index_put((rows,), k1),
    )


def _ended(result: Result, problem: Problem, trail: Trail | None) -> tuple[Result, DenseSolution | None]:
    """The result, stopped samples moved to their events, and the path that the kept steps describe, if they were."""
    if trail is None:
        return result, None
    path = trail.path(problem, result)
    if problem.event is not None:
        result = problem.event.locate(path, result)
    return result, path._replace(end=result.t, y_end=result.y)


def _solution(result: Result, layout: Layout, calls: int, *, accumulated: bool) -> Solution:
    values = result._asdict()
    if not accumulated:
        values["accumulated"] = None
    if not layout.batched:
        values |= {name: x.reshape(()) for name, x in values.items() if name not in ("y", "k1") and x is not None}
    return Solution(**(values | {"y": layout.unpack(result.y), "k1": layout.unpack(result.slope), "calls": calls}))
