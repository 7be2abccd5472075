"""Tables of methods with a fixed number of evaluations of f, all linear in the start and in the values of f."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from typing import NamedTuple

from dise.integrate.argument_types import checked_arguments
from dise.integrate.runge_kutta.tableau import WeightedSum
from dise.integrate.value import check_numbers, keep_plain

_SEARCHED = 16  # latest states that may be the base of an update: a step back, also for methods with many stages
_ROUNDING = 1e-14  # of a weight, relative to the largest; smaller differences of rows count as 0


@dataclass(frozen=True)
class Combination:
    """A state as a linear combination, scale · x_0 + Σ_k weights_k v_k, of the start and of values v_k of f.

    The weights are in units of the length of the span.
    """

    scale: float = 0.0
    weights: tuple[float, ...] = ()

    def __add__(self, other: "Combination") -> "Combination":
        pairs = zip_longest(self.weights, other.weights, fillvalue=0.0)
        return Combination(self.scale + other.scale, tuple(a + b for a, b in pairs))

    def __sub__(self, other: "Combination") -> "Combination":
        return self + other * -1.0

    def __mul__(self, factor: float) -> "Combination":
        return Combination(self.scale * factor, tuple(weight * factor for weight in self.weights))

    __rmul__ = __mul__


START = Combination(scale=1.0)  # x_0


def value(k: int) -> Combination:
    """v_k itself."""
    return Combination(weights=(*(0.0,) * k, 1.0))


class Update(NamedTuple):
    """How a state is computed from an earlier one: x_j = scale · x_base + span · Σ weights."""

    base: int  # index of the earlier state
    scale: float
    sum: WeightedSum | None  # over the values of f; None: no weight differs from 0


@checked_arguments
@dataclass(frozen=True)
class MultistepTable:
    r"""States x_j at which f is evaluated, at times t_j, and the state x_n at the end.

        x_j = a_j x_0 + (t1 − t0) Σ_{k<j} B_jk v_k,   v_k = f(t_k, x_k),   j = 0 … n

    Runge–Kutta methods of several steps, Adams–Bashforth methods on any grid and the multistep samplers of diffusion
    models have this form.

    Args:
        times: n evaluation times, as fractions of the span.
        scales: a_j, n + 1 numbers, the first 1.
        weights: B, n + 1 rows; row j holds j numbers.
        span: start and end of the only solves that the table is for; None: any.
        quadrature: n weights, in units of the span, for the end of a state's further parts, such as the log-density in
            (points, log-density), whose derivative does not depend on them; None: those of the last row, which are
            right only where all a_j are 1.
        blends: n numbers c_k with which states are sums of few u_k = v_k + c_k x_k / (t1 − t0), such as predicted data;
            they change how states are computed, not what they are. Unused without a span, or with a quadrature.

    Raises:
        ValueError: numbers of entries other than described, or numbers that are not finite.

    Source: Shaul et al., Bespoke Non-Stationary Solvers, 2024 (arXiv:2403.01329), section 3.
    """

    times: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    span: tuple[float, float] | None = None
    quadrature: tuple[float, ...] | None = None
    blends: tuple[float, ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        keep_plain(self)
        for name in ("times", "scales", "span", "quadrature", "blends"):
            if getattr(self, name) is not None:
                check_numbers(name, getattr(self, name))
        for j, row in enumerate(self.weights):
            check_numbers(f"weights: row {j}", row)
        n = len(self.times)
        if n == 0:
            raise ValueError("times: expected at least one evaluation time")
        if len(self.scales) != n + 1 or self.scales[0] != 1:
            raise ValueError(f"scales: expected {n + 1} numbers, the first 1, got {self.scales}")
        if [len(row) for row in self.weights] != list(range(n + 1)):
            raise ValueError(f"weights: expected rows of 0 to {n} numbers, got {[len(row) for row in self.weights]}")
        if self.quadrature is not None and len(self.quadrature) != n:
            raise ValueError(f"quadrature: expected {n} numbers, got {self.quadrature}")
        if self.blends is not None and len(self.blends) != n:
            raise ValueError(f"blends: expected {n} numbers, got {self.blends}")
        if self.span is not None and len(self.span) != 2:
            raise ValueError(f"span: expected 2 numbers, start and end, got {self.span}")

    @classmethod
    def of(
        cls,
        points: Sequence[tuple[float, Combination]],
        end: Combination,
        span: tuple[float, float] | None = None,
        blends: Sequence[float] | None = None,
    ) -> "MultistepTable":
        """The table of evaluation times and states, and of the end."""
        states = [*(state for _, state in points), end]
        padded = [(*state.weights, *(0.0,) * j)[:j] for j, state in enumerate(states)]
        times, scales = tuple(t for t, _ in points), tuple(state.scale for state in states)
        return cls(times, scales, tuple(padded), span, blends=None if blends is None else tuple(blends))

    @property
    def evaluations(self) -> int:
        """Number of evaluations of f."""
        return len(self.times)

    @property
    def scaled(self) -> bool:
        """Whether a state scales the start: its weights are then no quadrature, so they cannot add up a log-density."""
        return any(scale != 1 for scale in self.scales)

    @cached_property
    def multiples(self) -> tuple[float, ...]:
        """For each evaluation the multiple of x_k that is added to v_k; 0 without blends."""
        if self.blends is None or self.span is None or self.quadrature is not None:
            return (0.0,) * self.evaluations
        length = self.span[1] - self.span[0]
        return tuple(blend / length for blend in self.blends)

    @cached_property
    def updates(self) -> tuple[Update, ...]:
        """How x_1, …, x_n are computed: each from the earlier state that leaves the fewest weights (of u_k)."""
        return tuple(self._update(j) for j in range(1, self.evaluations + 1))

    @cached_property
    def last_used(self) -> tuple[tuple[int, ...], ...]:
        """For each update, the states that no later one needs."""
        last = {base: j for j, update in enumerate(self.updates) for base in (j, update.base)}
        return tuple(tuple(base for base, j in last.items() if j == k) for k in range(self.evaluations))

    @cached_property
    def values_last_used(self) -> tuple[tuple[int, ...], ...]:
        """For each update, the values of f that no later one needs."""
        last = {k: k for k in range(self.evaluations)}
        for j, update in enumerate(self.updates):
            used = () if update.sum is None else (update.sum.first, *(i for i, _ in update.sum.others))
            last |= dict.fromkeys(used, j)
        return tuple(tuple(k for k, j in last.items() if j == update) for update in range(self.evaluations))

    @cached_property
    def _rows(self) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
        """The scales and weights of the states as sums of x_0 and of u_k; without blends these are v_k."""
        if self.blends is None or not any(self.multiples):
            return self.scales, self.weights
        scales, rows = [], []
        for first, weights in zip(self.scales, self.weights, strict=True):
            scale, row = first, list(weights)
            for k in reversed(range(len(row))):  # w v_k = w u_k − w c_k x_k, and x_k has earlier values
                excess = row[k] * self.blends[k]
                scale -= excess * self.scales[k]
                row[:k] = [a - excess * b for a, b in zip(row[:k], self.weights[k], strict=True)]
            scales.append(scale)
            rows.append(tuple(row))
        return tuple(scales), tuple(rows)

    def _update(self, j: int) -> Update:
        bases = {0, *range(max(0, j - _SEARCHED), j)}
        candidates = [(base, *self._difference(j, base)) for base in sorted(bases) if self._rows[0][base] != 0]
        # of equally good ones the earliest, the start of a step: the others are its stages
        base, scale, weights = min(candidates, key=lambda c: sum(weight != 0 for weight in c[2]))
        return Update(base, scale, WeightedSum.of(weights) if any(weights) else None)

    def _difference(self, j: int, base: int) -> tuple[float, tuple[float, ...]]:
        """The factor of x_base, and the weights of what x_j adds to it."""
        scales, weights = self._rows
        scale = scales[j] / scales[base]
        rounding = _ROUNDING * max(map(abs, weights[j]))
        pairs = zip_longest(weights[j], weights[base], fillvalue=0.0)
        differences = (a - scale * b for a, b in pairs)
        return scale, tuple(0.0 if abs(d) <= rounding else d for d in differences)
