"""What of a solve is kept for its gradients.

"direct" keeps everything that f and the steps need for their backward pass: memory grows with the number of steps.
"checkpoint" keeps the states between segments of a growing number of rounds, and takes a segment's steps again when
its gradients are wanted: memory grows with the square root, time by one more forward pass.
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

Rounds = Callable[[LoopState, int, Callable[[StepRecord], None]], Generator[Request, Tensor, LoopState]]


def in_segments(rounds: Rounds, state: LoopState, problem: Problem, run: Run) -> LoopState:
    """Run all rounds, in segments that are recomputed for gradients.

    The number of rounds, N, is not known before. Segments of 1, 2, 3, … rounds are √(2N) segments, and the longest has
    √(2N) rounds.

    Args:
        rounds: from a state some rounds on, telling a function of each attempted step.
        state: the start.
        problem: answers the requests; its observers are told of the attempts, segment by segment.
    """
    from torch.utils.checkpoint import checkpoint  # it imports torch's compiler when called

    for length in count(1):
        # a recomputation must leave no trace: what it sees is told outside
        def segment(state: LoopState = state, length: int = length) -> tuple[LoopState, list[StepRecord]]:
            seen: list[StepRecord] = []
            return drive(rounds(state, length, seen.append), partial(run.answer, problem)), seen

        state, seen = checkpoint(segment, use_reentrant=False)
        for attempt in seen:
            run.show(problem, attempt)
        if state.over:
            break
    return state
