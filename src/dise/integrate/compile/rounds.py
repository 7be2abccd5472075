"""Rounds of the loop as compiled graphs, f included."""

from __future__ import annotations  # torch 2.6 cannot trace the annotations of nested functions

from collections.abc import Callable, Generator
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from dise.integrate.compile import private
from dise.integrate.compile.cache import function_key
from dise.integrate.compile.field import CompiledField
from dise.integrate.compile.kernels import feature_major
from dise.integrate.problem.field import BoundField, call
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request
from dise.integrate.problem.run import Run
from dise.integrate.stepping.method import Method
from dise.integrate.stepping.rounds import EagerRounds, Rounds, RoundsDone
from dise.integrate.stepping.rows import RUNNING, LoopRows, changing
from dise.integrate.tracing import replaced

# of a kernel that keeps its rounds: as many as were done before, but at least so many as cost less than another call;
# rounds after an event that stops all samples are wasted
FEWEST_ROUNDS, FEWEST_WITH_EVENTS, MOST_ROUNDS = 32, 16, 32
MAX_ROUNDS_PER_CALL = 1000  # of a graph with a loop: it returns to Python regularly so that Ctrl-C works

_LOOP_FAILURES: WeakSet[Callable[..., Any]] = WeakSet()  # compiled functions whose loop torch could not compile


def graph_rounds(field: CompiledField, method: Method, problem: Problem, run: Run) -> Rounds:
    """The rounds of a problem as graphs, or eager rounds if f needs the whole batch and the problem is a part of it."""
    if problem.sample is not None and not run.drop_finished:
        return EagerRounds(method, problem, run)
    return GraphRounds(field, method, problem, run)


class GraphRounds:
    """Runs rounds as graphs.

    Without gradients, observers and events, on the CPU, a graph contains the loop itself and returns when enough rows
    have finished for a compaction to pay. Otherwise, and where torch cannot compile a loop around f (for example an f
    that counts its calls), a graph contains one round. Where it becomes a kernel (see `rowwise`), that does several
    rounds, and its record has them all.
    """

    def __init__(self, field: CompiledField, method: Method, problem: Problem, run: Run) -> None:
        self.method, self.problem, self.run, self.field = method, problem, run, field
        parts = () if run.accumulate is None else run.accumulate.parts
        accumulate = tuple((function_key(part.function), part.reduce) for part in parts)
        self._kept = bool(run.observers), run.events is not None
        key = (method, problem.layout, run.differentiate_step_sizes, run.endless, *self._kept, accumulate)
        self._rounds = field.compiled(some_rounds, *key, name="a step")
        self._looped = field.compiled(_rounds_until, *key, name="a loop of steps")
        self._adaptive = method.control.rounds is None
        changes = run.events is not None and run.events.changes
        self._interrupted = changes or problem.breaks is not None  # Python acts between two rounds
        self._while_loop = private.while_loop() if self._loop_allowed() else None
        self._bound = field.bound(problem.sample)
        self._subset: Tensor | None = None  # the rows to which f is bound; None: all
        self._called: set[Callable[..., Any]] = set()  # the compiled functions called so far

    def size(self, rows: int, running: int) -> int:
        """How many rows to keep; at least 2, since torch compiles another graph for size 1."""
        return max(running, min(rows, 2)) if running <= _compaction_threshold(rows) else rows

    def attempt(
        self, rows: LoopRows, index: int, subset: Tensor | None, running: int | None, limit: float
    ) -> Generator[Request, Tensor, RoundsDone]:
        """Attempt one round or more; requests nothing, since the graphs call f."""
        return self._attempt(rows, index, subset, limit)
        yield

    def _attempt(self, rows: LoopRows, index: int, subset: Tensor | None, limit: float) -> RoundsDone:
        if subset is not self._subset:
            rows = _feature_major(rows)
            requested = self.problem.requested(subset)
            self._bound, self._subset = self.field.bound(requested), subset
            self.field.check_rows(Request(requested, rows.t, rows.y))
        if index == 0:  # also of samples that others have left, which failed at their start
            rows = _normalized(rows)
            # views, so that the user's own tensors are not marked as dynamic
            self._bound = self._bound._replace(sample_args=tuple(x.view_as(x) for x in self._bound.sample_args))
        # The first round of a method without "first same as last" knows k1, unlike the others: it is not in the loop.
        loop = self._while_loop if index > 0 or self.method.tableau.fsal else None
        try:
            done = None if loop is None else self._loop_rounds(loop, rows, limit)
            return self._some_rounds(rows, index, limit) if done is None else done
        except Exception as error:
            self.field.explain(error, Request(self.problem.requested(subset), rows.t, rows.y))
            raise

    def _loop_allowed(self) -> bool:
        watched = any(self._kept) or self._interrupted or torch.is_grad_enabled()
        return self._adaptive and self.problem.y0.is_cpu and not watched and self._looped not in _LOOP_FAILURES

    def _before_call(self, function: Callable[..., Any], rows: LoopRows) -> None:
        """Mark the number of rows as dynamic, so that a first call does not compile a graph for one number only."""
        if self._adaptive and self.run.drop_finished and function not in self._called:
            self._called.add(function)
            for x in (*rows, *self._bound.sample_args):
                if x is not None:
                    private.mark_dynamic(x, 0)

    def _some_rounds(self, rows: LoopRows, index: int, limit: float) -> RoundsDone:
        most, fsal = None, self.method.tableau.fsal
        if self._adaptive and rows.y.is_cpu:
            alone = self._interrupted or (index == 0 and not fsal)  # later rounds do not know k1, unlike the first
            fewest = FEWEST_ROUNDS if self.run.events is None else FEWEST_WITH_EVENTS
            most = 1 if alone else int(min(limit, max(fewest, min(index, MOST_ROUNDS))))
        if self._adaptive or self.problem.breaks is not None:
            # An index is a constant of the graph: pass only what matters, whether the round is the first.
            index = 0 if fsal else min(index, 1)
        self._before_call(self._rounds, rows)
        left = None if most is None else torch.tensor(most)
        columns, record, after, left, calls = self._rounds(
            self._bound, self.method, self.run, rows, index, self._kept, left
        )
        number = 1 if most is None else most - int(left)
        self.field.calls += calls * number
        names, samples = changing(rows), rows.sample
        rows = replaced(rows, **dict(zip(names, columns, strict=True)))
        if record is not None and number > 1:
            record = record._replace(sample=samples.repeat(number), rounds=number)
        counts = dict(zip(_counts(rows), after, strict=False)) if number > 1 else None
        return RoundsDone(rows, record, number, None, counts)

    def _loop_rounds(self, loop: Callable[..., Any], rows: LoopRows, limit: float) -> RoundsDone | None:
        """Rounds in a graph's loop; None: torch cannot compile it."""
        size = rows.t.shape[0]
        fewest = _compaction_threshold(size) + 1 if self.run.drop_finished and size > 2 else 1
        bounds = torch.tensor([fewest, int(min(limit, MAX_ROUNDS_PER_CALL))])
        self._before_call(self._looped, rows)
        try:
            rows, counts, evaluations = self._looped(self._bound, self.method, self.run, rows, bounds, loop)
        except private.compiler_error():
            _LOOP_FAILURES.add(self._looped)
            self._while_loop = None
            return None
        running, done = counts.tolist()
        self.field.calls += evaluations * done
        return RoundsDone(rows, None, done, running)


def some_rounds(
    f: BoundField, method: Method, run: Run, rows: LoopRows, index: int, kept: tuple[bool, bool], limit: Tensor | None
) -> tuple[list[Tensor], StepRecord | None, list[Tensor], Tensor | None, int]:
    """A round, a pure function of tensors. `rowwise.steps` makes a kernel of it that does up to `limit` rounds.

    Args:
        f, method, run, rows, index: of the round.
        kept: whether its record is, and the columns `_counts` after it.
        limit: [] the most rounds; None: one.

    Returns:
        the changed columns; of each round the record, and the columns `_counts` after it, one round after the other;
        `limit` minus the number of rounds; the number of calls of f per round.
    """
    after, record, calls = _one_round(f, method, run, rows, index)
    if not method.tableau.fsal and index > 0:  # the round does not read k1; a kernel wants what changes as an input
        after = replaced(after, k1=torch.where((rows.status == RUNNING)[:, None], after.k1, rows.k1))
    after = _feature_major(after)
    before = [getattr(rows, name) for name in changing(rows)]
    columns = [getattr(after, name) for name in changing(rows)]
    # a graph does not return its inputs, nor a tensor twice
    columns = [new.clone() if new is old else new for new, old in zip(columns, before, strict=True)]
    if limit is None:
        return columns, record if any(kept) else None, [], None, calls
    if any(kept):
        step = record.step
        step = replaced(step, t=step.t.clone(), y=step.y.clone(), stages=tuple(x.clone() for x in step.stages))
        record = replaced(record, step=step)
    copies = [getattr(after, name).clone() for name in _counts(rows)] if kept[1] else []
    return columns, record if any(kept) else None, copies, limit - 1, calls


def _rounds_until(
    f: BoundField, method: Method, run: Run, rows: LoopRows, bounds: Tensor, while_loop: Callable[..., Any]
) -> tuple[LoopRows, Tensor, int]:
    """Rounds until fewer than bounds[0] rows run or bounds[1] rounds are done, a pure function of tensors.

    `rowwise.graphs` relies on what the loop carries: how many rows run, how many rounds are left, and the columns.

    Returns:
        the rows, [2] number of rows that run and of rounds, and the number of calls of f per round.
    """
    names = changing(rows)
    for field in rows:
        if field is not None:
            private.assume(field.shape[0] == rows.t.shape[0])

    def unfinished(running: Tensor, left: Tensor, *_: Tensor) -> Tensor:
        return (running >= bounds[0]) & (left > 0)

    def body(_: Tensor, left: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
        before = replaced(rows, **dict(zip(names, columns, strict=True)))
        after = _feature_major(_one_round(f, method, run, before, 1)[0])
        results = [getattr(after, name) for name in names]
        # torch does not allow a loop's body to return one of its inputs
        copies = [new.clone() if new is old else new for new, old in zip(results, columns, strict=True)]
        return (after.status == RUNNING).sum(), left - 1, *copies

    start = (rows.status == RUNNING).sum(), bounds[1].clone(), *(getattr(rows, name) for name in names)
    running, left, *columns = while_loop(unfinished, body, start)
    calls = method.tableau.evaluations + (not method.tableau.fsal)
    return replaced(rows, **dict(zip(names, columns, strict=True))), torch.stack([running, bounds[1] - left]), calls


def _one_round(f: BoundField, method: Method, run: Run, rows: LoopRows, index: int) -> tuple[LoopRows, StepRecord, int]:
    """The rows after a round, its record, and the number of calls of f."""
    running = rows.status == RUNNING
    attempt = method.begin(rows, index, running, known=index == 0 or method.tableau.fsal)
    while attempt.pending:
        attempt.stages.append(call(f, *attempt.point()))
    return *method.end(rows, attempt, f.layout, run, running), attempt.evaluations


def _counts(rows: LoopRows) -> tuple[str, ...]:
    """The columns that a step changes, without those that an event's time replaces where it stops a sample."""
    return tuple(name for name in changing(rows) if name not in ("t", "y", "k1", "status"))


def _compaction_threshold(rows: int) -> int:
    """Number of running rows up to which a compaction pays; one costs as much as some rounds of a cheap f."""
    return rows * 3 // 4


def _feature_major(rows: LoopRows) -> LoopRows:
    """The rows, with states and slopes stored as by `feature_major`."""
    return replaced(rows, y=feature_major(rows.y), k1=feature_major(rows.k1))


def _normalized(rows: LoopRows) -> LoopRows:
    """The first round's rows, made like those of later rounds, so that one graph serves all.

    No two tensors share memory, strides are those of a graph's results, and whatever may require a gradient does.
    """
    names = (name for name in LoopRows._fields if getattr(rows, name) is not None)
    copies = {name: getattr(rows, name).clone(memory_format=torch.contiguous_format) for name in names}
    rows = _feature_major(rows._replace(**copies))
    if not torch.is_grad_enabled() or not (rows.y.requires_grad or rows.k1.requires_grad):
        return rows
    named = {name: getattr(rows, name) for name in ("y", "k1", "error", "accumulated", "differences")}
    results = {name: x for name, x in named.items() if x is not None}
    return rows._replace(**{name: x if x.requires_grad else x.requires_grad_() for name, x in results.items()})
