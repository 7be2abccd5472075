"""Integrators: frozen values that define how an initial value problem is solved."""

import math
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

from dise.integrate.integrator import Integrator
from dise.integrate.multistep.grids import TimeGrid, uniform
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration
from dise.integrate.problem.run import Run
from dise.integrate.runge_kutta import classical
from dise.integrate.runge_kutta.chebyshev import chebyshev, stability_interval
from dise.integrate.runge_kutta.dopri8 import DOPRI8
from dise.integrate.runge_kutta.tableau import ButcherTableau
from dise.integrate.stepping.control import Controller, ErrorControl, FixedSteps
from dise.integrate.stepping.controllers import ELEMENTARY, IController
from dise.integrate.stepping.grids import EqualParts, Fractions
from dise.integrate.stepping.loop import integrate
from dise.integrate.stepping.tolerance import ErrorTest, Norm, Tolerance, check_tolerances, frozen, rms_norm
from dise.integrate.value import Value, check_above, check_from_zero, check_whole, is_number, keep_plain


@dataclass(frozen=True)
class RungeKutta(Value, Integrator):
    """A Runge–Kutta method: a Butcher tableau and a stepping rule.

    To add a method, subclass `FixedStep` or `Adaptive` and set `tableau`.

    Raises:
        TypeError: the class has no tableau.
    """

    tableau: ClassVar[ButcherTableau]

    def __post_init__(self) -> None:
        if not isinstance(getattr(self, "tableau", None), ButcherTableau):
            name = type(self).__name__
            raise TypeError(f"tableau: {name} has no ButcherTableau; set one in a subclass, or use e.g. dise.Dopri5")

    @property
    @abstractmethod
    def control(self) -> Controller:
        """The stepping rule."""

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Step every sample from t0 to t1."""
        return integrate(self.tableau, self.control, problem, run)


@dataclass(frozen=True)
class FixedStep(RungeKutta):
    """A Runge–Kutta method with fixed steps. `StepDoubling` adds an error estimate.

    Args:
        steps: number of equal steps over each sample's span, or a `TimeGrid` of their ends, e.g. `dise.grids.sway(8)`.

    Raises:
        ValueError: steps is not a positive whole number; when solving: the grid is for another span.
    """

    steps: int | TimeGrid = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_plain(self)
        if not isinstance(self.steps, TimeGrid):
            check_whole("steps", self.steps)

    @property
    def grid(self) -> TimeGrid:
        """Ends of the steps."""
        return self.steps if isinstance(self.steps, TimeGrid) else uniform(self.steps)

    @property
    def control(self) -> FixedSteps:
        """Steps that end where the grid says."""
        if isinstance(self.steps, TimeGrid):
            return FixedSteps(Fractions(self.steps.fractions[1:]))
        return FixedSteps(EqualParts(self.steps))

    def reversed(self) -> "FixedStep":
        """The method on the reversed grid; itself, if its steps are equal."""
        return replace(self, steps=self.steps.reversed()) if isinstance(self.steps, TimeGrid) else self

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Step every sample from t0 to t1."""
        if isinstance(self.steps, TimeGrid):
            problem.check_span(self.steps.span)
        return integrate(self.tableau, self.control, problem, run)


@dataclass(frozen=True)
class StepDoubling(Value, Integrator):
    """A fixed-step method with an error estimate: each step is repeated as two steps of half the length.

    The result is that of the half steps: `StepDoubling(RK4(4))` returns the state of `RK4(8)`. `Solution.error` sums
    (y₂ − y₁) / (2^order − 1) over the steps, scaled like the error of adaptive methods; y₂ is the result of the half
    steps, y₁ that of the whole step. Both share their first evaluation of f: a method of s stages needs 3s − 1
    evaluations per step.

    The adaptive counterpart is a subclass of `Adaptive` with, for example, `tableau = RK4.tableau.doubled()`.

    Args:
        integrator: a fixed-step method, e.g. `RK4(steps=4)`.
        rtol, atol, norm: scale of the error, as in `Adaptive`. They do not affect the steps.

    Raises:
        ValueError: an argument (named in the message) is out of its range.

    Source: Hairer, Nørsett, Wanner, II.4, Eq. 4.4.
    """

    integrator: FixedStep
    _: KW_ONLY
    rtol: Tolerance = 1e-3
    atol: Tolerance = 1e-3
    norm: Norm = rms_norm

    def __post_init__(self) -> None:
        if not isinstance(self.integrator, FixedStep):
            raise ValueError(f"integrator: expected a fixed-step method such as RK4(steps=4), got {self.integrator!r}")
        _check_error_test(self)

    @property
    def tableau(self) -> ButcherTableau:
        """Tableau of the step-doubling method."""
        return self.integrator.tableau.doubled()

    @property
    def control(self) -> Controller:
        """The method's steps, with an error estimate."""
        test = ErrorTest(self.rtol, self.atol, self.norm)
        return replace(self.integrator.control, test=test)

    def reversed(self) -> "StepDoubling":
        """The method on the reversed grid; itself, if its steps are equal."""
        back = self.integrator.reversed()
        return self if back is self.integrator else replace(self, integrator=back)

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Step every sample from t0 to t1."""
        problem.check_span(self.integrator.grid.span)
        return integrate(self.tableau, self.control, problem, run)


@dataclass(frozen=True, kw_only=True)
class ErrorControlled(Value, Integrator):
    """A method that controls each sample's step sizes by an error estimate: `Adaptive` Runge–Kutta methods, `Adams`.

    Args:
        rtol, atol: a step is accepted if norm(err / (atol + rtol·max(|y|, |y_next|))) ≤ 1. Numbers, or tensors that
            broadcast to a sample's state; for a tuple or dict state, a tuple or dict of these. Tensors are stored as
            tuples of numbers, so that integrators can be compared, hashed and printed.
        first_step: "heuristic" (Hairer, Nørsett, Wanner, II.4; one evaluation of f), "scale" (from the sizes of y0 and
            f(t0, y0); no evaluation), "span" (try the whole span in one step) or a positive number (units of t).
        max_steps: number of attempted steps after which a sample fails (`Status.MAX_STEPS`).
        dt_min: shortest step (units of t), except for the last one. A sample that needs a shorter step fails
            (`Status.DT_MIN`).
        dt_max: longest step (units of t).
        accept_at_dt_min: accept finite steps of length dt_min whatever their error, like torchdiffeq's min_step;
            `Solution.error` includes them.
        controller: the rule for step sizes, `IController` or `PIController`.
        norm: scaled error, magnitudes in the state's structure and shapes [n, ...] (n = 1 with batched=False) → [n]:
            `dise.rms_norm` (for a tuple or dict the largest norm of its tensors, as in torchdiffeq), `dise.max_norm`,
            or any function. A norm that reads only some tensors excludes the others from the error test.

    Raises:
        ValueError: an argument (named in the message) is out of its range; when solving: tolerances of another shape or
            structure than the state, or a norm that does not return [n].
    """

    rtol: Tolerance = 1e-3
    atol: Tolerance = 1e-3
    first_step: str | float = "heuristic"
    max_steps: int = 10_000
    dt_min: float = 0.0
    dt_max: float = math.inf
    accept_at_dt_min: bool = False
    controller: IController = ELEMENTARY
    norm: Norm = rms_norm

    def __post_init__(self) -> None:
        keep_plain(self)
        _check_error_test(self)
        step = self.first_step
        number = isinstance(step, int | float) and is_number(step) and 0 < step < math.inf
        if not number and not (isinstance(step, str) and step in ("heuristic", "scale", "span")):
            raise ValueError(f"first_step: expected 'heuristic', 'scale', 'span' or a positive number, got {step!r}")
        check_whole("max_steps", self.max_steps)
        check_from_zero("dt_min", self.dt_min)
        if not (is_number(self.dt_max) and self.dt_min <= self.dt_max and self.dt_max > 0):
            raise ValueError(f"dt_max: expected a positive number of at least dt_min, got {self.dt_max!r}")
        if not isinstance(self.accept_at_dt_min, bool) or (self.accept_at_dt_min and self.dt_min == 0):
            got = f"got {self.accept_at_dt_min!r} with dt_min={self.dt_min}"
            raise ValueError(f"accept_at_dt_min: expected False, or True with a positive dt_min, {got}")
        if self.controller is not type(self).controller and not isinstance(self.controller, IController):
            raise ValueError(f"controller: expected one such as dise.PIController(), got {self.controller!r}")

    @property
    @abstractmethod
    def error_order(self) -> int:
        """Power of dt with which the error estimate decreases."""

    @property
    def control(self) -> ErrorControl:
        """Error control."""
        return ErrorControl(
            test=ErrorTest(self.rtol, self.atol, self.norm),
            controller=self.controller,
            initial=self.first_step,
            dt_min=self.dt_min,
            dt_max=self.dt_max,
            accept_at_dt_min=self.accept_at_dt_min,
            max_steps=self.max_steps,
            order=self.error_order,
        )


@dataclass(frozen=True, kw_only=True)
class Adaptive(ErrorControlled, RungeKutta):
    """A Runge–Kutta method that controls each sample's step sizes by its embedded error estimate.

    See `ErrorControlled` for the arguments.
    """

    def __post_init__(self) -> None:
        RungeKutta.__post_init__(self)
        if self.tableau.b_err is None:
            raise ValueError("tableau: an adaptive method needs an error estimate, b_err; tableau.doubled() makes one")
        ErrorControlled.__post_init__(self)

    @property
    def error_order(self) -> int:
        """That of the tableau's estimate."""
        return self.tableau.error_order or self.tableau.order


def _check_error_test(integrator: ErrorControlled | StepDoubling) -> None:
    """Check rtol, atol and norm, and replace tolerances by hashable ones."""
    for name in ("rtol", "atol"):
        object.__setattr__(integrator, name, frozen(name, getattr(integrator, name)))
    check_tolerances(integrator.rtol, integrator.atol)
    if not callable(integrator.norm):
        raise ValueError(f"norm: expected a function such as dise.max_norm, got {integrator.norm!r}")


class Euler(FixedStep):
    """Explicit Euler: order 1, one evaluation of f per step."""

    tableau = classical.EULER


class Midpoint(FixedStep):
    """The explicit midpoint rule: order 2, two evaluations of f per step."""

    tableau = classical.MIDPOINT


class Heun(FixedStep):
    """Heun's method, the explicit trapezoidal rule: order 2, two evaluations of f per step. Adaptive: `HeunEuler`."""

    tableau = classical.HEUN


class Ralston(FixedStep):
    """Ralston's method, with the smallest error bound of order 2: two evaluations of f per step."""

    tableau = classical.RALSTON


class RK4(FixedStep):
    """The classical Runge–Kutta method: order 4, four evaluations of f per step.

    The classical tableau has the nodes 0, 1/2, 1/2, 1; torchdiffeq's "rk4" is another method, the 3/8 rule: `RK38`.
    """

    tableau = classical.RK4


class RK38(FixedStep):
    """Kutta's 3/8 rule: order 4, four evaluations of f per step; torchdiffeq's "rk4"."""

    tableau = classical.RK38


@dataclass(frozen=True)
class RKC1(FixedStep):
    """The damped Runge–Kutta–Chebyshev method: order 1, `stages` evaluations of f per step; for dissipative fields.

    With the same number of evaluations of f it is stable over spans up to `stages` times as long as Euler's method,
    which has the same order. Use it for fields whose Jacobian has large negative eigenvalues, where Euler needs small
    steps although the solution is smooth; not for oscillations (imaginary eigenvalues).

    For y' = λy a step multiplies y by R(λ dt). On z in [−β, 0], where β is `stability_interval`, |R(z)| ≤ 1; between
    −β (1 − 1/w0)/2 and −β (1 + 1/w0)/2, where w0 = cosh(arccosh(1/damping)/stages), |R(z)| ≤ damping. β decreases from
    2·stages² at damping 1 to 2·stages at damping 0, where a step equals `stages` Euler steps.

    Args:
        steps: number of equal steps over each sample's span, or a `TimeGrid`.
        stages: number of stages per step. One stage is Euler's method.
        damping: in (0, 1), largest factor by which a step multiplies fast modes.

    Raises:
        ValueError: an argument (named in the message) is out of its range.

    Source: see `dise.integrate.runge_kutta.chebyshev`.
    """

    stages: int = 4
    damping: float = 0.1

    def __post_init__(self) -> None:
        check_whole("stages", self.stages)
        check_above("damping", self.damping, 0, 1)
        super().__post_init__()

    @property
    def tableau(self) -> ButcherTableau:  # type: ignore[override]
        """Tableau of the method with this number of stages and this damping."""
        return chebyshev(self.stages, self.damping)

    @property
    def stability_interval(self) -> float:
        """β: a step dt with λ dt in [−β, 0] for every eigenvalue λ amplifies no mode."""
        return stability_interval(self.stages, self.damping)


class HeunEuler(Adaptive):
    """Heun–Euler 2(1): order 2, adaptive, two evaluations of f per step.

    NFE is 2 per accepted step, 1 per rejected step, and 1 more with first_step="heuristic".
    """

    tableau = classical.HEUN


class Fehlberg2(Adaptive):
    """Fehlberg's 1(2) with the solution of order 2: adaptive, three evaluations of f per step.

    NFE is 3 per accepted step, 2 per rejected step, and 1 more with first_step="heuristic".
    """

    tableau = classical.FEHLBERG2


class Bosh3(Adaptive):
    """Bogacki–Shampine 3(2): order 3, adaptive, three evaluations of f per step. Dense output of order 3.

    NFE is 2 + 3·steps with first_step="heuristic", 1 + 3·steps otherwise, rejected steps included.
    """

    tableau = classical.BOSH3


class Dopri5(Adaptive):
    """Dormand–Prince 5(4), DOPRI: order 5, adaptive, six evaluations of f per step. Dense output of order 4.

    NFE is 2 + 6·steps with first_step="heuristic", 1 + 6·steps otherwise, rejected steps included.
    """

    tableau = classical.DOPRI5


class Tsit5(Adaptive):
    """Tsitouras 5(4): order 5, adaptive, six evaluations of f per step. Dense output of order 4.

    NFE is 2 + 6·steps with first_step="heuristic", 1 + 6·steps otherwise, rejected steps included.
    """

    tableau = classical.TSIT5


class Dopri8(Adaptive):
    """Prince–Dormand 8(7): order 8, adaptive, thirteen evaluations of f per step; for tight tolerances in float64.

    Dense output has order 5, the highest that its stages allow. Steps are long, so save points within a step are less
    accurate than its ends; where a state needs full accuracy, end the solve at its time.
    NFE is 2 + 13·steps with first_step="heuristic", 1 + 13·steps otherwise, rejected steps included.
    """

    tableau = DOPRI8
