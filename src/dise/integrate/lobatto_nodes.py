"""The nodes of Lobatto's quadrature."""

import math
from functools import cache


@cache
def lobatto_nodes(number: int) -> tuple[float, ...]:
    """The nodes in [0, 1] of the rule with `number` ≥ 2 nodes, which has order 2·number − 2.

    Beside the ends they are the zeros of P', with P the Legendre polynomial of degree number − 1 on [−1, 1].
    """
    degree = number - 1
    left = [_zero(degree, -math.cos(math.pi * i / degree)) for i in range(1, (degree + 1) // 2)]
    middle = [] if degree % 2 else [0.0]
    inside = [*left, *middle, *(-x for x in reversed(left))]
    return (0.0, *((1 + x) / 2 for x in inside), 1.0)


def _zero(degree: int, x: float) -> float:
    """The zero of P' near x in (−1, 1), by Newton's method."""
    for _ in range(10):  # it converges quadratically, from a start that is off by some percent
        before, last = 1.0, x
        for k in range(1, degree):  # Bonnet's recursion
            before, last = last, ((2 * k + 1) * x * last - k * before) / (k + 1)
        slope = degree * (before - x * last)  # (1 − x²) P'
        x -= slope / (2 * x * slope / (1 - x * x) - degree * (degree + 1) * last)  # Legendre's equation gives P''
    return x
