"""Tables that differ in more than their number of steps."""

from collections.abc import Callable, Sequence

from dise.integrate import Multistep
from dise.integrate.multistep.grids import TimeGrid, sway, uniform
from dise.integrate.value import check_whole

STEPS = (2, 3, 4, 5, 6, 8, 10, 12, 16)
THIRD = 3  # fewest steps of a table of order 3
Shape = Callable[[int], TimeGrid]  # number of steps → grid


def varied_tables(steps: Sequence[int] = STEPS) -> tuple[Multistep, ...]:
    """Adams–Bashforth tables that are short of steps at different times, to choose from for each draw of a flow.

    On a draw that bends late, shorter last steps save evaluations, on one that bends early shorter first ones. Those of
    order 2 and 3 have equal steps and steps that become shorter, those of order 3 also steps that become longer, and
    equal ones after a first one half as long.

        sampler = dise.make_sampler(flow, risk=risk, candidates=varied_tables())

    Args:
        steps: numbers of steps, which are the evaluations of f; those of order 3 have at least 3.

    Raises:
        ValueError: a number of steps that is not a whole number of at least 1.
    """
    for n in steps:
        check_whole("steps", n)
    both: tuple[Shape, ...] = (uniform, _shorter)
    parts = ((3, both), (2, both), (3, (_longer, _short_first)))
    return tuple(
        Multistep.adams(shape(n), order)
        for order, shapes in parts
        for shape in shapes
        for n in steps
        if order < THIRD or n >= THIRD
    )


def _shorter(n: int) -> TimeGrid:
    return sway(n, 0.5)


def _longer(n: int) -> TimeGrid:
    return sway(n, -0.5)


def _short_first(n: int) -> TimeGrid:
    return TimeGrid((0.0, *((k - 0.5) / (n - 0.5) for k in range(1, n)), 1.0))
