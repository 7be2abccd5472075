"""Interruptions: steps that end at an event, where a sample stops or continues from another state.

A state is changed at once. Where events only stop samples, a stopped one leaves the loop, and its step waits: searching
for many events takes little longer than for one, so those of many rounds are located together.
"""

from collections.abc import Generator, Mapping

import torch
from torch import Tensor

from dise.integrate.problem.hooks import EventRule, EventSteps, StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request
from dise.integrate.status import Status
from dise.integrate.stepping.method import Method
from dise.integrate.stepping.pieces import in_last_piece
from dise.integrate.stepping.restart import restart
from dise.integrate.stepping.rounds import RoundsDone
from dise.integrate.stepping.rows import LoopEvents, LoopRows, StoppedRows

WAITING_NUMEL = 2**16  # numbers in the steps that wait; of a large state one step is located at a time


def interrupted(
    done: RoundsDone, loop: LoopEvents, method: Method, problem: Problem, events: EventRule
) -> Generator[Request, Tensor, tuple[LoopRows, list[StepRecord], LoopEvents]]:
    """The rows, stopped or restarted where an event interrupted their step; the records to show; the loop's events.

    Args:
        done: rounds, with a record; one if events may change states.
        loop: the events before them.
        method, problem: of the rows.
        events: that are looked for.
    """
    rows, record = done.rows, done.record
    if record is None:
        raise RuntimeError("rounds without a record")
    own = record._replace(sample=problem.samples(record.sample))
    memory, found, cut, undefined = events.look(loop.memory, record.sample, own)
    loop = loop._replace(memory=memory)
    if events.changes:
        if found is not None:
            rows, record, loop = yield from _changed(rows, record, found, loop, method, problem, events)
        return _ended(rows, undefined, Status.EVENT_NAN, problem), [record], loop
    if record.rounds > 1:
        rows, record = _without_later_rounds(rows, record, done.after or {}, cut, undefined, fsal=method.tableau.fsal)
    rows = _ended(_ended(rows, cut, Status.SUCCESS, problem), undefined, Status.EVENT_NAN, problem)
    if cut is not None:
        record = record._replace(accept=record.accept > cut, stopped=cut)
    late, loop = ([], loop) if found is None else _waiting(loop, found, events)
    return rows, [record, *late], loop


def _ended(rows: LoopRows, steps: Tensor | None, status: Status, problem: Problem) -> LoopRows:
    """The rows [n], of which those of some steps [rounds · n] have ended, wherever they are."""
    if steps is None:
        return rows
    which = steps if len(steps) == len(rows.t) else steps.view(-1, len(rows.t)).any(0)
    rows = rows._replace(status=rows.status.masked_fill(which, int(status)))
    return in_last_piece(rows, problem.breaks, which)


def _without_later_rounds(
    rows: LoopRows,
    record: StepRecord,
    after: Mapping[str, Tensor],
    cut: Tensor | None,
    undefined: Tensor | None,
    *,
    fsal: bool,
) -> tuple[LoopRows, StepRecord]:
    """The rows, those that ended in one of several rounds as they were after it, and the record without later steps.

    Args:
        rows: n of them, after all rounds.
        record: of the rounds.
        after: columns of the rows after each round.
        cut, undefined: [rounds · n] the steps in which rows ended, at most one of each row.
        fsal: whether the last stage is the next step's first.
    """
    steps = undefined if cut is None else cut if undefined is None else cut | undefined
    if steps is None:
        return rows, record
    number, ended = len(rows.t), steps.view(record.rounds, -1)
    step = steps.nonzero().flatten()
    columns = {name: getattr(rows, name).index_put((step % number,), x[step]) for name, x in after.items()}
    rows = rows._replace(**columns)
    if undefined is not None:  # of the others the event's time and state are kept
        step, last = undefined.nonzero().flatten(), record.step
        row = (step % number,)
        rows = rows._replace(
            t=rows.t.index_put(row, record.t_next[step]),
            y=rows.y.index_put(row, last.y_next[step]),
            k1=rows.k1.index_put(row, last.stages[-1][step]) if fsal else rows.k1,
        )
    return rows, record._replace(accept=record.accept & (ended.cumsum(0) == ended).flatten())


def _waiting(loop: LoopEvents, found: EventSteps, events: EventRule) -> tuple[list[StepRecord], LoopEvents]:
    """The loop's events with those of further steps, and the records of steps that were located for lack of room.

    Steps of small states wait with all of their rows, until there is no room: taking rows out of each takes longer.
    """
    found = found if found.record.numel < WAITING_NUMEL else found.compact()
    loop = loop._replace(waiting=(*loop.waiting, found))
    if sum(part.record.numel for part in loop.waiting) < WAITING_NUMEL:
        return [], loop
    compact = EventSteps.joined(loop.waiting).compact()
    loop = loop._replace(waiting=(compact,))
    return ([], loop) if 2 * compact.record.numel < WAITING_NUMEL else located(loop, events)


def located(loop: LoopEvents, events: EventRule) -> tuple[list[StepRecord], LoopEvents]:
    """The records of the steps that waited, cut where an event stopped them, and the loop's events without them."""
    if not loop.waiting:
        return [], loop
    found = EventSteps.joined(loop.waiting)
    happened, cut = events.locate(found)
    row = found.row[:0] if cut is None else cut.row
    record, place = found.record.take(row), found.place[row]
    stopped = loop.stopped
    if cut is not None:
        record = record._replace(step=record.step._replace(y_next=cut.y), t_next=cut.t)
        stopped = (*stopped, StoppedRows(place, cut.t, cut.y))
    return [record._replace(sample=place, late=True, events=happened)], loop._replace(waiting=(), stopped=stopped)


def _changed(
    rows: LoopRows,
    record: StepRecord,
    found: EventSteps,
    loop: LoopEvents,
    method: Method,
    problem: Problem,
    events: EventRule,
) -> Generator[Request, Tensor, tuple[LoopRows, StepRecord, LoopEvents]]:
    """The rows where events may change states, stopped or restarted at once; see `interrupted`."""
    happened, cut = events.locate(found)
    record = record._replace(events=happened)
    if cut is None:
        return rows, record, loop
    index, step, next_dt = (cut.row,), record.step, rows.dt
    rows = rows._replace(
        t=rows.t.index_put(index, cut.t),
        y=rows.y.index_put(index, cut.y_after),
        k1=rows.k1.index_put(index, torch.full_like(cut.y, torch.nan)),
        status=rows.status.index_put(index, torch.full_like(cut.row, int(Status.SUCCESS))),
    )
    stop = torch.zeros_like(record.accept).index_put(index, cut.stop)
    rows = in_last_piece(rows, problem.breaks, stop)
    goes_on = (~cut.stop).nonzero().flatten()
    if cut.memory is not None and len(goes_on):
        loop = loop._replace(memory=loop.memory.put(record.sample[cut.row], cut.memory))
        undefined = cut.memory.side.isnan().any(1) & ~cut.stop  # in the changed state
        row, next_dt = cut.row[goes_on], next_dt[cut.row[goes_on]]
        # how far the step came tells how fast the state changes, but an event soon after its start tells nothing
        length = torch.maximum((cut.t[goes_on] - step.t[row]).abs(), 0.1 * step.dt[row].abs()).detach()
        dt = torch.copysign(torch.minimum(length, next_dt.abs()), next_dt)
        rows = yield from restart(rows, row, cut.t[goes_on], cut.y_after[goes_on], dt, method, problem)
        undefined = torch.zeros_like(record.accept).index_put(index, undefined)
        rows = _ended(rows, undefined, Status.EVENT_NAN, problem)
    step = step._replace(y_next=step.y_next.index_put(index, cut.y))
    return rows, record._replace(step=step, t_next=record.t_next.index_put(index, cut.t)), loop
