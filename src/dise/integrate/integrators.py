"""Integrators: values that say how an initial value problem is solved."""

from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields
from typing import ClassVar

from dise.integrate import methods
from dise.integrate.control import Controller, ErrorControl, FixedSteps
from dise.integrate.dopri8 import DOPRI8
from dise.integrate.loop import integrate
from dise.integrate.problem import Integration, Problem
from dise.integrate.tableau import ButcherTableau


class Integrator(ABC):
    """How initial value problems are solved. `dise.solve` takes one."""

    chooses: ClassVar[bool] = False  # whether each sample gets an integrator of its own (`Solution.choice`)

    @abstractmethod
    def integrate(self, problem: Problem) -> Integration:
        """Solve the problem, as a coroutine that asks for evaluations of f (see `dise.integrate.problem`)."""


@dataclass(frozen=True)
class RungeKutta(Integrator):
    """A Runge–Kutta method: a tableau and a stepping rule. Subclass it, set `tableau`, and a method is made."""

    tableau: ClassVar[ButcherTableau]

    @property
    @abstractmethod
    def control(self) -> Controller:
        """The stepping rule."""

    def integrate(self, problem: Problem) -> Integration:
        """Step every sample from t0 to t1."""
        return integrate(self.tableau, self.control, problem)

    def __str__(self) -> str:
        """The name, and what differs from the defaults: `RK4(steps=2)`, `Dopri5`."""
        changed = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if field.default is MISSING or getattr(self, field.name) != field.default
        ]
        return type(self).__name__ + (f"({', '.join(changed)})" if changed else "")


@dataclass(frozen=True)
class FixedStep(RungeKutta):
    """A Runge–Kutta method with `steps` equal steps over each sample's span."""

    steps: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps: expected a whole number of at least 1, got {self.steps!r}")

    @property
    def control(self) -> Controller:
        """Equal steps."""
        return FixedSteps(self.steps)


@dataclass(frozen=True, kw_only=True)
class Adaptive(RungeKutta):
    """A Runge–Kutta method that chooses each sample's step sizes by its embedded error estimate.

    Args:
        rtol, atol: a step is accepted if the RMS over features of err / (atol + rtol·max(|y|, |y_next|)) ≤ 1.
        first_step: "heuristic" (Hairer, Nørsett, Wanner, II.4; one evaluation of f), "span" (try the whole
            span at once) or a positive number (units of t).
        max_steps: attempted steps after which a sample gives up.

    Raises:
        ValueError: an argument out of its range.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    first_step: str | float = "heuristic"
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < float("inf")):
                raise ValueError(f"{name}: expected a finite number of at least 0, got {value!r}")
        if self.rtol == self.atol == 0:
            raise ValueError("rtol, atol: at least one must be positive, got 0 and 0")
        step = self.first_step
        number = isinstance(step, int | float) and 0 < step < float("inf")
        if step not in ("heuristic", "span") and not number:
            raise ValueError(f"first_step: expected 'heuristic', 'span' or a positive number, got {step!r}")
        if isinstance(self.max_steps, bool) or not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise ValueError(f"max_steps: expected a whole number of at least 1, got {self.max_steps!r}")

    @property
    def control(self) -> Controller:
        """Error control."""
        return ErrorControl(self.rtol, self.atol, self.first_step, self.max_steps, self.tableau.order)


class Euler(FixedStep):
    """Explicit Euler: order 1, one evaluation of f a step."""

    tableau = methods.EULER


class Midpoint(FixedStep):
    """The explicit midpoint rule: order 2, two evaluations of f a step."""

    tableau = methods.MIDPOINT


class Heun(FixedStep):
    """Heun's method, the explicit trapezoidal rule: order 2, two evaluations of f a step. Adaptive: `HeunEuler`."""

    tableau = methods.HEUN


class Ralston(FixedStep):
    """Ralston's method, whose error bound is the smallest of order 2: two evaluations of f a step."""

    tableau = methods.RALSTON


class RK4(FixedStep):
    """The classical Runge–Kutta method: order 4, four evaluations of f a step.

    The classical tableau (nodes 0, 1/2, 1/2, 1); torchdiffeq's "rk4" is the 3/8 rule, another method: `RK38`.
    """

    tableau = methods.RK4


class RK38(FixedStep):
    """Kutta's 3/8 rule: order 4, four evaluations of f a step; torchdiffeq's "rk4"."""

    tableau = methods.RK38


class HeunEuler(Adaptive):
    """Heun–Euler 2(1): order 2, adaptive, two evaluations of f a step.

    NFE is 1 + 2·steps with first_step="heuristic", 2·steps otherwise, rejected steps included.
    """

    tableau = methods.HEUN


class Fehlberg2(Adaptive):
    """Fehlberg's 1(2), which goes on with the solution of order 2: adaptive, three evaluations of f a step.

    NFE is 1 + 3·steps with first_step="heuristic", 3·steps otherwise, rejected steps included.
    """

    tableau = methods.FEHLBERG2


class Bosh3(Adaptive):
    """Bogacki–Shampine 3(2): order 3, adaptive, three evaluations of f a step. Dense output of order 3.

    NFE is 2 + 3·steps with first_step="heuristic", 1 + 3·steps otherwise, rejected steps included.
    """

    tableau = methods.BOSH3


class Dopri5(Adaptive):
    """Dormand–Prince 5(4), DOPRI: order 5, adaptive, six evaluations of f a step. Dense output of order 4.

    NFE is 2 + 6·steps with first_step="heuristic", 1 + 6·steps otherwise, rejected steps included.
    """

    tableau = methods.DOPRI5


class Tsit5(Adaptive):
    """Tsitouras 5(4): order 5, adaptive, six evaluations of f a step. Dense output of order 4.

    Its error constant is smaller than Dopri5's: fewer steps for the same tolerance, mostly.
    NFE is 2 + 6·steps with first_step="heuristic", 1 + 6·steps otherwise, rejected steps included.
    """

    tableau = methods.TSIT5


class Dopri8(Adaptive):
    """Prince–Dormand 8(7): order 8, adaptive, thirteen evaluations of f a step; for tight tolerances in float64.

    Dense output is of order 5, the highest that its stages allow: between steps, which are long, save points are less
    accurate than the steps' ends. Where all digits matter at a time, let the solve end there.
    NFE is 2 + 13·steps with first_step="heuristic", 1 + 13·steps otherwise, rejected steps included.
    """

    tableau = DOPRI8
