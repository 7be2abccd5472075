"""Several ways to do the same, timed one after the other on each input, so that all share the machine's other load."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

X, R = TypeVar("X"), TypeVar("R")


def in_turn(
    ways: Mapping[str, Callable[[X], R]], inputs: Iterable[X]
) -> tuple[dict[str, list[float]], dict[str, list[R]]]:
    """Seconds and results of each way on each input but the first, which warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, list[R]] = {name: [] for name in ways}
    for index, x in enumerate(inputs):
        for name, way in ways.items():
            start = time.perf_counter()
            result = way(x)
            if index > 0:
                seconds[name].append(time.perf_counter() - start)
                results[name].append(result)
    return seconds, results
