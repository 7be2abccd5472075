"""Explicit Runge–Kutta methods as data."""

import math
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

_ROUNDING = 1e-12  # coefficients are quotients of small integers in double precision


class WeightedSum(NamedTuple):
    """A sum Σ_i w_i k_i as scale · (k_first + Σ factor_i k_i), without the k_i of weight 0.

    In a step dt multiplies the sum, and the scale goes with it: one operation on the state less. It is the weight
    of the largest size, so that no factor is beyond 1, however small the others are.
    """

    scale: float
    first: int
    rest: tuple[tuple[int, float], ...]  # i and w_i / scale

    @classmethod
    def of(cls, weights: tuple[float, ...]) -> "WeightedSum":
        """The sum with these weights."""
        used = [(i, w) for i, w in enumerate(weights) if w != 0] or [(0, 0.0)]
        first, scale = max(used, key=lambda term: abs(term[1]))
        return cls(scale, first, tuple((i, w / scale) for i, w in used if i != first))


@dataclass(frozen=True)
class ButcherTableau:
    r"""Coefficients of an explicit Runge–Kutta method, checked when it is made.

        c | a          k_i = f(t + c_i dt, y + dt Σ_j a_ij k_j)
        --+----        y_next = y + dt Σ_i b_i k_i
          | b          error  = dt Σ_i b_err_i k_i     (b minus the embedded method's weights)

    and of its continuous extension, y(t + θ dt) = y + dt Σ_i b_i(θ) k_i with b_i(θ) = Σ_j interpolant_ij θ^(j+1).

    Args:
        c: nodes, one a stage, the first 0.
        a: rows of the strictly lower triangle: row i (from 0) holds i numbers.
        b: weights of the solution.
        order: order of the solution.
        b_err: weights of the error estimate; None if no method is embedded.
        error_order: the error estimate falls with this power of dt; None: with `order`, as where the embedded method
            is of the next lower order.
        interpolant: a row a stage, of as many numbers as the extension's degree; needed for save points. Its order
            is the method's less one at least, so that save points are as accurate as the steps.

    Raises:
        ValueError: coefficients of the wrong number, a_i that do not sum to c_i, b not to 1, b_err not to 0, or an
            interpolant that is not b at θ = 1, or whose b_i(θ) do not sum to θ.

    Source: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, II.1, II.4 and II.6.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    b_err: tuple[float, ...] | None = None
    interpolant: tuple[tuple[float, ...], ...] | None = None
    error_order: int | None = None
    # the weights of each stage's state, of the solution and of the error without zeros, as steps use them
    a_terms: tuple["WeightedSum", ...] = field(init=False, repr=False, compare=False)
    b_terms: "WeightedSum" = field(init=False, repr=False, compare=False)
    b_err_terms: "WeightedSum | None" = field(init=False, repr=False, compare=False)
    # first same as last: the last stage is f at the step's end, hence the next step's first stage
    fsal: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = {"a": self.a, "b": self.b, "b_err": self.b_err, "interpolant": self.interpolant}
        for name, row in rows.items():
            if row is not None and len(row) != self.stages:
                raise ValueError(f"{name}: expected {self.stages} entries as c has, got {len(row)}")
        for i, (row, c) in enumerate(zip(self.a, self.c, strict=True)):
            if len(row) != i:
                raise ValueError(f"a: row {i} of an explicit method has {i} entries, got {len(row)}")
            if not math.isclose(sum(row), c, abs_tol=_ROUNDING):
                raise ValueError(f"a: row {i} sums to {sum(row)}, but c[{i}] is {c}")
        if not math.isclose(sum(self.b), 1.0, abs_tol=_ROUNDING):
            raise ValueError(f"b: must sum to 1, sums to {sum(self.b)}")
        if self.b_err is not None and abs(sum(self.b_err)) > _ROUNDING:
            raise ValueError(f"b_err: must sum to 0, sums to {sum(self.b_err)}")
        if self.interpolant is not None:
            self._check_interpolant(self.interpolant)
        object.__setattr__(self, "a_terms", tuple(WeightedSum.of(row) for row in self.a))
        object.__setattr__(self, "b_terms", WeightedSum.of(self.b))
        object.__setattr__(self, "b_err_terms", None if self.b_err is None else WeightedSum.of(self.b_err))
        last = self.stages > 1 and self.c[-1] == 1 and self.a[-1] == self.b[:-1] and self.b[-1] == 0
        object.__setattr__(self, "fsal", last)

    def _check_interpolant(self, interpolant: tuple[tuple[float, ...], ...]) -> None:
        if len({len(row) for row in interpolant}) != 1 or not interpolant[0]:
            raise ValueError(f"interpolant: rows need one length, got {[len(row) for row in interpolant]}")
        for i, (row, b) in enumerate(zip(interpolant, self.b, strict=True)):
            if not math.isclose(sum(row), b, abs_tol=_ROUNDING):
                raise ValueError(f"interpolant: row {i} sums to {sum(row)}, but b[{i}] is {b}")
        for j, column in enumerate(zip(*interpolant, strict=True)):
            if not math.isclose(sum(column), float(j == 0), abs_tol=10 * _ROUNDING):
                raise ValueError(f"interpolant: column {j} must sum to {int(j == 0)}, sums to {sum(column)}")

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.c)

    def doubled(self) -> "ButcherTableau":
        """The method that takes two half steps, and estimates the error from a whole step beside them.

        Both share their first stage: of s stages come 3s − 1. The solution is that of the half steps, y₂, and its
        error is estimated by (y₂ − y₁) / (2^order − 1), where y₁ is the whole step's: an estimate that falls with
        dt^(order + 1). The interpolant is the quartic through the start, the middle and the end with the derivatives at
        the first two, of order min(order, 4).

        Source: Hairer, Nørsett, Wanner, II.4, "Richardson extrapolation" (Eq. 4.4).
        """
        return _doubled(self)


@cache
def _doubled(method: ButcherTableau) -> ButcherTableau:
    s, whole, half = method.stages, method.b, tuple(b / 2 for b in method.b)
    middle = (half[0], *(0.0,) * (s - 1), *half[1:])  # weights of y(t + dt/2) over the stages so far
    first = [(a[0] / 2, *(0.0,) * (s - 1), *(x / 2 for x in a[1:])) for a in method.a[1:]]
    second = [middle + tuple(x / 2 for x in a) for a in method.a]
    b = middle + half
    error = tuple((x - y) / (2**method.order - 1) for x, y in zip(b, whole + (0.0,) * (2 * s - 1), strict=True))
    start, centre = 0, 2 * s - 1  # stages at the start and in the middle
    interpolant = tuple(
        _quartic(float(i == start), float(i == centre), m, w)
        for i, (m, w) in enumerate(zip(middle + (0.0,) * s, b, strict=True))
    )
    return ButcherTableau(
        c=(*method.c, *(c / 2 for c in method.c[1:]), *((1 + c) / 2 for c in method.c)),
        a=(*method.a, *first, *second),
        b=b,
        order=method.order,
        b_err=error,
        interpolant=interpolant,
        error_order=method.order + 1,
    )


def _quartic(start: float, centre: float, middle: float, end: float) -> tuple[float, float, float, float]:
    """Coefficients of θ … θ⁴ of the quartic with the values 0, `middle`, `end` and the slopes `start`, `centre`.

    The values are those at θ = 0, ½ and 1, the slopes those at θ = 0 and ½.
    """
    return (
        start,
        -5 * start - 4 * centre + 16 * middle + end,
        8 * start + 12 * centre - 32 * middle - 4 * end,
        -4 * start - 8 * centre + 16 * middle + 4 * end,
    )
