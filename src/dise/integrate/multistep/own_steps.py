r"""Adams methods with steps of any length: one step in the mode predict–evaluate–correct (PEC).

A step of order q interpolates f at the last q − 1 points, integrates the polynomial over the step (the predictor, of
Adams–Bashforth), evaluates f at the predicted end and integrates the polynomial through that value too (the corrector,
of Adams–Moulton). The difference of the two is the error estimate. f at the predicted end is kept for later steps, so a
step needs one evaluation. All samples have their own points, so the weights are tensors with a number per sample.

The polynomials are in Newton's form. With the points x_0 (the step's start), x_1, … (those before), h the step and
s_j = x_0 − x_j, the predictor's value at x_0 + θh is

    Σ_j c_j(θ) Φ_j,   c_j(θ) = Π_{i<j} (θh + s_i) / (h + s_i),   Φ_j = Π_{i<j} (h + s_i) · f[x_0, …, x_j],

and the corrector adds c_k(θ) times the difference of f and the predictor's value at the end, k the number of points.
The history keeps the differences φ_j = Π_{0<i≤j} s_i · f[x_0, …, x_j]; those of the next step are f_new − Σ_{i<j} Φ_i.

Source: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, III.1 (PEC mode) and III.5 (variable steps:
Eq. 5.5 to 5.10, after Krogh).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dise.integrate.annotations import Float, Inexact, Int
from dise.integrate.clock import real_dtype
from dise.integrate.lobatto_nodes import lobatto_nodes
from dise.integrate.runge_kutta.step import Step, StepError, within
from dise.integrate.tracing import known_all, known_none

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
    """What n samples know of the steps before, at points before the present one, the latest first.

    The steps are many and short, so that the roundings of their sum would exceed those of f; they are kept and added to
    the next step. Source: Møller, Quasi double-precision in floating point addition, 1965.
    """

    differences: Inexact[Tensor, "n P F"]  # φ_1, φ_2, …: f's differences, divided by those of the times and scaled
    separations: Float[Tensor, "n P"]  # s_1, s_2, …: signed times from the points to the present one
    number: Int[Tensor, " n"]  # of points that count
    rounding: Inexact[Tensor, "n F"]  # what the present state lacks of the steps' sum, without a gradient

    @classmethod
    def none(cls, formula: AdamsFormula, t: Tensor, y: Tensor) -> "History":
        """That of samples at their start, at times t [n] and states y [n, F]."""
        points = formula.order - 2
        differences = y.detach().new_zeros(y.shape[0], points, y.shape[1])
        separations, number = t.detach().new_zeros(len(t), points), torch.zeros_like(t, dtype=torch.int64)
        return cls(differences, separations, number, torch.zeros_like(y.detach()))


class AdamsAttempt:
    """A step in progress, as in `runge_kutta.step.Attempt`, with one evaluation of f, at the predicted end.

    Within the step the tensors have the samples last: operations that repeat a sample's number for its features are
    faster on them.

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
        self.dt = t_next - t
        self.stages = [k1]
        self.evaluations = formula.evaluations
        dtype = real_dtype(y)
        self._dt, self._history = self.dt.to(dtype), history
        self._weights = weights = _Weights.of(self.dt, history, dtype)
        before = history.differences.permute(1, 2, 0).contiguous()
        self._k1, self._scaled = _samples_last(k1), weights.growth[:, None] * before  # [F, n] Φ_0 and [P, F, n] others
        slope = self._k1
        for weight, difference in zip(weights.integrals[:-1], self._scaled, strict=True):
            slope = torch.addcmul(slope, weight, difference)
        self._increment = _samples_first(slope * self._dt)
        self._predicted = y + self._increment

    @property
    def pending(self) -> bool:
        """Whether f at the predicted end is still missing."""
        return len(self.stages) < 2

    def point(self) -> tuple[Tensor, Tensor]:
        """[n] time and [n, F] state of the evaluation, both in y's real dtype."""
        time = self.t_next.to(real_dtype(self.y))
        return (time if self.bounds is None else within(time, self.bounds)), self._predicted

    def finish(self, *, inside: bool = True) -> Step:
        """The corrected step; unless `inside`, with the stages at its ends alone, which do for going on from it."""
        k1, last = self.stages
        change, self._after = _samples_last(last) - self._k1, []
        for difference in self._scaled:
            self._after.append(change)
            change = change - difference
        self._change = change  # of f at the end from the predictor's value
        correction = _samples_first(self._dt * self._weights.integrals[-1] * change)
        increment = self._increment + correction + self._history.rounding
        y_next = self.y + increment
        self._rounding = increment.detach() - (y_next.detach() - self.y.detach())
        stages = (k1, *(self._inside() if inside else ()), last)
        order = (self._history.number + 2).to(self._dt.dtype)
        estimate = StepError(correction, order)
        return Step(self.t, self.dt, self.y, y_next, stages, self.formula, self.bounds, estimate)

    def _inside(self) -> Iterable[Tensor]:
        """[n, F] the corrector's values at the nodes between the ends."""
        nodes = _kept(self.formula.c[1:-1], self._dt)
        factor, values = nodes.expand(-1, len(self._dt)), self._k1.expand(len(nodes), -1, -1)
        for share, difference in zip(self._weights.shares, self._scaled, strict=True):
            values = torch.addcmul(values, factor[:, None], difference)
            factor = factor * (1 - (1 - nodes) * share)
        values = torch.addcmul(values, factor[:, None], self._change)
        return (_samples_first(value) for value in values)

    def history(self, accept: Tensor | None, short: Tensor) -> History:
        """The history after the finished step.

        Args:
            accept: [n] which samples accepted the step; the others keep their history. None: all.
            short: [n] which of the accepted steps are so short that the step's start is forgotten: the next one goes on
                from the points before it and the step's end.
        """
        before, weights = self._history, self._weights
        points, after = len(self._scaled), torch.stack([*self._after, self._change])
        differences, separations = after[:points], torch.cat([self.dt[None], weights.ahead])[:points]
        number = (before.number + 1).clamp(max=points)
        if not known_none(short):
            # Φ_j of the points without x_0, from the same with it
            stretch = (weights.ahead / torch.where(self.dt == 0, 1, self.dt)).to(self._dt.dtype)
            differences = torch.where(short, after[1:] + self._scaled * stretch[:, None], differences)
            separations = torch.where(short, weights.ahead, separations)
            number = torch.where(short, before.number, number)
        differences, separations, rounding = differences.permute(2, 0, 1), separations.T, self._rounding
        if accept is not None:
            differences = torch.where(accept[:, None, None], differences, before.differences)
            separations = torch.where(accept[:, None], separations, before.separations)
            number = torch.where(accept, number, before.number)
            rounding = torch.where(accept[:, None], rounding, before.rounding)
        if torch.compiler.is_compiling():
            # A graph's results are stored as its inputs are. Those of one row count as contiguous, but are parts of
            # larger tensors, so copy them in any case.
            differences = differences.clone(memory_format=torch.contiguous_format)
            separations = separations.clone(memory_format=torch.contiguous_format)
        return History(differences, separations, number, rounding)


class _Weights(NamedTuple):
    """Weights of a step's polynomials for n samples with up to P points before the present one."""

    ahead: Float[Tensor, "P n"]  # h + s_j, in the clock's dtype; of unused points any
    shares: Float[Tensor, "P n"]  # h / (h + s_j); 0 for unused points
    growth: Float[Tensor, "P n"]  # Φ_j / φ_j; 0 for unused points
    integrals: Sequence[Tensor]  # [n] ∫ c_j(θ) dθ over the step, j = 1 … P, and that of the corrector's further term

    @classmethod
    def of(cls, dt: Tensor, history: History, dtype: torch.dtype) -> "_Weights":
        """Those of steps dt [n], computed in its dtype, for states of a real dtype.

        Eq. 5.10: with a_{1,q} = 1/(q (q + 1)) and a_{j,q} = a_{j−1,q} − a_{j−1,q+1} · h / (h + s_{j−1}) the integral of
        c_j is a_{j,1}. An unused point is infinitely far: its share is 0, and the further integrals are the last one.
        """
        points, separations = history.separations.shape[1], history.separations.T
        used = None
        if not known_all(history.number == points):
            used = torch.arange(points, device=dt.device)[:, None] < history.number
            separations = torch.where(used, separations, torch.where(dt == 0, 1, dt))
        ahead = separations + dt
        shares = dt / ahead
        growth = torch.cat([dt[None], ahead])[:points] / separations
        rows = list(growth[:1])
        for row in growth[1:]:
            rows.append(rows[-1] * row)
        growth = torch.stack(rows) if rows else growth
        if used is not None:
            shares, growth = torch.where(used, shares, 0), torch.where(used, growth, 0)
        q = range(1, points + 2)
        column = _kept(tuple(1 / (i * (i + 1)) for i in q), dt)
        integrals = [column[0]]
        for share in shares:
            column = torch.addcmul(column[:-1], share, column[1:], value=-1)
            integrals.append(column[0])
        integrals = [x.to(dtype) for x in integrals]
        return cls(ahead, shares.to(dtype), growth.to(dtype), integrals)


def _samples_last(x: Tensor) -> Tensor:
    return x.t().contiguous()


def _samples_first(x: Tensor) -> Tensor:
    return x.t().contiguous()


def _kept(values: tuple[float, ...], like: Tensor) -> Tensor:
    """[values, 1] numbers."""
    if torch.compiler.is_compiling():  # a tensor of numbers would be a constant of the graph
        columns = [torch.full((1,), value, dtype=like.dtype, device=like.device) for value in values]
        return torch.stack(columns) if columns else like.new_zeros(0, 1)
    return _kept_column(values, like.dtype, like.device)


@lru_cache(maxsize=64)  # every step needs them, and they may have to be copied to a device
def _kept_column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in later training
        return torch.tensor(values, dtype=dtype, device=device)[:, None]
