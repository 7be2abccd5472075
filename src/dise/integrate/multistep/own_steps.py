"""Adams methods with steps of any length: one step in the mode predict–evaluate–correct (PEC).

A step of order q interpolates f at the last q − 1 points, integrates the polynomial over the step (the predictor, of
Adams–Bashforth), evaluates f at the predicted end and integrates the polynomial through that value too (the corrector,
of Adams–Moulton). The difference of the two is the error estimate. f at the predicted end is kept for later steps, so a
step needs one evaluation. All samples have their own points, so the weights are tensors with a row per sample.

Source: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, III.1 (PEC mode) and III.5 (variable steps).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dise.integrate.annotations import Float, Inexact, Int
from dise.integrate.clock import real_dtype
from dise.integrate.lobatto_nodes import lobatto_nodes
from dise.integrate.runge_kutta.step import Step, StepError, within

ORDERS = range(2, 9)


@dataclass(frozen=True)
class AdamsFormula:
    """The Adams–Bashforth–Moulton method of an order, as the loop uses it.

    Its stages are the values of the corrector's polynomial at the nodes of Lobatto's quadrature with as many nodes,
    which integrates that polynomial exactly. So dense output, events and sums over stages work as for Runge–Kutta
    methods with fixed weights.

    Args:
        order: of the corrector, 2 to 8; fewer points are used until a sample has order − 1.
    """

    order: int
    c: tuple[float, ...] = field(init=False, repr=False, compare=False)  # Lobatto's nodes
    b: tuple[float, ...] = field(init=False, repr=False, compare=False)  # and weights
    # weights of the integral of the polynomial through the stages (see `ButcherTableau`)
    interpolant: tuple[tuple[float, ...], ...] = field(init=False, repr=False, compare=False)

    fsal: ClassVar[bool] = True  # the last stage, f at the predicted end, is the next step's first
    evaluations: ClassVar[int] = 1  # of f per step
    first_order: ClassVar[int] = 2  # of the first step: Euler's method, corrected by the trapezoidal rule
    error_sum: ClassVar[None] = None  # a `Step` has its own estimate

    def __post_init__(self) -> None:
        object.__setattr__(self, "c", lobatto_nodes(self.order))
        object.__setattr__(self, "interpolant", _integrals(self.c))
        object.__setattr__(self, "b", tuple(sum(row) for row in self.interpolant))

    @property
    def stages(self) -> int:
        """Number of stages, as many as the order."""
        return self.order


@cache
def _integrals(nodes: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """For each node, the coefficients of θ, θ², … in the integral of its Lagrange polynomial from 0 to θ."""
    rows = []
    for i, node in enumerate(nodes):
        polynomial = [1.0]
        for other in nodes[:i] + nodes[i + 1 :]:
            shifted = zip([0.0, *polynomial], [*polynomial, 0.0], strict=True)
            polynomial = [(a - other * b) / (node - other) for a, b in shifted]
        rows.append(tuple(a / (j + 1) for j, a in enumerate(polynomial)))
    return tuple(rows)


class History(NamedTuple):
    """What n samples know of the steps before: f at the points before the present one, the latest first.

    The steps are many and short, so that the roundings of their sum would exceed those of f; they are kept and added to
    the next step. Source: Møller, Quasi double-precision in floating point addition, 1965.
    """

    values: Inexact[Tensor, "n P F"]
    t: Float[Tensor, "n P"]
    number: Int[Tensor, " n"]  # of points that count
    rounding: Inexact[Tensor, "n F"]  # what the present state lacks of the steps' sum, without a gradient

    @classmethod
    def none(cls, formula: AdamsFormula, t: Tensor, y: Tensor) -> "History":
        """That of samples at their start, at times t [n] and states y [n, F]."""
        points = formula.order - 2
        values = y.detach().new_zeros(y.shape[0], points, y.shape[1])
        times, number = t.detach().new_zeros(len(t), points), torch.zeros_like(t, dtype=torch.int64)
        return cls(values, times, number, torch.zeros_like(y.detach()))

    def after(self, t: Tensor, k1: Tensor, accept: Tensor, rounding: Tensor, moved: Tensor) -> "History":
        """The history with the points (t [n], k1 [n, F]) added where `accept` [n] says so.

        `rounding` [n, F] is that of the new states of the samples that `moved` [n].
        """
        points = self.t.shape[1]
        values = torch.cat([k1[:, None], self.values], 1)[:, :points]
        times = torch.cat([t[:, None], self.t], 1)[:, :points]
        return History(
            torch.where(accept[:, None, None], values, self.values),
            torch.where(accept[:, None], times, self.t),
            torch.where(accept, (self.number + 1).clamp(max=points), self.number),
            torch.where(moved[:, None], rounding, self.rounding),
        )


class AdamsAttempt:
    """A step in progress, as in `runge_kutta.step.Attempt`, with one evaluation of f, at the predicted end.

    Args:
        formula: the method.
        t, t_next: [n] start and end of each sample's step in the clock's dtype.
        y: [n, F] state at t.
        k1: [n, F] f at t.
        history: the points before.
        bounds: [n, 2] smallest and largest time that f may receive, beside a jump; None: no limits.
        before_t1: see `Attempt`.
    """

    def __init__(
        self,
        formula: AdamsFormula,
        t: Tensor,
        t_next: Tensor,
        y: Tensor,
        k1: Tensor,
        history: History,
        bounds: Tensor | None = None,
        *,
        before_t1: bool = False,
    ) -> None:
        self.formula, self.t, self.t_next, self.y, self.bounds = formula, t, t_next, y, bounds
        self.before_t1 = before_t1
        self.rounding = history.rounding  # of y; once finished, that of the state at the step's end
        self.dt = t_next - t
        self.stages = [k1]
        self.evaluations = formula.evaluations
        dtype = real_dtype(y)
        self.order = (history.number + 2).to(dtype)
        weights, residual = _weights(formula, t, self.dt, history)
        self._residual = residual.to(dtype)
        points = [k1, *history.values.unbind(1)]
        # [order, n, F] the predictor's polynomial: its integral, then its values at all nodes but the first
        self._polynomial = _sums(weights.to(dtype), points)
        self._dt = self.dt.to(dtype).unsqueeze(1)
        self._predicted = torch.addcmul(y, self._dt, self._polynomial[0])

    @property
    def pending(self) -> bool:
        """Whether f at the predicted end is still missing."""
        return len(self.stages) < 2

    def point(self) -> tuple[Tensor, Tensor]:
        """[n] time and [n, F] state of the evaluation, both in y's real dtype."""
        time = self.t_next.to(real_dtype(self.y))
        return (time if self.bounds is None else within(time, self.bounds)), self._predicted

    def finish(self) -> Step:
        """The corrected step."""
        k1, last = self.stages
        change = last - self._polynomial[-1]
        correction = self._dt * self._residual[0, :, None] * change
        inside = [
            torch.addcmul(self._polynomial[i], self._residual[i, :, None], change)
            for i in range(1, self.formula.stages - 1)
        ]
        increment = torch.addcmul(correction, self._dt, self._polynomial[0]) + self.rounding
        y_next = self.y + increment
        self.rounding = increment.detach() - (y_next.detach() - self.y.detach())
        return Step(
            self.t,
            self.dt,
            self.y,
            y_next,
            (k1, *inside, last),
            self.formula,
            self.bounds,
            StepError(correction, self.order),
        )


def _weights(formula: AdamsFormula, t: Tensor, dt: Tensor, history: History) -> tuple[Tensor, Tensor]:
    r"""Weights of the points in the predictor's polynomial, and of the corrector's further term.

    In Newton's form the polynomial through f at the points x_0 = 0, x_1, … (in units of the step) is
    Σ_j N_j(θ) f[x_0, …, x_j] with N_j(θ) = Π_{i<j} (θ − x_i) and f[x_0, …, x_j] = Σ_i f_i / Π_{l≠i} (x_i − x_l).
    With k points the corrector adds the difference of f and the polynomial at the predicted end, times N_k(θ)/N_k(1).

    Returns:
        [order, points, n] weights of the integral over the step and of the values at all nodes but the first, and
        [order − 1, n] N_k(θ)/N_k(1), its integral first, then its values at the nodes between the ends.
    """
    nodes = _nodes(formula, t)
    length = torch.where(dt == 0, 1, dt)  # of samples that do not run
    x = ((history.t - t[:, None]) / length[:, None]).T.contiguous()  # samples last: operations on many are faster
    newton = nodes.expand(-1, len(t))  # N_j at the nodes, from N_1 = θ on
    values = [torch.ones_like(newton)]  # weights of each point's f
    differences = [torch.ones_like(t)]  # 1 / Π_{l≠i} (x_i − x_l) for each point i
    for j, x_j in enumerate(x):
        used = history.number > j
        gaps = [torch.where(used, gap, 1) for gap in (-x_j, *(x_i - x_j for x_i in x[:j]))]
        differences = [d / gap for d, gap in zip(differences, gaps, strict=True)]
        last = math.prod(gaps[1:], start=gaps[0]).reciprocal()
        differences.append(last if j % 2 else -last)  # j + 1 factors x_j − x_i = −gap
        term = torch.where(used, newton, 0)
        values = [torch.addcmul(v, term, d) for v, d in zip(values, differences, strict=False)]
        values.append(term * differences[-1])
        newton = newton * torch.where(used, nodes - x_j, 1)
    rows = torch.stack([*values, newton / newton[-1]], 1)  # [nodes, points and the further term, n]
    integral = rows[0] * formula.b[0]
    for row, weight in zip(rows[1:], formula.b[1:], strict=True):
        integral = torch.add(integral, row, alpha=weight)
    rows = torch.cat([integral[None], rows[1:]])
    return rows[:, :-1], rows[:-1, -1]


def _nodes(formula: AdamsFormula, like: Tensor) -> Tensor:
    """[nodes, 1] those of the quadrature."""
    if torch.compiler.is_compiling():  # a tensor of numbers would be a constant of the graph
        return torch.stack([torch.full((1,), c, dtype=like.dtype, device=like.device) for c in formula.c])
    return _kept_nodes(formula, like.dtype, like.device)


@lru_cache(maxsize=64)  # every step needs them, and they may have to be copied to a device
def _kept_nodes(formula: AdamsFormula, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in later training
        return torch.tensor(formula.c, dtype=dtype, device=device)[:, None]


def _sums(weights: Tensor, points: Sequence[Tensor]) -> Tensor:
    """[S, n, F] Σ_i weights[S, i, n] · points_i [n, F]."""
    total = weights[:, 0, :, None] * points[0]
    for i, point in enumerate(points[1:], start=1):
        total = torch.addcmul(total, weights[:, i, :, None], point)
    return total
