"""Adams tables on any grid, without and with corrector, and Runge–Kutta methods of several steps as tables."""

from collections.abc import Sequence

from dise.integrate.multistep.adams_weights import bashforth_weights
from dise.integrate.multistep.grids import TimeGrid
from dise.integrate.multistep.table import START, Combination, MultistepTable, value
from dise.integrate.runge_kutta.classical import BOSH3
from dise.integrate.runge_kutta.tableau import ButcherTableau

_GAUSS = ((-((3 / 5) ** 0.5), 5 / 9), (0.0, 8 / 9), ((3 / 5) ** 0.5, 5 / 9))  # exact to degree 5


class _Evaluations:
    """The evaluations of f that a table under construction makes."""

    def __init__(self) -> None:
        self.points: list[tuple[float, Combination]] = []

    def at(self, time: float, state: Combination) -> Combination:
        """The value of f at a time and a state."""
        self.points.append((time, state))
        return value(len(self.points) - 1)


def adams_bashforth(grid: TimeGrid, order: int) -> MultistepTable:
    """The Adams–Bashforth method with exact weights for the grid's steps: one evaluation of f per step.

    The first steps, for which there are too few earlier values, keep the order. With order 3 the first step is
    corrected by the trapezoidal rule, and with order 4 the second one by the Adams–Moulton rule of three values; both
    keep the value of f at the predicted state. With order 4 the first step is Bogacki and Shampine's method of order 3,
    which takes two more evaluations.

    Args:
        grid: ends of the steps.
        order: 1 to 4.

    Source: Hairer, Nørsett, Wanner, III.1 and III.5 (variable steps).
    """
    _check_order(order)
    f, x = _Evaluations(), START
    known: list[tuple[float, Combination]] = []  # times and values of f, the newest last
    pending: Combination | None = None  # the value of f at the next time, if a correction has evaluated it already
    for index, (s, end) in enumerate(zip(grid.fractions, grid.fractions[1:], strict=False)):
        known.append((s, f.at(s, x) if pending is None else pending))
        known, pending = known[-order:], None
        if order == 4 and index == 0:
            x = _third_order_step(f, x, known[0][1], s, end)
            continue
        predicted = x + _integral(known, s, end)
        if len(known) < order - 1 and index + 1 < grid.steps:
            pending = f.at(end, predicted)
            predicted = x + _integral([*known, (end, pending)], s, end)
        x = predicted
    return MultistepTable.of(f.points, x, grid.span)


def adams_bashforth_moulton(grid: TimeGrid, order: int) -> MultistepTable:
    """The Adams–Bashforth method with the Adams–Moulton corrector of the same order: one evaluation of f per step.

    f is evaluated at the predicted state alone (mode PEC), and its value corrects the step that led there before the
    next one is predicted. The last step has no corrector, since f is not evaluated at the end.

    Args:
        grid: ends of the steps.
        order: 2 or 3. With order 4 the corrected first step would limit the order to 3.

    Source: Hairer, Nørsett, Wanner, III.1 (predict, evaluate, correct) and III.5 (variable steps).
    """
    if order not in (2, 3):
        raise ValueError(f"order: expected 2 or 3 with a corrector, got {order!r}")
    f, corrected, predicted = _Evaluations(), START, START
    known: list[tuple[float, Combination]] = []  # times and values of f, the newest last
    for s, end in zip(grid.fractions, grid.fractions[1:], strict=False):
        known = [*known[1 - order :], (s, f.at(s, predicted))]
        if len(known) > 1:
            corrected += _integral(known, known[-2][0], s)
        predicted = corrected + _integral(known, s, end)
    return MultistepTable.of(f.points, predicted, grid.span)


def ipndm(grid: TimeGrid, order: int) -> MultistepTable:
    """Adams–Bashforth weights of equal steps on any grid, of lower order in the first steps: the method iPNDM.

    Source: Zhang, Chen, Fast Sampling of Diffusion Models with Exponential Integrator, 2023 (arXiv:2204.13902).
    """
    _check_order(order)
    f, x = _Evaluations(), START
    known: list[Combination] = []  # values of f, the newest first
    for s, end in zip(grid.fractions, grid.fractions[1:], strict=False):
        known = [f.at(s, x), *known][:order]
        for weight, v in zip(bashforth_weights(len(known)), known, strict=True):
            x = x + (end - s) * float(weight) * v
    return MultistepTable.of(f.points, x, grid.span)


def runge_kutta(tableau: ButcherTableau, grid: TimeGrid) -> MultistepTable:
    """The steps of a Runge–Kutta method on a grid."""
    f, x, last = _Evaluations(), START, None
    for s, end in zip(grid.fractions, grid.fractions[1:], strict=False):
        stages = [f.at(s, x) if last is None else last]
        for c, row in zip(tableau.c[1:], tableau.a[1:], strict=True):
            state = _sum(x, end - s, row, stages)
            stages.append(f.at(end if c == 1 else s + c * (end - s), state))
        x, last = _sum(x, end - s, tableau.b, stages), stages[-1] if tableau.fsal else None
    return MultistepTable.of(f.points, x, grid.span)


def quadrature(nodes: Sequence[float], a: float, b: float) -> list[float]:
    """Weights of the integral from a to b of the polynomial through values at up to six nodes."""
    weights = []
    for i, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != i]
        total = 0.0
        for point, gauss in _GAUSS:
            basis, s = 1.0, (a + b + point * (b - a)) / 2
            for other in others:
                basis *= (s - other) / (node - other)
            total += gauss * basis
        weights.append(total * (b - a) / 2)
    return weights


def _integral(known: Sequence[tuple[float, Combination]], a: float, b: float) -> Combination:
    """The integral from a to b of the polynomial through known values of f."""
    weights = quadrature([time for time, _ in known], a, b)
    return sum((weight * v for weight, (_, v) in zip(weights, known, strict=True)), Combination())


def _third_order_step(f: _Evaluations, x: Combination, k1: Combination, s: float, end: float) -> Combination:
    """A step of Bogacki and Shampine's method of order 3, whose first stage is known."""
    stages, dt = [k1], end - s
    for c, row in zip(BOSH3.c[1:3], BOSH3.a[1:3], strict=True):
        stages.append(f.at(s + c * dt, _sum(x, dt, row, stages)))
    return _sum(x, dt, BOSH3.b[:3], stages)


def _sum(x: Combination, dt: float, weights: Sequence[float], stages: Sequence[Combination]) -> Combination:
    """x + dt Σ_i weights_i k_i."""
    for weight, k in zip(weights, stages, strict=True):
        x = x + dt * weight * k
    return x


def _check_order(order: int) -> None:
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order: expected 1, 2, 3 or 4, got {order!r}")
