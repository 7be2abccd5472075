"""The integration loop: which samples still run, and what becomes of each attempted step."""

from collections.abc import Callable, Generator
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dise.integrate.control import Controller
from dise.integrate.gradient import in_segments
from dise.integrate.observe import Seen
from dise.integrate.problem import Integration, Problem, Request, Result
from dise.integrate.solution import Status
from dise.integrate.step import Attempt, Step
from dise.integrate.tableau import ButcherTableau

if TYPE_CHECKING:
    from dise.integrate.field import Bound, Field


class Rows(NamedTuple):
    """The samples in the loop, a row each."""

    sample: Tensor  # which of the problem's samples
    t0: Tensor
    t1: Tensor
    k1: Tensor  # f(t, y), if the method knows it at the end of a step
    y: Tensor
    t: Tensor
    nfe: Tensor
    n_steps: Tensor
    n_accepted: Tensor
    error: Tensor
    status: Tensor
    dt: Tensor
    memory: Tensor  # the controller's
    accumulated: Tensor

    def take(self, rows: Tensor) -> "Rows":
        """Some of the rows."""
        return Rows(*(field[rows] for field in self))


class Method(NamedTuple):
    """A Runge–Kutta method with its stepping rule."""

    tableau: ButcherTableau
    control: Controller

    def begin(self, rows: Rows, index: int) -> Attempt:
        """The rows' step number `index`; samples that are done step on the spot."""
        running = rows.status == int(Status.RUNNING)
        t_next = torch.where(running, self.control.end(index, rows.t, rows.dt, rows.t0, rows.t1), rows.t)
        known = index == 0 or self.tableau.fsal
        return Attempt(self.tableau, rows.t, t_next, rows.y, rows.k1 if known else None)

    def end(self, rows: Rows, attempt: Attempt, problem: Problem) -> tuple[Rows, Seen]:
        """The rows after the step: moved if it was accepted, frozen if they were."""
        step, t_next = attempt.finish(), attempt.t_next
        verdict = self.control.judge(step, rows.memory, problem)
        running = rows.status == int(Status.RUNNING)
        accept = running & verdict.accept
        moved = accept[:, None]
        n_steps = rows.n_steps + running
        arrived = accept & (t_next == rows.t1)
        status = torch.where(arrived, int(Status.SUCCESS), verdict.status)
        accumulated = rows.accumulated
        if problem.accumulate is not None:
            accumulated = accumulated + torch.where(accept, _share(problem.accumulate(step), step), 0)
        rows = rows._replace(
            k1=torch.where(moved, step.stages[-1], rows.k1) if self.tableau.fsal else rows.k1,
            y=torch.where(moved, step.y_next, rows.y),
            t=torch.where(accept, t_next, rows.t),
            nfe=rows.nfe + running * attempt.evaluations,
            n_steps=n_steps,
            n_accepted=rows.n_accepted + accept,
            error=rows.error + torch.where(accept, verdict.error, 0),
            status=torch.where(running, status, rows.status),
            dt=torch.where(running, verdict.dt, rows.dt),
            memory=verdict.memory,
            accumulated=accumulated,
        )
        return rows, Seen(rows.sample, step, t_next, verdict.error, accept)


class LoopState(NamedTuple):
    """Where an integration is between two rounds."""

    rows: Rows  # in the loop
    left: tuple[Rows, ...]  # out of it
    done: int  # rounds
    over: bool


def integrate(tableau: ButcherTableau, control: Controller, problem: Problem) -> Integration:
    """Integrate every sample of the problem with its own steps, as a coroutine (see `dise.integrate.problem`).

    A sample that has reached t1, or failed, is frozen: it keeps its state while the others go on, and with
    `problem.compact` it leaves the batch. The device is read once a step, and never if the number of steps is known.
    """
    k1 = yield from problem.first_stage()
    dt, evaluations = yield from _first_step(control, problem, k1, tableau.order)
    state = LoopState(_start(problem, k1, dt, nfe=1 + evaluations), (), 0, over=False)
    rounds = partial(_rounds, Method(tableau, control), problem)
    if problem.checkpoint and problem.field is not None:
        state = in_segments(rounds, state, problem)
    else:
        state = yield from rounds(state, None, problem.show)
    return _collect([*state.left, state.rows], known=tableau.fsal)


def _first_step(
    control: Controller, problem: Problem, k1: Tensor, order: int
) -> Generator[Request, Tensor, tuple[Tensor, int]]:
    """[n] signed first step, and the evaluations of f that it cost."""
    if problem.dt is None or control.rounds is not None:
        return (yield from control.first_step(problem, k1, order))
    span = problem.t1 - problem.t0
    return torch.where(problem.dt == 0, span, torch.copysign(problem.dt, span)), 0


def _rounds(
    method: Method, problem: Problem, state: LoopState, number: int | None, show: Callable[[Seen], None]
) -> Generator[Request, Tensor, LoopState]:
    """The next `number` rounds (None: all): each attempts one step of every row. `show` is told of each attempt."""
    rows, left, start, _ = state
    known = method.control.rounds
    field = problem.compiled_field
    sizes = _tight if field is None else _compiled_size
    for index in count(start) if number is None else range(start, start + number):
        if known is None:
            running = int((rows.status == int(Status.RUNNING)).sum())  # the one read of the device
            if running == 0:
                return LoopState(rows, left, index, over=True)
            size = sizes(len(rows.t), running)
            if problem.compact and size < len(rows.t):
                order = (rows.status != int(Status.RUNNING)).int().argsort(stable=True)
                left = (*left, rows.take(order[size:]))
                rows = rows.take(order[:size])
        elif index == known:
            return LoopState(rows, left, index, over=True)
        subset = rows.sample if left else None
        seen: Seen | None
        if field is not None:
            rows, seen = _compiled_round(method, problem, field, rows, index, subset)
        else:
            attempt = method.begin(rows, index)
            while attempt.pending:
                attempt.stages.append((yield Request(subset, *attempt.point())))
            rows, seen = method.end(rows, attempt, problem)
        rows = _stopped(rows, seen, problem, last=index + 1 == method.control.max_steps)
        if seen is not None:
            show(seen)
    return LoopState(rows, left, index + 1, over=False)


def _stopped(rows: Rows, seen: Seen | None, problem: Problem, *, last: bool) -> Rows:
    """The rows, of which those that still run but may not go on are done: by an event, or in the `last` round."""
    status = rows.status
    if problem.event is not None and seen is not None:
        stop = problem.event.stops(problem.samples(rows.sample), seen.step, seen.t_next, seen.accept)
        status = torch.where(stop, int(Status.SUCCESS), status)
    if last:
        status = torch.where(status == int(Status.RUNNING), int(Status.MAX_STEPS), status)
    return rows._replace(status=status)


def _tight(size: int, running: int) -> int:
    """Rows to keep of `size`: those that run."""
    return running


def _compiled_size(size: int, running: int) -> int:
    """Rows to keep of `size` in compiled rounds.

    torch compiles one graph for a fixed number of rows and, once it has seen another, one for any number but 1. A
    compaction costs about as much as a round of a cheap f, so it waits until a quarter is gone.
    """
    return max(running, min(size, 2)) if running <= size * 3 // 4 else size


def _compiled_round(
    method: Method, problem: Problem, field: "Field", rows: Rows, index: int, subset: Tensor | None
) -> tuple[Rows, Seen | None]:
    """One round as one graph, f included."""
    if index == 0:
        rows = _typical(rows)
    if method.control.rounds is None:
        # the index itself is not used; each value would be another graph
        index = 0 if method.tableau.fsal else min(index, 1)
    run = field.compiled(_round, method)
    rows, seen, evaluations = run(field.bound(problem.asked(subset)), method, problem, rows, index)
    field.calls += evaluations
    return rows, seen


def _round(f: "Bound", method: Method, problem: Problem, rows: Rows, index: int) -> tuple[Rows, Seen | None, int]:
    attempt = method.begin(rows, index)
    while attempt.pending:
        attempt.stages.append(f(*attempt.point()))
    rows, seen = method.end(rows, attempt, problem)
    return rows, seen if problem.observers else None, attempt.evaluations


def _typical(rows: Rows) -> Rows:
    """The first round's rows made like all later ones, lest they need a graph of their own.

    That is: tensors that share no memory and are contiguous, and whatever may require gradients does.
    """
    rows = Rows(*(field.clone(memory_format=torch.contiguous_format) for field in rows))
    if not torch.is_grad_enabled() or not (rows.y.requires_grad or rows.k1.requires_grad):
        return rows
    later = {name: getattr(rows, name) for name in ("y", "k1", "error", "accumulated")}
    return rows._replace(
        **{name: x if x.requires_grad else x.requires_grad_() for name, x in later.items()},
    )


def _start(problem: Problem, k1: Tensor, dt: Tensor, *, nfe: int) -> Rows:
    zero = torch.zeros_like(problem.t0)
    none = torch.zeros_like(problem.t0, dtype=torch.int64)
    finite = k1.isfinite().all(1) & problem.y0.isfinite().all(1)
    return Rows(
        sample=torch.arange(len(problem), device=zero.device),
        t0=problem.t0,
        t1=problem.t1,
        k1=k1,
        y=problem.y0,
        t=problem.t0,
        nfe=none + nfe,
        n_steps=none,
        n_accepted=none,
        error=zero,
        status=torch.where(finite, int(Status.RUNNING), int(Status.NON_FINITE)),
        dt=dt,
        memory=torch.ones_like(zero),
        accumulated=zero,
    )


def _share(value: object, step: Step) -> Tensor:
    """What `accumulate` returned, checked."""
    if isinstance(value, Tensor) and value.shape == step.t.shape:
        return value
    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(f"accumulate: expected a tensor of shape {tuple(step.t.shape)}, one value a sample, got {got}")


def _collect(parts: list[Rows], *, known: bool) -> Result:
    """The rows of all parts in the problem's order; `known`: whether their k1 is f at their end."""
    rows = parts[0]
    if len(parts) > 1:
        rows = Rows(*(torch.cat(field) for field in zip(*parts, strict=True)))
        rows = rows.take(rows.sample.argsort())
    if not known:
        rows = rows._replace(k1=torch.full_like(rows.k1, torch.nan))
    return Result(**{name: getattr(rows, name) for name in Result._fields if name in Rows._fields})
