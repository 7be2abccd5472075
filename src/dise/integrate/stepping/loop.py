"""The integration loop: rounds of attempted steps until every sample has ended."""

import math
from collections.abc import Callable, Generator
from functools import partial

import torch
from torch import Tensor

from dise.integrate.clock import real_dtype
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration, Request, Result
from dise.integrate.problem.run import Run
from dise.integrate.runge_kutta.step import finite_rows
from dise.integrate.runge_kutta.tableau import ButcherTableau
from dise.integrate.status import Status
from dise.integrate.stepping.checkpoint import in_segments
from dise.integrate.stepping.control import Controller
from dise.integrate.stepping.method import Method
from dise.integrate.stepping.rounds import EagerRounds, Rounds
from dise.integrate.stepping.rows import RUNNING, LoopRows, LoopState
from dise.integrate.tracing import check_readable, known_all, known_finite


def integrate(tableau: ButcherTableau, control: Controller, problem: Problem, run: Run) -> Integration:
    """Integrate every sample of the problem with its own steps, as a coroutine (see `dise.integrate.problem.requests`).

    A sample that has reached t1, or failed, is frozen: it keeps its state while the others continue, and with
    `run.drop_finished` it leaves the batch. The device is read once per round, or never if the number of steps is
    known.
    """
    k1 = yield from problem.first_stage()
    values = (k1, problem.y0, problem.t0, problem.t1)
    if control.rounds is None:
        check_readable("integrator: an adaptive solve", *values)
    if run.observers or run.stop is not None:
        check_readable(
            "save_at, dense, record, progress or event", *values, advice="end one solve where the next begins"
        )
    dt, evaluations = yield from control.first_step(problem, k1, tableau.order, run)
    method = Method(tableau, control)
    state = _start(problem, k1, dt, measured=control.test is not None)
    advance = partial(_advance, method, problem, run)
    if run.checkpoint and run.field is not None:
        state = in_segments(advance, state, problem, run)
    else:
        state = yield from advance(state, None, partial(run.show, problem))
    return _collect([*state.left, state.rows], method, first=1 + evaluations)


def _advance(
    method: Method,
    problem: Problem,
    run: Run,
    state: LoopState,
    number: int | None,
    show: Callable[[StepRecord], None],
) -> Generator[Request, Tensor, LoopState]:
    """The loop's state after `number` more rounds (None: all). `show` is called with each attempted step."""
    rows, left, index, running, _ = state
    control = method.control
    rounds: Rounds = (run.rounds or EagerRounds)(method, problem, run)
    limits = (control.rounds, control.max_steps, None if number is None else index + number)
    end = min((limit for limit in limits if limit is not None), default=math.inf)
    while index < end:
        if running is None and control.rounds is None:
            running = int((rows.status == RUNNING).count_nonzero())  # the only device sync of a round
        if running == 0:
            return LoopState(rows, left, index, 0, over=True)
        if running is not None and run.drop_finished:
            size = rounds.size(rows.t.shape[0], running)
            if size < rows.t.shape[0]:
                rows, finished = _split(rows, size)
                left = (*left, finished)
        subset = rows.sample if left else None
        rows, records, done, running = yield from rounds.attempt(rows, index, subset, running, end - index)
        index += done
        last = index == control.max_steps
        if last or run.stop is not None:
            rows, running = _stopped(rows, records, problem, run, last=last), None
        for record in records:
            show(record)
    return LoopState(rows, left, index, running, over=index in (control.rounds, control.max_steps))


def _split(rows: LoopRows, size: int) -> tuple[LoopRows, LoopRows]:
    """The first `size` rows and the others, ordered such that those that run come first."""
    order = (rows.status == RUNNING).argsort(descending=True, stable=True)
    return rows.take(order[:size]), rows.take(order[size:])


def _stopped(rows: LoopRows, records: list[StepRecord], problem: Problem, run: Run, *, last: bool) -> LoopRows:
    """The rows with the status of those that an event stopped, and of those that still run after the `last` round."""
    status = rows.status
    if run.stop is not None and records:
        step, t_next, accept = records[-1].step, records[-1].t_next, records[-1].accept
        stop = run.stop.stops(problem.samples(rows.sample), step, t_next, accept)
        status = status.masked_fill(stop, int(Status.SUCCESS))
    if last:
        status = status.masked_fill(status == RUNNING, int(Status.MAX_STEPS))
    return rows._replace(status=status)


def _start(problem: Problem, k1: Tensor, dt: Tensor, *, measured: bool) -> LoopState:
    """The loop before the first step; `measured` says whether steps have error estimates."""
    zero = torch.zeros_like(problem.t0, dtype=real_dtype(problem.y0))
    none = torch.zeros_like(problem.t0, dtype=torch.int64)
    status = torch.full_like(none, RUNNING)
    stepping = dt.detach() != 0
    usable = known_all(stepping)
    if not usable:
        status = status.masked_fill(~stepping, int(Status.STEP_UNDERFLOW))
    finite = known_finite(k1.detach()) and known_finite(problem.y0.detach())
    if not finite:
        status = status.masked_fill(~(finite_rows(k1) & finite_rows(problem.y0)), int(Status.NON_FINITE))
    rows = LoopRows(
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
    return LoopState(rows, (), 0, len(problem) if finite and usable else None)


def _collect(parts: list[LoopRows], method: Method, *, first: int) -> Result:
    """The rows of all parts in the problem's order; `first`: evaluations of f before the first step."""
    rows = parts[0]
    if len(parts) > 1:
        rows = LoopRows(*(torch.cat(field) for field in zip(*parts, strict=True)))
        rows = rows.take(rows.sample.argsort())
    columns = {name: getattr(rows, name) for name in Result._fields if name in LoopRows._fields}
    if not method.tableau.fsal:
        # With fixed steps k1 is known only after a failed step, and failed samples are not resumed.
        adaptive = method.control.rounds is None
        columns["k1"] = torch.where(rows.known[:, None], rows.k1, torch.nan) if adaptive else None
    return Result(nfe=first + method.evaluations(rows), **columns)
