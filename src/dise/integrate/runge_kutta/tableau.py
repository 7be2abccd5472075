"""Butcher tableaux of explicit Runge–Kutta methods."""

import math
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple, Protocol

from dise.integrate.argument_types import checked_arguments
from dise.integrate.value import check_numbers, keep_plain

_ROUNDING = 1e-12  # tolerance of the checks: coefficients are quotients of small integers in double precision


class WeightedSum(NamedTuple):
    """A weighted sum of stages, Σ_i w_i k_i = scale · (k_first + Σ_i factor_i k_i), without stages of weight 0.

    A step multiplies the sum by dt. Multiplying dt by the scale first saves one operation on the state.
    """

    scale: float
    first: int  # index of the stage with factor 1
    others: tuple[tuple[int, float], ...]  # index and factor w_i / scale of the other stages

    @classmethod
    def of(cls, weights: tuple[float, ...]) -> "WeightedSum":
        """The sum with weights w_0, w_1, …, the largest in magnitude as scale, so that no factor exceeds 1."""
        used = [(i, w) for i, w in enumerate(weights) if w != 0] or [(0, 0.0)]
        first, scale = max(used, key=lambda term: abs(term[1]))
        return cls(scale, first, tuple((i, w / scale) for i, w in used if i != first))

    @classmethod
    def in_order(cls, weights: tuple[float, ...]) -> "WeightedSum":
        """The sum that begins with the first stage, as `RunningSums` do, unless its weight is tiny beside another."""
        (first, scale), *others = [(i, w) for i, w in enumerate(weights) if w != 0] or [(0, 0.0)]
        if any(abs(w) > 1e6 * abs(scale) for _, w in others):
            return cls.of(weights)
        return cls(scale, first, tuple((i, w / scale) for i, w in others))


class StageWeights(Protocol):
    """Fixed weights of a step's stages, the values of y' at its nodes: a quadrature and an interpolant."""

    @property
    def c(self) -> tuple[float, ...]:
        """Nodes, as fractions of the step."""
        ...

    @property
    def b(self) -> tuple[float, ...]:
        """Weights of the quadrature."""
        ...

    @property
    def interpolant(self) -> tuple[tuple[float, ...], ...] | None:
        """Weights of the continuous extension (see `ButcherTableau`); None: there is none."""
        ...

    @property
    def error_sum(self) -> WeightedSum | None:
        """Weights of the error estimate; None if the stages have none."""
        ...


@checked_arguments
@dataclass(frozen=True)
class ButcherTableau:
    r"""Coefficients of an explicit Runge–Kutta method, checked on construction.

        c | a          k_i = f(t + c_i dt, y + dt Σ_j a_ij k_j)
        --+----        y_next = y + dt Σ_i b_i k_i
          | b          error  = dt Σ_i b_err_i k_i     (b minus the embedded method's weights)

    and of its continuous extension, y(t + θ dt) = y + dt Σ_i b_i(θ) k_i with b_i(θ) = Σ_j interpolant_ij θ^(j+1).

    Args:
        c: nodes, one per stage, the first 0.
        a: rows of the strictly lower triangle: row i (from 0) holds i numbers.
        b: weights of the solution.
        order: order of the solution.
        b_err: weights of the error estimate; None if the method has no embedded one.
        interpolant: one row per stage, of as many numbers as the extension's degree; needed for save points. Its order
            is at least the method's order − 1, so that save points are as accurate as the steps.
        error_order: power of dt with which the error estimate decreases; None: `order`, as with an embedded method of
            the next lower order.
        reuse_last: start each step with the last stage of the step before, f at a prediction of its end, instead of an
            evaluation at its end (PEC mode). The last node must be 1.

    Raises:
        ValueError: wrong numbers of coefficients, rows of a that do not sum to c, b that does not sum to 1, b_err that
            does not sum to 0, an interpolant that differs from b at θ = 1 or whose b_i(θ) do not sum to θ, or
            reuse_last with a last node other than 1.

    Source: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, II.1, II.4 and II.6.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    b_err: tuple[float, ...] | None = None
    interpolant: tuple[tuple[float, ...], ...] | None = None
    error_order: int | None = None
    reuse_last: bool = False
    stages: int = field(init=False, repr=False, compare=False)  # their number
    # the rows of a, b and b_err in the form that steps use
    stage_sums: tuple[WeightedSum, ...] = field(init=False, repr=False, compare=False)
    solution_sum: WeightedSum = field(init=False, repr=False, compare=False)
    error_sum: WeightedSum | None = field(init=False, repr=False, compare=False)
    # first same as last: the last stage is f at the end of the step, or stands for it, and starts the next step
    fsal: bool = field(init=False, repr=False, compare=False)
    last_at_end: bool = field(init=False, repr=False, compare=False)  # the last stage's state is the step's end

    def __post_init__(self) -> None:
        keep_plain(self)
        self._check_numbers()
        object.__setattr__(self, "stages", len(self.c))
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
        object.__setattr__(self, "stage_sums", tuple(WeightedSum.in_order(row) for row in self.a))
        object.__setattr__(self, "solution_sum", WeightedSum.in_order(self.b))
        object.__setattr__(self, "error_sum", None if self.b_err is None else WeightedSum.in_order(self.b_err))
        fsal = self.stages > 1 and self.c[-1] == 1 and self.a[-1] == self.b[:-1] and self.b[-1] == 0
        if self.reuse_last and (self.stages == 1 or self.c[-1] != 1):
            raise ValueError(f"reuse_last: needs a last stage at the end of the step, got the nodes c = {self.c}")
        object.__setattr__(self, "fsal", fsal or self.reuse_last)
        object.__setattr__(self, "last_at_end", fsal and not self.reuse_last)

    def _check_numbers(self) -> None:
        """Raise a ValueError unless all coefficients are finite numbers."""
        for name, row in {"c": self.c, "b": self.b, "b_err": self.b_err}.items():
            if row is not None:
                check_numbers(name, row)
        for name, matrix in {"a": self.a, "interpolant": self.interpolant}.items():
            for i, row in enumerate(matrix or ()):
                check_numbers(f"{name}: row {i}", row)

    def _check_interpolant(self, interpolant: tuple[tuple[float, ...], ...]) -> None:
        """Raise a ValueError unless b_i(1) = b_i and Σ_i b_i(θ) = θ."""
        if len({len(row) for row in interpolant}) != 1 or not interpolant[0]:
            raise ValueError(f"interpolant: rows need one length, got {[len(row) for row in interpolant]}")
        for i, (row, b) in enumerate(zip(interpolant, self.b, strict=True)):
            if not math.isclose(sum(row), b, abs_tol=_ROUNDING):
                raise ValueError(f"interpolant: row {i} sums to {sum(row)}, but b[{i}] is {b}")
        for j, column in enumerate(zip(*interpolant, strict=True)):
            if not math.isclose(sum(column), float(j == 0), abs_tol=10 * _ROUNDING):
                raise ValueError(f"interpolant: column {j} must sum to {int(j == 0)}, sums to {sum(column)}")

    @property
    def evaluations(self) -> int:
        """Evaluations of f per step where the first stage is known."""
        return self.stages - 1

    @property
    def first_order(self) -> int:
        """Order of the first step."""
        return self.order

    def doubled(self) -> "ButcherTableau":
        """The step-doubling method: two half steps, with an error estimate from one whole step.

        The whole step and the first half step share their first stage, so a method of s stages becomes one of 3s − 1.
        The solution is y₂, the result of the half steps; its error is estimated by (y₂ − y₁) / (2^order − 1), where y₁
        is the result of the whole step. The estimate decreases with dt^(order + 1). The interpolant is the quartic
        through the states at the start, the middle and the end with the derivatives at the first two, of order
        min(order, 4).

        Source: Hairer, Nørsett, Wanner, II.4, "Richardson extrapolation" (Eq. 4.4).
        """
        return _step_doubling(self)


@cache
def _step_doubling(method: ButcherTableau) -> ButcherTableau:
    """`ButcherTableau.doubled`: stages of the whole step, then of the first and of the second half step."""
    s, whole, half = method.stages, method.b, tuple(b / 2 for b in method.b)
    middle = (half[0], *(0.0,) * (s - 1), *half[1:])  # weights of y(t + dt/2) over the first 2s − 1 stages
    first = [(a[0] / 2, *(0.0,) * (s - 1), *(x / 2 for x in a[1:])) for a in method.a[1:]]
    second = [middle + tuple(x / 2 for x in a) for a in method.a]
    b = middle + half
    error = tuple((x - y) / (2**method.order - 1) for x, y in zip(b, whole + (0.0,) * (2 * s - 1), strict=True))
    start, centre = 0, 2 * s - 1  # indices of the stages that are f at the start and in the middle
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
    """Coefficients of θ, …, θ⁴ of a quartic q(θ), given its values at 0, ½, 1 and slopes at 0, ½.

    q(0) = 0, q(½) = middle, q(1) = end, q'(0) = start, q'(½) = centre.
    """
    return (
        start,
        -5 * start - 4 * centre + 16 * middle + end,
        8 * start + 12 * centre - 32 * middle - 4 * end,
        -4 * start - 8 * centre + 16 * middle + 4 * end,
    )
