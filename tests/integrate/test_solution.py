import pytest
import torch

from dise import Solution, SolveError, Status


def solution(*status, shape=None):
    status = torch.tensor(status, dtype=torch.int64).reshape(shape or (len(status),))
    time = torch.full(status.shape, 0.25)
    return Solution(
        y=time,
        t=time,
        nfe=status,
        calls=3,
        n_steps=status,
        n_accepted=status,
        error=time,
        status=status,
        dt=time / 2,
    )


def test_success_returns_the_solution_itself():
    good = solution(0, 0)
    assert good.raise_for_status() is good
    empty = solution()
    assert empty.raise_for_status() is empty


@pytest.mark.parametrize(
    ("status", "meaning", "remedy"),
    [
        (Status.NON_FINITE, "NaN or infinite", "check y0 and f"),
        (Status.STEP_UNDERFLOW, "step size", "loosen rtol/atol, take fewer steps"),
        (Status.MAX_STEPS, "max_steps steps were not enough", "raise the integrator's max_steps"),
    ],
)
def test_the_message_names_sample_time_step_status_and_remedy(status, meaning, remedy):
    bad = solution(0, status, 0, status)
    with pytest.raises(SolveError) as caught:
        bad.raise_for_status()
    assert caught.value.solution is bad
    message = str(caught.value)
    for part in (
        "2 of 4 samples",
        "sample 1 ",
        "t=0.25",
        "step 0.125",
        status.name,
        meaning,
        remedy,
        "throw=False",
    ):
        assert part in message


def test_an_unbatched_solution_fails_too():
    with pytest.raises(SolveError, match="1 of 1 samples failed; first: sample 0"):
        solution(Status.MAX_STEPS, shape=()).raise_for_status()
