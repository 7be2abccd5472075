"""The integration loop: which samples still run, and what becomes of each attempted step."""

import math
from collections.abc import Callable, Generator
from functools import partial

import torch
from torch import Tensor

from dise.integrate.compile.rounds import Graphs
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration, Request, Result
from dise.integrate.runge_kutta.step import all_finite
from dise.integrate.runge_kutta.tableau import ButcherTableau
from dise.integrate.status import Status
from dise.integrate.stepping.checkpoint import in_segments
from dise.integrate.stepping.control import Controller
from dise.integrate.stepping.method import Method
from dise.integrate.stepping.rows import RUNNING, LoopRows, LoopState
from dise.integrate.tracing import known_all, known_finite


def integrate(tableau: ButcherTableau, control: Controller, problem: Problem) -> Integration:
    """Integrate every sample of the problem with its own steps, as a coroutine (see `dise.integrate.problem.problem`).

    A sample that has reached t1, or failed, is frozen: it keeps its state while the others go on, and with
    `problem.drop_finished` it leaves the batch. The device is read once a step, and never if the
    number of steps is known.
    """
    k1 = yield from problem.first_stage()
    dt, evaluations = yield from control.first_step(problem, k1, tableau.order)
    method = Method(tableau, control)
    state = LoopState(_start(problem, k1, dt, measured=control.test is not None), (), 0, over=False)
    rounds = partial(_rounds, method, problem)
    if problem.checkpoint and problem.field is not None:
        state = in_segments(rounds, state, problem)
    else:
        state = yield from rounds(state, None, problem.show)
    return _collect([*state.left, state.rows], method, first=1 + evaluations)


def _rounds(
    method: Method, problem: Problem, state: LoopState, number: int | None, show: Callable[[StepRecord], None]
) -> Generator[Request, Tensor, LoopState]:
    """The next `number` rounds (None: all): each attempts one step of every row. `show` is told of each attempt."""
    rows, left, index, _ = state
    control, field = method.control, problem.compiled_field
    graphs = None if field is None else Graphs(method, problem, field)
    limits = (control.rounds, control.max_steps, None if number is None else index + number)
    end = min((limit for limit in limits if limit is not None), default=math.inf)
    running: int | None = None  # how many rows run, where it is known
    while index < end:
        if control.rounds is None:
            if running is None:
                running = int((rows.status == RUNNING).count_nonzero())  # the one read of a device
            if running == 0:
                return LoopState(rows, left, index, over=True)
            size = running if graphs is None else graphs.size(rows.t.shape[0], running)
            if problem.drop_finished and size < rows.t.shape[0]:
                rows, gone = _split(rows, size)
                left = (*left, gone)
            whole = running == rows.t.shape[0]  # whether all rows are known to run
        else:
            whole = graphs is None and known_all(rows.status == RUNNING)
        subset = rows.sample if left else None
        if graphs is not None:
            rows, seen, together, running = graphs.rounds(rows, index, subset, end - index)
        else:
            before = rows.status
            rows, one = yield from _one_round(method, problem, rows, index, subset, whole=whole)
            seen, together, running = [one], 1, running if rows.status is before else None
        index += together
        last = index == control.max_steps
        if last or problem.event is not None:
            rows, running = _stopped(rows, seen, problem, last=last), None
        for attempted in seen:
            show(attempted)
    return LoopState(rows, left, index, over=index in (control.rounds, control.max_steps))


def _one_round(
    method: Method, problem: Problem, rows: LoopRows, index: int, subset: Tensor | None, *, whole: bool
) -> Generator[Request, Tensor, tuple[LoopRows, StepRecord]]:
    """The rows a round on, and what happened. `whole` says that all of them run."""
    running = None if whole else rows.status == RUNNING
    rows, known = yield from _first_stages(method, rows, index, running, subset)
    attempt = method.begin(rows, index, running, known=known)
    while attempt.pending:
        attempt.stages.append((yield Request(subset, *attempt.point())))
    return method.end(rows, attempt, problem, running)


def _first_stages(
    method: Method, rows: LoopRows, index: int, running: Tensor | None, subset: Tensor | None
) -> Generator[Request, Tensor, tuple[LoopRows, bool]]:
    """The rows, and whether their k1 are all known now.

    After a rejected step k1 is what it was. Where a method does not know it after an accepted one, either all rows
    moved, and their steps begin by asking for it; or f is asked for those that did, which is worth one more read of the
    device.
    """
    if index == 0 or method.tableau.fsal or method.control.rounds is not None:
        return rows, False
    moved = ~rows.known if running is None else running & ~rows.known
    asked = moved.nonzero().flatten()
    if len(asked) == len(moved):
        return rows, False
    if len(asked):
        k1 = yield Request(asked if subset is None else subset[asked], rows.t[asked], rows.y[asked])
        rows = rows._replace(k1=rows.k1.index_put((asked,), k1))
    return rows, True


def _split(rows: LoopRows, size: int) -> tuple[LoopRows, LoopRows]:
    """The first `size` rows and the others, in an order in which those that run come first."""
    order = (rows.status == RUNNING).argsort(descending=True, stable=True)
    return rows.take(order[:size]), rows.take(order[size:])


def _stopped(rows: LoopRows, seen: list[StepRecord], problem: Problem, *, last: bool) -> LoopRows:
    """The rows, of which those are done that an event stopped, or that still run after the `last` round."""
    status = rows.status
    if problem.event is not None and seen:
        step, t_next, accept = seen[-1].step, seen[-1].t_next, seen[-1].accept
        stop = problem.event.stops(problem.samples(rows.sample), step, t_next, accept)
        status = status.masked_fill(stop, int(Status.SUCCESS))
    if last:
        status = status.masked_fill(status == RUNNING, int(Status.MAX_STEPS))
    return rows._replace(status=status)


def _start(problem: Problem, k1: Tensor, dt: Tensor, *, measured: bool) -> LoopRows:
    """The samples before their first step; `measured` says whether steps have error estimates."""
    zero = torch.zeros_like(problem.t0)
    none = torch.zeros_like(problem.t0, dtype=torch.int64)
    status = torch.full_like(none, RUNNING)
    if not (known_finite(k1.detach()) and known_finite(problem.y0.detach())):
        status = status.masked_fill(~(all_finite(k1) & all_finite(problem.y0)), int(Status.NON_FINITE))
    return LoopRows(
        sample=torch.arange(problem.y0.shape[0], device=zero.device),
        t0=problem.t0,
        t1=problem.t1,
        k1=k1,
        known=torch.ones_like(none, dtype=torch.bool),
        y=problem.y0,
        t=problem.t0,
        n_steps=none,
        n_accepted=none,
        error=zero if measured else torch.full_like(zero, torch.nan),
        status=status,
        dt=dt,
        memory=torch.ones_like(zero),
        accumulated=zero,
    )


def _collect(parts: list[LoopRows], method: Method, *, first: int) -> Result:
    """The rows of all parts in the problem's order; `first`: evaluations of f before the first step."""
    rows = parts[0]
    if len(parts) > 1:
        rows = LoopRows(*(torch.cat(field) for field in zip(*parts, strict=True)))
        rows = rows.take(rows.sample.argsort())
    columns = {name: getattr(rows, name) for name in Result._fields if name in LoopRows._fields}
    if not method.tableau.fsal:
        # of fixed steps only a failed one's is known, which nobody goes on from
        adaptive = method.control.rounds is None
        columns["k1"] = torch.where(rows.known[:, None], rows.k1, torch.nan) if adaptive else None
    return Result(nfe=first + method.evaluations(rows), **columns)
