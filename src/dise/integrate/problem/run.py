"""How a solve integrates: the settings that all of its problems share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dise.integrate.problem.field import BoundField, Field
from dise.integrate.problem.hooks import EventRule, Observer, StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request
from dise.integrate.runge_kutta.step import Step


class Accumulator(Protocol):
    """Running statistics of the accepted steps, as columns of one tensor [n, ...]."""

    @property
    def parts(self) -> Sequence[Any]:
        """The statistics, each with a function and a way to `reduce`."""
        ...

    @property
    def calls_field(self) -> bool:
        """Whether a statistic evaluates f."""
        ...

    def start(self, step: Step, field: BoundField | None) -> Tensor:
        """The columns before the first step; `step` has length 0 and is there."""
        ...

    def after(self, columns: Tensor, step: Step, field: BoundField | None) -> Tensor:
        """The columns after a step, as if it were accepted for all samples."""
        ...


MakeRounds = Callable[[Any, Problem, "Run"], Any]  # (method, problem, run) → the loop's `Rounds`


@dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of one solve, built once.

    Attributes:
        field: f, for integrations that call it themselves (compiled rounds, recomputed segments); None: they request
            evaluations only.
        rounds: makes the loop's `Rounds`; None: `EagerRounds`.
        observers: shown each attempted step.
        events: what may stop a sample before t1, or change its state.
        endless: whether a span may be infinite.
        drop_finished, differentiate_step_sizes, accumulate: see `dise.solve`.
        end_only: of the results nothing is read but the states and whether they were reached (see `Result`).
        checkpoint: keep only some states for the backward pass, and recompute the steps between them.
    """

    field: Field | None = None
    rounds: MakeRounds | None = None
    observers: tuple[Observer, ...] = ()
    events: EventRule | None = None
    endless: bool = False
    drop_finished: bool = True
    differentiate_step_sizes: bool = False
    accumulate: Accumulator | None = None
    checkpoint: bool = False
    end_only: bool = False

    @property
    def reads_inside(self) -> bool:
        """Whether something may read what happens within a step; a graph leaves out by itself what is not read."""
        read = bool(self.observers) or self.events is not None or self.accumulate is not None
        return torch.compiler.is_compiling() or read

    def answer(self, problem: Problem, request: Request) -> Tensor:
        """The values of f that a problem's integration requests.

        Raises:
            RuntimeError: the run has no field.
        """
        if self.field is None:
            raise RuntimeError("this run has no field to call; its integrations request evaluations")
        return self.field(request._replace(rows=problem.requested(request.rows)))

    def sample_args(self, problem: Problem) -> tuple[Tensor, ...]:
        """f's arguments with a row per sample, for a problem's samples; none if the run has no field."""
        return () if self.field is None else self.field.bound(problem.sample).sample_args

    def field_of_statistics(self, problem: Problem, rows: Tensor | None) -> BoundField | None:
        """f for some of a problem's samples (None: all, in order), if the statistics evaluate it."""
        if self.accumulate is None or self.field is None or not self.accumulate.calls_field:
            return None
        return self.field.bound(problem.requested(rows))

    def show(self, problem: Problem, record: StepRecord) -> None:
        """Show the observers an attempted step of some of the problem's samples."""
        if self.observers:
            record = record._replace(sample=problem.samples(record.sample))
            for observer in self.observers:
                for part in (record,) if getattr(observer, "joins_rounds", False) else record.apart():
                    observer.see(part)
