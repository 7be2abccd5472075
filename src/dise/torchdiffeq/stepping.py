"""How torchdiffeq's methods step, where this library's integrators do otherwise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dise.integrate import Adaptive, ButcherTableau, Integrator, State, Step
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration
from dise.integrate.problem.run import Run
from dise.integrate.stepping.control import Controller, FixedSteps, Verdict
from dise.integrate.stepping.loop import integrate

_ENDLESS_FIXED_STEPS = 20_000  # torchdiffeq's limit for fixed-step methods that look for an event


class Norm:
    """A norm of torchdiffeq's, state → number, on errors [1, ...] → [1]."""

    def __init__(self, norm: Callable[[State], Tensor]) -> None:
        self.norm = norm

    def __call__(self, error: Any) -> Tensor:
        """[1] the norm of a scaled error."""
        state = tuple(part[0] for part in error) if isinstance(error, tuple) else error[0]
        value = torch.as_tensor(self.norm(state))
        if value.numel() != 1:
            raise ValueError(f"options: expected a norm that returns one number, got shape {tuple(value.shape)}")
        return value.abs().reshape(1)


class CallbackControl:
    """A controller that tells callbacks of the steps it judges."""

    def __init__(self, control: Controller, tell: Mapping[str, Callable]) -> None:
        self._control, self._tell = control, tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)

    def judge(self, step: Step, *rest: Any) -> Verdict:
        """The controller's verdict, told."""
        verdict = self._control.judge(step, *rest)
        layout, outcome = rest[1], "callback_accept_step" if bool(verdict.accept) else "callback_reject_step"
        for name in ("callback_step", outcome):
            if name in self._tell:
                self._tell[name](layout.time(step.t), layout.unpack(step.y), layout.time(step.dt.abs()))
        return verdict


@dataclass(frozen=True, kw_only=True)
class AdaptiveMethod(Adaptive):
    """An adaptive method of a given tableau, and whom it tells of its steps."""

    table: ButcherTableau
    tell: Mapping[str, Callable]

    @property
    def tableau(self) -> ButcherTableau:  # type: ignore[override]
        """The method."""
        return self.table

    @property
    def control(self) -> Controller:
        """The step-size control, which tells callbacks if there are any."""
        return CallbackControl(super().control, self.tell) if self.tell else super().control


@dataclass(frozen=True, eq=False)
class OnGrid(Integrator):
    """Steps from time to time of a grid: that of `times`, or of a span's two ends."""

    tableau: ButcherTableau
    grid: Callable[[Tensor], Tensor]
    times: Tensor | None
    tell: Mapping[str, Callable]

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Step one system."""
        ends = torch.cat([problem.t0, problem.t1])
        grid = self.grid(ends if self.times is None else self.times)
        if not isinstance(grid, Tensor) or grid.ndim != 1 or len(grid) < 2 or not bool((grid[[0, -1]] == ends).all()):
            raise ValueError("options: grid_constructor must return times [R] that start and end where t does")
        control = Grid(len(grid) - 1, grid=grid.to(ends))
        return integrate(self.tableau, CallbackControl(control, self.tell) if self.tell else control, problem, run)


@dataclass(frozen=True, eq=False)
class Grid(FixedSteps):
    """Steps between given times."""

    grid: Tensor | None = None

    def first_step(self, problem: Problem, k1: Tensor, order: int, run: Run) -> Any:
        """The first one."""
        return self.grid[1:2] - self.grid[:1], 0  # type: ignore[index]
        yield

    def end(self, index: int, t: Tensor, dt: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """The next time of the grid."""
        return self.grid[index + 1 : index + 2]  # type: ignore[index]


@dataclass(frozen=True, eq=False)
class Endless(Integrator):
    """Equal steps until an event."""

    tableau: ButcherTableau
    step: float
    tell: Mapping[str, Callable]

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Step one system."""
        control = EqualSteps(step=self.step)
        return integrate(self.tableau, CallbackControl(control, self.tell) if self.tell else control, problem, run)


@dataclass(frozen=True, eq=False)
class EqualSteps(FixedSteps):
    """Steps of one length, as many as an event needs."""

    rounds: None = None  # type: ignore[assignment]
    max_steps: int = _ENDLESS_FIXED_STEPS  # type: ignore[assignment]
    step: float = 1.0

    def first_step(self, problem: Problem, k1: Tensor, order: int, run: Run) -> Any:
        """One step, towards t1."""
        return torch.full_like(problem.t0, self.step).copysign(problem.t1), 0
        yield

    def end(self, index: int, t: Tensor, dt: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """A step on."""
        return t + torch.full_like(t, self.step).copysign(t1)
