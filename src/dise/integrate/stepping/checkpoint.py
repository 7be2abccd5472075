"""Gradient checkpointing: memory that grows with the square root of the number of steps.

gradient="direct" keeps everything that the backward pass of f and of the steps needs: memory grows with the number of
steps. gradient="checkpoint" keeps the states between segments of a growing number of rounds and recomputes a segment's
steps in the backward pass: one more forward pass of time.
"""

from collections.abc import Callable, Generator
from functools import partial
from itertools import count

from torch import Tensor

from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request, drive
from dise.integrate.problem.run import Run
from dise.integrate.stepping.rows import LoopState

Advance = Callable[[LoopState, int, Callable[[StepRecord], None]], Generator[Request, Tensor, LoopState]]


def in_segments(advance: Advance, state: LoopState, problem: Problem, run: Run) -> LoopState:
    """Run all rounds, in segments that the backward pass recomputes.

    The number of rounds N is not known beforehand. With segments of 1, 2, 3, … rounds there are √(2N) segments, and the
    longest has √(2N) rounds.

    Args:
        advance: (state, number of rounds, function called with each attempted step) → the state after these rounds.
        state: the start.
        problem: what is integrated.
        run: its field answers the requests; its observers see the attempted steps after each segment.
    """
    from torch.utils.checkpoint import checkpoint  # it imports torch's compiler when called

    for length in count(1):
        # a recomputation must not be observed: collect the records, and show them outside the segment
        def segment(state: LoopState = state, length: int = length) -> tuple[LoopState, list[StepRecord]]:
            records: list[StepRecord] = []
            return drive(advance(state, length, records.append), partial(run.answer, problem)), records

        state, records = checkpoint(segment, use_reentrant=False)
        for record in records:
            run.show(problem, record)
        if state.over:
            break
    return state
