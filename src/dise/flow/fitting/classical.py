"""The classical tables of a number of evaluations, where a fit starts."""

from collections.abc import Callable, Iterator

from dise.integrate import RK4, Midpoint, Multistep, TimeGrid, grids

GRIDS: tuple[Callable[[int], TimeGrid], ...] = (
    grids.uniform,
    lambda n: grids.sway(n, -1.0),
    lambda n: grids.sway(n, -0.5),
    lambda n: grids.sway(n, 0.5),
    lambda n: grids.sway(n, 1.0),
    lambda n: grids.shift(n, 3.0),
    lambda n: grids.shift(n, 1 / 3),
)
"""Equal steps, and grids whose first or last steps are short."""


def classical(n: int, *, backwards: bool = False) -> list[Multistep]:
    """Adams methods, the midpoint method and RK4 on several grids, with n evaluations of f.

    Adams–Bashforth methods have order 1 to 4, those with a corrector order 2 and 3.

    Args:
        n: number of evaluations.
        backwards: for a solve from data to noise: the same times, reversed.
    """
    candidates = list(_on_grids(n, backwards))
    return list({candidate.table: candidate for candidate in reversed(candidates)}.values())[::-1]


def _on_grids(n: int, backwards: bool) -> Iterator[Multistep]:
    for grid in GRIDS:

        def times(steps: int, grid: Callable[[int], TimeGrid] = grid) -> TimeGrid:
            return grid(steps).reversed() if backwards else grid(steps)

        for order in (1, 2, 3):
            yield Multistep.adams(times(n), order)
        for order in (2, 3):
            yield Multistep.adams(times(n), order, corrector=True)
        if n > 3:  # its first step takes three evaluations
            yield Multistep.adams(times(n - 2), 4)
        if n % 2 == 0:
            yield Multistep.of(Midpoint(times(n // 2)))
        if n % 4 == 0:
            yield Multistep.of(RK4(times(n // 4)))
