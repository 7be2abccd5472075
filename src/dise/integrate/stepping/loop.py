"""The integration loop: rounds of attempted steps until every sample has ended."""

import math
from collections.abc import Callable, Generator
from functools import partial

import torch
from torch import Tensor

from dise.integrate.clock import real_dtype
from dise.integrate.multistep.own_steps import AdamsFormula, History
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration, Request, Result
from dise.integrate.problem.run import Run
from dise.integrate.runge_kutta.step import Step, StepError, finite_rows
from dise.integrate.runge_kutta.tableau import ButcherTableau
from dise.integrate.status import Status
from dise.integrate.stepping.checkpoint import in_segments
from dise.integrate.stepping.common_steps import CommonSteps, Reached
from dise.integrate.stepping.control import Controller
from dise.integrate.stepping.interruptions import interrupted, located
from dise.integrate.stepping.method import Method
from dise.integrate.stepping.pieces import first_pieces, next_pieces
from dise.integrate.stepping.rounds import EagerRounds, Rounds
from dise.integrate.stepping.rows import RUNNING, DroppedRows, LoopEvents, LoopRows, LoopState, StoppedRows
from dise.integrate.tracing import check_readable, known_all, known_finite, known_none, on_host


def integrate(tableau: ButcherTableau | AdamsFormula, control: Controller, problem: Problem, run: Run) -> Integration:
    """Integrate every sample of the problem with its own steps, as a coroutine (see `dise.integrate.problem.requests`).

    A sample that has reached t1, or failed, is frozen: it keeps its state while the others continue, and with
    `run.drop_finished` it leaves the batch. The device is read once per round, or never if the number of steps is
    known.
    """
    first = [(yield from problem.first_stage())]
    common = CommonSteps.of(tableau, control, problem, run)
    reached = None
    if common is not None:
        outcome = yield from common.take(problem, run, first)
        if isinstance(outcome, Result):
            return outcome
        reached, first = outcome, [outcome.slope]
    return (yield from _separate_steps(tableau, control, problem, run, first, reached))


def _separate_steps(
    tableau: ButcherTableau | AdamsFormula,
    control: Controller,
    problem: Problem,
    run: Run,
    first: list[Tensor],
    reached: Reached | None,
) -> Integration:
    """The integration with steps of each sample's own, after those that all have taken in common.

    Args:
        tableau, control, problem, run: see `integrate`.
        first: the first stage [n, F], which is taken out.
        reached: the end of the common steps; None: there are none.
    """
    k1 = first.pop()
    values = (k1, problem.y0, problem.t0, problem.t1)
    if control.rounds is None:
        check_readable("integrator: an adaptive solve", *values)
    if run.observers or run.events is not None:
        check_readable(
            "save_at, dense, record, progress or event", *values, advice="end one solve where the next begins"
        )
    if problem.breaks is not None:
        control, problem = control.with_breaks(problem, problem.breaks)
    dt, evaluations = yield from control.first_step(problem, k1, tableau.first_order, run)
    control = control.with_restarts() if run.events is not None and run.events.changes else control
    method = Method(tableau, control)
    # popped, not named, and k1 too: this frame would hold the first stage until the end
    start = [_start(method, problem, run, k1, dt, reached)]
    del k1, values
    if run.events is not None:
        samples = torch.arange(len(problem), device=problem.t0.device)
        memory = run.events.start(problem.samples(samples))
        start.append(_with_events(start.pop(), LoopEvents(memory)))
    advance = partial(_advance, method, problem, run)
    if run.checkpoint and run.field is not None:
        state = in_segments(advance, start.pop(), problem, run, run.field)
    else:
        state = yield from advance(start.pop(), None, partial(run.show, problem))
    if run.events is not None and state.events is not None:
        late, happened = located(state.events, run.events)
        state = state._replace(events=happened)
        for record in late:
            run.show(problem, record)
    return _collect(state, method, first=1 + evaluations)


def _advance(
    method: Method,
    problem: Problem,
    run: Run,
    state: LoopState,
    number: int | None,
    show: Callable[[StepRecord], None],
) -> Generator[Request, Tensor, LoopState]:
    """The loop's state after `number` more rounds (None: all). `show` is called with each attempted step."""
    rows, left, index, running, _, happened = state
    del state  # it would hold the start's first stage
    control = method.control
    rounds: Rounds = (run.rounds or EagerRounds)(method, problem, run)
    limits = (control.rounds, control.max_steps, None if number is None else index + number)
    end = min((limit for limit in limits if limit is not None), default=math.inf)
    while index < end:
        mask = None
        if running is None and control.rounds is None:
            mask = rows.status == RUNNING
            running = int(mask.count_nonzero())  # the only device sync of a round
        if running == 0:
            return LoopState(rows, left, index, 0, over=True, events=happened)
        if running is not None and run.drop_finished:
            size = rounds.size(rows.t.shape[0], running)
            if size < rows.t.shape[0]:
                mask = rows.status == RUNNING if mask is None else mask
                rows, left = _dropped(rows, size, mask, left, exact=size == running and on_host(mask))
        subset = rows.sample if left.parts else None
        done = yield from rounds.attempt(rows, index, subset, running, end - index)
        rows, running, index = done.rows, done.running, index + done.number
        records = [] if done.record is None else [done.record]
        if run.events is not None and happened is not None:
            rows, records, happened = yield from interrupted(done, happened, method, problem, run.events)
            running = running if rows is done.rows else None
        del done
        if problem.breaks is not None:
            rows, running = (yield from next_pieces(rows, problem.breaks, method, subset)), None
        if index == control.max_steps:
            status = rows.status.masked_fill(rows.status == RUNNING, int(Status.MAX_STEPS))
            rows, running = rows._replace(status=status), 0
        while records:  # not by a loop variable, which would hold the step's states during the next round
            show(records.pop(0))
    return LoopState(rows, left, index, running, index in (control.rounds, control.max_steps), happened)


def _dropped(
    rows: LoopRows, size: int, running: Tensor, left: DroppedRows, *, exact: bool
) -> tuple[LoopRows, DroppedRows]:
    """The rows without all but `size` of them, those that run [n] first, and those dropped so far.

    `exact`: `size` rows run, and the device need not be read to see which.
    """
    if exact:
        kept, dropped = running.nonzero().flatten(), running.logical_not().nonzero().flatten()
    else:
        order = running.argsort(descending=True, stable=True)
        kept, dropped = order[:size], order[size:]
    return rows.take(kept), left.with_rows(rows, dropped)


def empty_step(problem: Problem, k1: Tensor, tableau: ButcherTableau | AdamsFormula) -> Step:
    """A step of length 0 at the start."""
    stages, zero = (k1,) * tableau.stages, torch.zeros_like(problem.t0)
    estimate = None
    if isinstance(tableau, AdamsFormula):
        order = torch.full_like(zero, tableau.first_order, dtype=real_dtype(problem.y0))
        estimate = StepError(torch.zeros_like(problem.y0), order)
    return Step(problem.t0, zero, problem.y0, problem.y0, stages, tableau, estimate=estimate)


def _start(
    method: Method, problem: Problem, run: Run, k1: Tensor, dt: Tensor, reached: Reached | None = None
) -> LoopState:
    """The loop before the first step, or where the steps that all samples have taken in common end."""
    control, accumulate = method.control, run.accumulate
    reached = reached or Reached(0, problem.t0, problem.y0, k1)
    none = torch.zeros_like(problem.t0, dtype=torch.int64)
    status = torch.full_like(none, RUNNING)
    error = torch.full_like(problem.t0, torch.nan if control.test is None else 0, dtype=real_dtype(problem.y0))
    usable = known_all(dt)
    if not usable:
        status = status.masked_fill(dt.detach() == 0, int(Status.STEP_UNDERFLOW))
    finite = reached.steps > 0 or (known_finite(k1) and known_finite(problem.y0))
    if not finite:
        status = status.masked_fill(~(finite_rows(k1) & finite_rows(problem.y0)), int(Status.NON_FINITE))
    accumulated = None
    if accumulate is not None:
        step, field = empty_step(problem, k1, method.tableau), run.field_of_statistics(problem, None)
        accumulated = accumulate.start(step, field)
    rows = LoopRows(
        sample=torch.arange(problem.y0.shape[0], device=none.device),
        t1=problem.t1,
        k1=k1,
        y=reached.y,
        t=reached.t,
        n_steps=none + reached.steps,
        n_accepted=none + reached.steps,
        error=error,
        status=status,
        dt=dt,
        t0=problem.t0 if control.on_grid else None,
        known=None if method.always_known else torch.ones_like(none, dtype=torch.bool),
        memory=torch.ones_like(error) if control.remembers else None,
        accumulated=accumulated,
        restarts=None if run.events is None and problem.breaks is None else none,
    )
    if isinstance(method.tableau, AdamsFormula):
        rows = rows.with_history(History.none(method.tableau, problem.t0, problem.y0))
    if problem.breaks is not None:
        rows = first_pieces(rows, problem.breaks)
    return LoopState(rows, DroppedRows(), reached.steps, len(problem) if finite and usable else None)


def _with_events(state: LoopState, events: LoopEvents) -> LoopState:
    """The loop before the first step, with its events; samples at whose start the function of one is NaN have ended."""
    undefined = events.memory.side.isnan().any(1)
    if known_none(undefined):
        return state._replace(events=events)
    status = state.rows.status
    status = status.masked_fill(undefined & (status == RUNNING), int(Status.EVENT_NAN))
    return state._replace(rows=state.rows._replace(status=status), running=None, events=events)


def _collect(state: LoopState, method: Method, *, first: int) -> Result:
    """The rows of all parts in the problem's order; `first`: evaluations of f before the first step."""
    rows = state.rows
    if state.left.parts:
        rows = state.left.taken(rows)
        rows = rows.take(rows.sample.argsort())
    if state.events is not None and state.events.stopped:
        stopped = StoppedRows(*(torch.cat(column) for column in zip(*state.events.stopped, strict=True)))
        index = (stopped.sample,)
        rows = rows._replace(
            t=rows.t.index_put(index, stopped.t),
            y=rows.y.index_put(index, stopped.y),
            k1=rows.k1.index_put(index, torch.full_like(stopped.y, torch.nan)),
        )
    results = {name: getattr(rows, name) for name in Result._fields if name in LoopRows._fields}
    if rows.accumulated is None:
        results["accumulated"] = torch.zeros_like(rows.error)
    if not method.tableau.fsal:
        # With fixed steps k1 is known only after a failed step, and failed samples are not resumed.
        results["k1"] = None if rows.known is None else torch.where(rows.known[:, None], rows.k1, torch.nan)
    return Result(nfe=method.evaluations(rows, first), **results)
