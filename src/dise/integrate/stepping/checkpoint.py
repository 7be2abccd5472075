"""Gradient checkpointing: memory that grows with the square root of the number of steps.

gradient="direct" keeps everything that the backward pass of f and of the steps needs: memory grows with the number of
steps. gradient="checkpoint" keeps the states between segments of a growing number of rounds and recomputes a segment's
steps in the backward pass: one more forward pass of time.
"""

from collections.abc import Callable, Generator
from itertools import count

from torch import Tensor

from dise.integrate.dependencies import dependencies
from dise.integrate.problem.field import Field, call
from dise.integrate.problem.forward_context import ForwardContext
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request, drive
from dise.integrate.problem.run import Run
from dise.integrate.stepping.rows import LoopRows, LoopState

Advance = Callable[[LoopState, int, Callable[[StepRecord], None]], Generator[Request, Tensor, LoopState]]


def in_segments(advance: Advance, state: LoopState, problem: Problem, run: Run, field: Field) -> LoopState:
    """Run all rounds, in segments that the backward pass recomputes.

    The number of rounds N is not known beforehand. With segments of 1, 2, 3, … rounds there are √(2N) segments, and the
    longest has √(2N) rounds.

    Args:
        advance: (state, number of rounds, function called with each attempted step) → the state after these rounds.
        state: the start.
        problem: what is integrated.
        run: its observers see the attempted steps after each segment.
        field: the run's, which answers the requests.
    """
    from torch.utils.checkpoint import checkpoint  # it imports torch's compiler when called

    # a recomputation must not be observed: collect the records, and show them outside the segment
    def segment(state: LoopState, length: int, answers: SegmentAnswers) -> tuple[LoopState, list[StepRecord]]:
        records: list[StepRecord] = []
        return answers.to(advance(state, length, records.append), state.rows), records

    for length in count(1):
        # torch repeats the random numbers of the devices that it finds among the arguments
        state, records = checkpoint(segment, state, length, SegmentAnswers(problem, run, field), use_reentrant=False)
        for record in records:
            run.show(problem, record)
        if state.over:
            break
    return state


class SegmentAnswers:
    """Answers the requests of a segment, in its recomputation as in the forward pass.

    Args:
        problem: what is integrated.
        run: its field answers.
        field: the run's.
    """

    def __init__(self, problem: Problem, run: Run, field: Field) -> None:
        self._problem, self._run, self._field = problem, run, field
        state = {"y0": problem.y0, "t0": problem.t0, "t1": problem.t1}
        self._context = ForwardContext(field.f, problem.y0.device.type, field.args, field.sample_args, state)
        self._used: dict[int, Tensor] | None = None  # on which f's first value depended in the forward pass
        self._recomputes = False

    def to(self, segment: Generator[Request, Tensor, LoopState], rows: LoopRows) -> LoopState:
        """The state at the end of the segment.

        Args:
            segment: the segment.
            rows: at its start.

        Raises:
            ValueError: in a recomputation f depends on other tensors than in the forward pass.
            RuntimeError: in a recomputation f reads a tensor that was changed in place since.
        """
        first = True
        if self._recomputes:
            # compiled rounds request nothing
            self._check_unchanged(Request(rows.sample, rows.t, rows.y))

        def answer(request: Request) -> Tensor:
            nonlocal first
            if self._recomputes:
                self._check_unchanged(request)
            value = self._run.answer(self._problem, request)
            if first:
                self._check(value, request)
            first = False
            return value

        with self._context.restored():
            state = drive(segment, answer)
        if not self._recomputes:
            self._context.end_forward()
        self._recomputes = True
        return state

    def _check_unchanged(self, request: Request) -> None:
        rows = self._problem.requested(request.rows)
        self._context.check_unchanged(lambda: call(self._field.bound(rows), request.t, request.y))

    def _check(self, value: Tensor, request: Request) -> None:
        inputs = (request.t, request.y)
        uses = dependencies(value, (*inputs, *self._context.tensors))
        uses = {key: x for key, x in uses.items() if not any(x is y for y in inputs)}
        if self._used is None:
            self._used = uses
        elif self._used.keys() != uses.keys():
            key = min(self._used.keys() ^ uses.keys())
            shape = tuple((self._used | uses)[key].shape)
            raise ValueError(
                f"gradient: f depends on a tensor of shape {shape} in the forward pass or in the backward pass only; "
                "checkpoint calls f again, so f must still be the same function. Pass the tensor by args=, or use "
                "gradient='direct'"
            )
