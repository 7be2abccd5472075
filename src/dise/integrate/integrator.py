"""`Integrator`: what solves initial value problems."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration
from dise.integrate.problem.run import Run


class Integrator(ABC):
    """How initial value problems are solved. `dise.solve` takes one."""

    chooses: ClassVar[bool] = False  # whether it assigns an integrator to each sample (`Solution.choice`)
    one_way: ClassVar[bool] = False  # whether it is made for one direction of time

    @property
    def uses_first_stage(self) -> bool:
        """Whether it needs f(t0, y0), which policies evaluate before they choose."""
        return True

    @abstractmethod
    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Solve the problem, as a coroutine that requests evaluations of f (see `dise.integrate.problem.problem`)."""

    def reversed(self) -> "Integrator":
        """The integrator from the end to the start, with steps at the same times; a ValueError if there is none."""
        return self

    def mapped(self, change: "Callable[[Integrator], Integrator]") -> "Integrator":
        """The integrator, changed by a function; if it chooses among candidates, with each of them changed."""
        return change(self)


def check_integrator(integrator: object, name: str = "integrator", *, optional: bool = False) -> None:
    """Raise a TypeError unless it is an integrator (or None, if it is optional)."""
    if not isinstance(integrator, Integrator) and not (optional and integrator is None):
        raise TypeError(f"{name}: expected an integrator such as dise.Dopri5(), got {integrator!r}")


def as_integrators(name: str, values: object) -> tuple[Integrator, ...]:
    """A list or tuple of integrators, as a tuple.

    Raises:
        TypeError: something else, or something else in it.
    """
    if not isinstance(values, Sequence) or not all(isinstance(value, Integrator) for value in values):
        raise TypeError(f"{name}: expected a list of integrators such as dise.RK4(), got {values!r}")
    return tuple(values)
