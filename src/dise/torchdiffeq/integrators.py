"""Integrators that step as torchdiffeq's methods do: its norms, its callbacks, its time grids."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dise.integrate import Adaptive, ButcherTableau, Integrator, State
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration
from dise.integrate.problem.run import Run
from dise.integrate.problem.state import Layout
from dise.integrate.stepping.control import FixedSteps
from dise.integrate.stepping.grids import Grid
from dise.integrate.stepping.loop import integrate

Callback = Callable[[Tensor, State, Tensor], object]  # of t, y and dt
CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


class StateNorm:
    """A norm from torchdiffeq, state → number, as dise uses it: magnitudes [1, ...] → [1]."""

    def __init__(self, norm: Callable[[State], Tensor]) -> None:
        self.norm = norm

    def __call__(self, error: Any) -> Tensor:
        """[1] the norm of a scaled error.

        Raises:
            ValueError: it is not one number.
        """
        return _one_number(self.norm(tuple(part[0] for part in error) if isinstance(error, tuple) else error[0]))


def _one_number(value: object) -> Tensor:
    """[1] the value of a norm."""
    norm = torch.as_tensor(value)
    if norm.numel() != 1:
        raise ValueError(f"options: expected a norm that returns one number, got shape {tuple(norm.shape)}")
    return norm.abs().reshape(1)


@dataclass(frozen=True)
class CallbackObserver:
    """Calls a function's callbacks after each attempted step of one system.

    Args:
        callbacks: by their names, some of `CALLBACKS`.
        layout: of the state.
    """

    callbacks: Mapping[str, Callback]
    layout: Layout

    def see(self, record: StepRecord) -> None:
        """Call "callback_step", then the callback of the outcome; dt is positive in both directions."""
        if record.stopped is not None:  # a late record follows
            return
        step, accepted = record.step, bool(record.accept)
        for name in ("callback_step", "callback_accept_step" if accepted else "callback_reject_step"):
            if name in self.callbacks:
                t, dt = (self.layout.time(x) for x in (step.t, step.dt.abs()))
                self.callbacks[name](t, self.layout.unpack(step.y), dt)

    def start_over(self, sample: Tensor) -> None:
        """Do nothing: torchdiffeq's methods never start over."""


def with_callbacks(run: Run, problem: Problem, callbacks: Mapping[str, Callback]) -> Run:
    """The run, with an observer that calls the callbacks."""
    if not callbacks:
        return run
    return replace(run, observers=(*run.observers, CallbackObserver(callbacks, problem.layout)))


@dataclass(frozen=True, kw_only=True)
class AdaptiveMethod(Adaptive):
    """An adaptive method with a given tableau and callbacks."""

    table: ButcherTableau
    callbacks: Mapping[str, Callback]

    @property
    def tableau(self) -> ButcherTableau:  # type: ignore[override]
        """The method."""
        return self.table

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Step one system from t0 to t1."""
        return super().integrate(problem, with_callbacks(run, problem, self.callbacks))


@dataclass(frozen=True, eq=False, kw_only=True)
class FixedMethod(Integrator):
    """A fixed-step method with a given tableau, grid and callbacks.

    Args:
        tableau: the method.
        grid: the steps' ends, from the ends [2] of the span.
        callbacks: by their names.
        max_steps: limit for a grid without a last step.
    """

    tableau: ButcherTableau
    grid: Callable[[Tensor], Grid]
    callbacks: Mapping[str, Callback]
    max_steps: int | None = None

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Step one system from t0 to t1."""
        control = FixedSteps(self.grid(torch.cat([problem.t0, problem.t1])), max_steps=self.max_steps)
        return integrate(self.tableau, control, problem, with_callbacks(run, problem, self.callbacks))
