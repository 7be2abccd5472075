"""The integration loop: which samples still run, and what becomes of each attempted step."""

import math
from collections.abc import Callable, Generator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.compiled import identity
from dise.integrate.control import Controller
from dise.integrate.field import Bound, Field, call
from dise.integrate.gradient import in_segments
from dise.integrate.observe import Seen
from dise.integrate.problem import Integration, Problem, Request, Result
from dise.integrate.solution import Status, all_seen, seen_finite
from dise.integrate.step import Attempt, Step, all_finite
from dise.integrate.tableau import ButcherTableau

RUNNING = int(Status.RUNNING)
TOGETHER = 4  # compiled rounds in one graph, between two reads of the device
LARGE = 2**14  # numbers in a state from which on a graph's own work outweighs what torch takes to call it


class Rows(NamedTuple):
    """The samples in the loop, a row each."""

    sample: Tensor  # which of the problem's samples
    t0: Tensor
    t1: Tensor
    k1: Tensor  # f(t, y), where it is known
    known: Tensor  # [n] bool, whether it is: always if the method evaluates f at a step's end, else until the row moves
    y: Tensor
    t: Tensor
    n_steps: Tensor
    n_accepted: Tensor
    error: Tensor
    status: Tensor
    dt: Tensor
    memory: Tensor  # the controller's
    accumulated: Tensor

    def take(self, rows: Tensor) -> "Rows":
        """Some of the rows."""
        return Rows(*(field.index_select(0, rows) for field in self))


class Method(NamedTuple):
    """A Runge–Kutta method with its stepping rule."""

    tableau: ButcherTableau
    control: Controller

    def begin(self, rows: Rows, index: int, running: Tensor | None, *, known: bool = False) -> Attempt:
        """The rows' step number `index`; those that are not `running` [n] step on the spot (None: all run).

        `known` says that the k1 of all rows is, even if the method does not know it at the end of a step.
        """
        t_next = self.control.end(index, rows.t, rows.dt, rows.t0, rows.t1)
        if running is not None:
            t_next = torch.where(running, t_next, rows.t)
        known = known or index == 0 or self.tableau.fsal
        return Attempt(self.tableau, rows.t, t_next, rows.y, rows.k1 if known else None)

    def end(self, rows: Rows, attempt: Attempt, problem: Problem, running: Tensor | None) -> tuple[Rows, Seen]:
        """The rows after the step: moved if it was accepted, frozen if they were."""
        step, t_next = attempt.finish(), attempt.t_next
        if running is None and self.control.passes(step):
            return self._passed(rows, step, t_next, problem)
        accept, error, dt, status, memory = self.control.judge(step, rows.memory, problem)
        arrived = accept if t_next is rows.t1 else accept & (t_next == rows.t1)
        status = status.masked_fill(arrived, int(Status.SUCCESS))
        # a last step is cut short: who goes on tries the whole one; that of equal steps is known
        dt = torch.where(arrived, rows.dt, dt) if self.control.rounds is None else rows.dt
        known = rows.known if self.tableau.fsal else ~accept
        if running is not None:
            accept, status, dt, known = (
                accept & running,
                torch.where(running, status, rows.status),
                torch.where(running, dt, rows.dt),
                torch.where(running, known, rows.known),
            )
        every = running is None and all_seen(accept)

        def moved(new: Tensor, old: Tensor) -> Tensor:
            """The new values of the rows that moved."""
            return new if every else torch.where(accept if new.ndim == 1 else accept[:, None], new, old)

        accumulated = rows.accumulated
        if problem.accumulate is not None:
            accumulated = moved(accumulated + _share(problem.accumulate(step), step), accumulated)
        after = Rows(
            sample=rows.sample,
            t0=rows.t0,
            t1=rows.t1,
            k1=moved(step.stages[-1], rows.k1) if self.tableau.fsal else attempt.stages[0],
            known=known,
            y=moved(step.y_next, rows.y),
            t=moved(t_next, rows.t),
            n_steps=rows.n_steps + (1 if running is None else running),
            n_accepted=rows.n_accepted + accept,
            error=moved(rows.error + error, rows.error),
            status=status,
            dt=dt,
            memory=memory,
            accumulated=accumulated,
        )
        return after, Seen(rows.sample, step, t_next, error, accept)

    def _passed(self, rows: Rows, step: Step, t_next: Tensor, problem: Problem) -> tuple[Rows, Seen]:
        """The rows after a step that all of them have taken, whose error nobody measures."""
        after = rows._replace(
            k1=step.stages[-1] if self.tableau.fsal else rows.k1,
            known=rows.known if self.tableau.fsal else torch.zeros_like(rows.known),
            y=step.y_next,
            t=t_next,
            n_steps=rows.n_steps + 1,
            n_accepted=rows.n_accepted + 1,
            status=rows.status.masked_fill(t_next == rows.t1, int(Status.SUCCESS)),
        )
        if problem.accumulate is not None:
            after = after._replace(accumulated=rows.accumulated + _share(problem.accumulate(step), step))
        return after, Seen(rows.sample, step, t_next, rows.error, torch.ones_like(rows.known))

    def evaluations(self, rows: Rows) -> Tensor:
        """[n] evaluations of f that the rows' steps took.

        The first step knows its first stage, and so does one after a rejected step, or after any if the last stage is
        the next one's first.
        """
        if self.tableau.fsal:
            return (self.tableau.stages - 1) * rows.n_steps
        if self.control.rounds is not None:
            repeated = (rows.n_steps > 0).long()  # a rejected step ends a sample
        else:
            repeated = rows.n_steps - rows.n_accepted + ~rows.known
        return self.tableau.stages * rows.n_steps - repeated


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
    method: Method, problem: Problem, state: LoopState, number: int | None, show: Callable[[Seen], None]
) -> Generator[Request, Tensor, LoopState]:
    """The next `number` rounds (None: all): each attempts one step of every row. `show` is told of each attempt."""
    rows, left, index, _ = state
    control, field = method.control, problem.compiled_field
    compiled_rounds = None if field is None else _compiled(method, problem, field)
    limits = (control.rounds, control.max_steps, None if number is None else index + number)
    end = min((limit for limit in limits if limit is not None), default=math.inf)
    outlook: Tensor | None = None  # `_outlook` of the rows
    while index < end:
        ahead = 0.0  # how many rounds one of the rows seems to need
        if control.rounds is None:
            # the one read
            running, ahead = (int((rows.status == RUNNING).sum()), 0.0) if outlook is None else outlook.tolist()
            if running == 0:
                return LoopState(rows, left, index, over=True)
            size = int(running) if field is None else _compiled_size(rows.t.shape[0], int(running))
            if problem.compact and size < rows.t.shape[0]:
                rows, gone = _split(rows, size)
                left = (*left, gone)
            whole = running == rows.t.shape[0]  # whether all rows are known to run
        else:
            whole = field is None and all_seen(rows.status == RUNNING)
        subset = rows.sample if left else None
        if compiled_rounds is not None:
            together = _together(problem, rows, min(ahead, end - index))
            rows, seen, outlook = compiled_rounds(rows, index, subset, together)
        else:
            together = 1
            rows, one = yield from _one_round(method, problem, rows, index, subset, whole=whole)
            seen = [one]
        index += together
        last = index == control.max_steps
        if last or problem.event is not None:
            rows, outlook = _stopped(rows, seen, problem, last=last), None
        for attempted in seen:
            show(attempted)
    return LoopState(rows, left, index, over=index in (control.rounds, control.max_steps))


def _one_round(
    method: Method, problem: Problem, rows: Rows, index: int, subset: Tensor | None, *, whole: bool
) -> Generator[Request, Tensor, tuple[Rows, Seen]]:
    """The rows a round on, and what happened. `whole` says that all of them run."""
    running = None if whole else rows.status == RUNNING
    rows, known = yield from _first_stages(method, rows, index, running, subset)
    attempt = method.begin(rows, index, running, known=known)
    while attempt.pending:
        attempt.stages.append((yield Request(subset, *attempt.point())))
    return method.end(rows, attempt, problem, running)


def _first_stages(
    method: Method, rows: Rows, index: int, running: Tensor | None, subset: Tensor | None
) -> Generator[Request, Tensor, tuple[Rows, bool]]:
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


def _split(rows: Rows, size: int) -> tuple[Rows, Rows]:
    """The first `size` rows and the others, in an order in which those that run come first."""
    order = (rows.status == RUNNING).argsort(descending=True, stable=True)
    return rows.take(order[:size]), rows.take(order[size:])


def _stopped(rows: Rows, seen: list[Seen], problem: Problem, *, last: bool) -> Rows:
    """The rows, of which those are done that an event stopped, or that still run after the `last` round."""
    status = rows.status
    if problem.event is not None and seen:
        step, t_next, accept = seen[-1].step, seen[-1].t_next, seen[-1].accept
        stop = problem.event.stops(problem.samples(rows.sample), step, t_next, accept)
        status = status.masked_fill(stop, int(Status.SUCCESS))
    if last:
        status = status.masked_fill(status == RUNNING, int(Status.MAX_STEPS))
    return rows._replace(status=status)


def _compiled_size(size: int, running: int) -> int:
    """Rows to keep of `size` in compiled rounds.

    torch compiles one graph for a fixed number of rows and, once it has seen another, one for any number but 1. A
    compaction costs about as much as a round of a cheap f, so it waits until a quarter is gone.
    """
    return max(running, min(size, 2)) if running <= size * 3 // 4 else size


def _outlook(rows: Rows) -> Tensor:
    """[2] how many rows run, and the most steps of its present length that one of them has to go."""
    running = rows.status == RUNNING
    ahead = torch.where(running, (rows.t1 - rows.t) / rows.dt, 0)
    return torch.stack([running.sum().double(), ahead.max().double()])


def _together(problem: Problem, rows: Rows, ahead: float) -> int:
    """How many compiled rounds to take at once: some if there are as many, and calling a graph is much of its time."""
    alone = problem.event is not None or rows.y.numel() > LARGE or ahead < TOGETHER
    return 1 if alone else TOGETHER


def _compiled(
    method: Method, problem: Problem, field: Field
) -> Callable[[Rows, int, Tensor | None, int], tuple[Rows, list[Seen], Tensor]]:
    """A function that takes a number of rounds, 1 or TOGETHER, of rows as one graph, f included."""
    accumulate = None if problem.accumulate is None else identity(problem.accumulate)
    key = (method, problem.layout, problem.through_control, bool(problem.observers), accumulate)
    run = {number: field.compiled(_some_rounds, number, *key) for number in (1, TOGETHER)}
    bound, samples = field.bound(problem.sample), None

    def some_rounds(rows: Rows, index: int, subset: Tensor | None, number: int) -> tuple[Rows, list[Seen], Tensor]:
        nonlocal bound, samples
        if index == 0:
            rows = _typical(rows)
        if subset is not samples:
            bound, samples = field.bound(problem.asked(subset)), subset
        if method.control.rounds is None:
            # the index itself is not used; each value would be another graph
            index = 0 if method.tableau.fsal else min(index, 1)
        try:
            after, seen, outlook, evaluations = run[number](bound, method, problem, rows, index, number)
        except (RuntimeError, ValueError) as error:
            field.explain(error, Request(problem.asked(subset), rows.t, rows.y))
            raise
        field.calls += evaluations
        return after, seen, outlook

    return some_rounds


def _some_rounds(
    f: Bound, method: Method, problem: Problem, rows: Rows, index: int, number: int
) -> tuple[Rows, list[Seen], Tensor, int]:
    """The rows some rounds on, what happened, their outlook, and the calls of f: a pure function of tensors."""
    seen, evaluations = [], 0
    for later in range(number):
        running = rows.status == RUNNING
        attempt = method.begin(rows, index + later, running)
        while attempt.pending:
            attempt.stages.append(call(f, *attempt.point()))
        rows, one = method.end(rows, attempt, problem, running)
        evaluations += attempt.evaluations
        if problem.observers:
            seen.append(one)
    return rows, seen, _outlook(rows), evaluations


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


def _start(problem: Problem, k1: Tensor, dt: Tensor, *, measured: bool) -> Rows:
    """The samples before their first step; `measured` says whether steps have error estimates."""
    zero = torch.zeros_like(problem.t0)
    none = torch.zeros_like(problem.t0, dtype=torch.int64)
    status = torch.full_like(none, RUNNING)
    if not (seen_finite(k1.detach()) and seen_finite(problem.y0.detach())):
        status = status.masked_fill(~(all_finite(k1) & all_finite(problem.y0)), int(Status.NON_FINITE))
    return Rows(
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


def _share(value: object, step: Step) -> Tensor:
    """What `accumulate` returned, checked."""
    if isinstance(value, Tensor) and value.shape == step.t.shape:
        return value
    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(f"accumulate: expected a tensor of shape {tuple(step.t.shape)}, one value a sample, got {got}")


def _collect(parts: list[Rows], method: Method, *, first: int) -> Result:
    """The rows of all parts in the problem's order; `first`: evaluations of f before the first step."""
    rows = parts[0]
    if len(parts) > 1:
        rows = Rows(*(torch.cat(field) for field in zip(*parts, strict=True)))
        rows = rows.take(rows.sample.argsort())
    columns = {name: getattr(rows, name) for name in Result._fields if name in Rows._fields}
    if not method.tableau.fsal:
        # of fixed steps only a failed one's is known, which nobody goes on from
        adaptive = method.control.rounds is None
        columns["k1"] = torch.where(rows.known[:, None], rows.k1, torch.nan) if adaptive else None
    return Result(nfe=first + method.evaluations(rows), **columns)
