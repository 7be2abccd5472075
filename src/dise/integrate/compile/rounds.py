"""Rounds of the loop as compiled graphs, f included."""

from collections.abc import Callable, Generator
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from dise.integrate.compile.backend import by_feature
from dise.integrate.compile.cache import identity
from dise.integrate.compile.field import CompiledField
from dise.integrate.problem.field import BoundField, call
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request
from dise.integrate.problem.run import Run
from dise.integrate.stepping.method import Method
from dise.integrate.stepping.rounds import EagerRounds, Rounds, RoundsDone
from dise.integrate.stepping.rows import RUNNING, LoopRows

TOGETHER = 4  # rounds in one graph without a loop, between two reads of the device
LARGE = 2**14  # numbers in a state from which on a graph's own work outweighs what torch takes to call it
LONGEST = 1000  # rounds of a graph with a loop, after which Python has the word, for an interrupt

_UNFIT: WeakSet[Callable[..., Any]] = WeakSet()  # compiled functions of which torch makes no loop


def graph_rounds(field: CompiledField, method: Method, problem: Problem, run: Run) -> Rounds:
    """The rounds of a problem as graphs, or eager ones where f must always see samples that the graphs lack."""
    if problem.sample is not None and not run.drop_finished:
        return EagerRounds(method, problem, run)
    return GraphRounds(field, method, problem, run)


class GraphRounds:
    """Takes rounds of a method's rows, some at once, since calling a graph takes longer than a round of a small state.

    Without gradients and observers, on a CPU, a graph has the loop in it and goes on until so many rows are done that
    a compaction pays. Otherwise, and where torch makes no loop of f, e.g. of one that counts its calls, a graph is of
    `TOGETHER` rounds, or of one where fewer seem to be needed.
    """

    def __init__(self, field: CompiledField, method: Method, problem: Problem, run: Run) -> None:
        self.method, self.problem, self.run, self.field = method, problem, run, field
        accumulate = None if run.accumulate is None else identity(run.accumulate)
        key = (method, problem.layout, run.differentiate_step_sizes, bool(run.observers), accumulate)
        self._some = {number: field.compiled(_some_rounds, number, *key) for number in (1, TOGETHER)}
        self._until = field.compiled(_rounds_until, *key)
        watched = run.observers or run.stop is not None or torch.is_grad_enabled()
        self._adaptive = method.control.rounds is None
        self._loops = self._adaptive and problem.y0.is_cpu and not watched and self._until not in _UNFIT
        self._bound = field.bound(problem.sample)
        self._samples: Tensor | None = None  # what it is bound to, if not to all
        self._ahead = 0.0  # the most steps that a row seems to have to go

    def size(self, rows: int, running: int) -> int:
        """How many of the rows to keep: not 1, which torch takes for a shape of its own."""
        return max(running, min(rows, 2)) if running <= _few(rows) else rows

    def attempt(
        self, rows: LoopRows, index: int, subset: Tensor | None, running: int | None, limit: float
    ) -> Generator[Request, Tensor, RoundsDone]:
        """Attempt one round or more; requests nothing, since the graphs call f."""
        return self._attempt(rows, index, subset, limit)
        yield

    def _attempt(self, rows: LoopRows, index: int, subset: Tensor | None, limit: float) -> RoundsDone:
        if index == 0:
            rows = _typical(rows)
            if self._adaptive and self.run.drop_finished:
                self._bound = _of_any_number(rows, self._bound)
        elif subset is not self._samples:
            rows = _by_feature(rows)
            self._bound, self._samples = self.field.bound(self.problem.requested(subset)), subset
        try:
            knows_k1 = index == 0 and not self.method.tableau.fsal  # other rounds of such a method do not
            found = self._in_loop(rows, limit) if self._loops and not knows_k1 else None
            return self._unrolled(rows, index, limit) if found is None else found
        except (RuntimeError, ValueError) as error:
            self.field.explain(error, Request(self.problem.requested(subset), rows.t, rows.y))
            raise

    def _unrolled(self, rows: LoopRows, index: int, limit: float) -> RoundsDone:
        alone = self.run.stop is not None or rows.y.numel() > LARGE or min(self._ahead, limit) < TOGETHER
        number = 1 if alone else TOGETHER
        if self._adaptive:
            # the index itself is not used; each value would be another graph
            index = 0 if self.method.tableau.fsal else min(index, 1)
        rows, seen, outlook, evaluations = self._some[number](self._bound, self.method, self.run, rows, index, number)
        self.field.calls += evaluations
        if not self._adaptive:
            return RoundsDone(rows, seen, number, None)
        running, self._ahead = outlook.tolist()
        return RoundsDone(rows, seen, number, int(running))

    def _in_loop(self, rows: LoopRows, limit: float) -> RoundsDone | None:
        from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

        size = rows.t.shape[0]
        enough = _few(size) + 1 if self.run.drop_finished and size > 2 else 1
        bounds = torch.tensor([enough, int(min(limit, LONGEST))])
        try:
            rows, outlook, evaluations = self._until(self._bound, self.method, self.run, rows, bounds)
        except TorchDynamoException:
            _UNFIT.add(self._until)
            self._loops = False
            return None
        running, done = outlook.tolist()
        self.field.calls += evaluations * done
        return RoundsDone(rows, [], done, running)


def _some_rounds(
    f: BoundField, method: Method, run: Run, rows: LoopRows, index: int, number: int
) -> tuple[LoopRows, list[StepRecord], Tensor, int]:
    """The rows some rounds on, what happened, their outlook, and the calls of f: a pure function of tensors."""
    seen, evaluations = [], 0
    for later in range(number):
        rows, one, calls = _round(f, method, run, rows, index + later)
        evaluations += calls
        if run.observers:
            seen.append(one)
    return _by_feature(rows), seen, _outlook(rows), evaluations


def _rounds_until(
    f: BoundField, method: Method, run: Run, rows: LoopRows, bounds: Tensor
) -> tuple[LoopRows, Tensor, int]:
    """The rows once fewer than bounds[0] run, or bounds[1] rounds on: a pure function of tensors.

    Also [2] how many run and the number of rounds, and the calls of f of each.
    """
    names = method.changing(run)
    for field in rows:  # lest the graph's number of rows is an input of its own for each
        torch._check(field.shape[0] == rows.t.shape[0])

    def more(running: Tensor, done: Tensor, *_: Tensor) -> Tensor:
        return (running >= bounds[0]) & (done < bounds[1])

    def body(_: Tensor, done: Tensor, *moving: Tensor) -> tuple[Tensor, ...]:
        before = rows._replace(**dict(zip(names, moving, strict=True)))
        after = _by_feature(_round(f, method, run, before, 1)[0])
        results = [getattr(after, name) for name in names]
        # torch wants a loop's results to be other tensors than what it goes on from
        apart = [new.clone() if new is old else new for new, old in zip(results, moving, strict=True)]
        return (after.status == RUNNING).sum(), done + 1, *apart

    start = (rows.status == RUNNING).sum(), torch.zeros_like(bounds[0]), *(getattr(rows, name) for name in names)
    running, done, *moved = while_loop(more, body, start)
    calls = method.tableau.stages - method.tableau.fsal
    return rows._replace(**dict(zip(names, moved, strict=True))), torch.stack([running, done]), calls


def _round(f: BoundField, method: Method, run: Run, rows: LoopRows, index: int) -> tuple[LoopRows, StepRecord, int]:
    """The rows a round on, what happened, and the calls of f."""
    running = rows.status == RUNNING
    attempt = method.begin(rows, index, running, known=index == 0 or method.tableau.fsal)
    while attempt.pending:
        attempt.stages.append(call(f, *attempt.point()))
    return *method.end(rows, attempt, f.layout, run, running), attempt.evaluations


def _few(rows: int) -> int:
    """How many of the rows may still run for a compaction to pay, which costs as much as some rounds of a cheap f."""
    return rows * 3 // 4


def _outlook(rows: LoopRows) -> Tensor:
    """[2] how many rows run, and the most steps of its present length that one of them has to go."""
    running = rows.status == RUNNING
    ahead = torch.where(running, (rows.t1 - rows.t) / rows.dt, 0)
    return torch.stack([running.sum().double(), ahead.max().double()])


def _by_feature(rows: LoopRows) -> LoopRows:
    """The rows; narrow states lie in memory feature by feature, so that compiled loops over rows are of vectors."""
    return rows._replace(y=by_feature(rows.y), k1=by_feature(rows.k1))


def _typical(rows: LoopRows) -> LoopRows:
    """The first round's rows made like all later ones, lest they need a graph of their own.

    That is: tensors that share no memory and lie in it as later ones do, and whatever may require gradients does.
    """
    rows = LoopRows(*(field.clone(memory_format=torch.contiguous_format) for field in rows))
    rows = _by_feature(rows)
    if not torch.is_grad_enabled() or not (rows.y.requires_grad or rows.k1.requires_grad):
        return rows
    later = {name: getattr(rows, name) for name in ("y", "k1", "error", "accumulated")}
    return rows._replace(
        **{name: x if x.requires_grad else x.requires_grad_() for name, x in later.items()},
    )


def _of_any_number(rows: LoopRows, f: BoundField) -> BoundField:
    """Tell torch that the number of rows changes, lest it compiles a graph for the first number, then one for others.

    Returns:
        f with tensors of its own to which that was said, not the user's.
    """
    from torch._dynamo import maybe_mark_dynamic  # takes seconds to import

    own = tuple(x.view_as(x) for x in f.sample_args)
    for x in (*rows, *own):
        maybe_mark_dynamic(x, 0)
    return f._replace(sample_args=own)
