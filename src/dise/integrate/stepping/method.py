"""A Runge–Kutta method with its stepping rule, on rows of samples: a step's beginning and end, and what it cost."""

from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.runge_kutta.step import Attempt, Step
from dise.integrate.runge_kutta.tableau import ButcherTableau
from dise.integrate.status import Status
from dise.integrate.stepping.control import Controller
from dise.integrate.stepping.rows import RUNNING, LoopRows
from dise.integrate.tracing import known_all, known_none


class Method(NamedTuple):
    """A Runge–Kutta method with its stepping rule."""

    tableau: ButcherTableau
    control: Controller

    def begin(self, rows: LoopRows, index: int, running: Tensor | None, *, known: bool = False) -> Attempt:
        """The rows' step number `index`; those that are not `running` [n] step on the spot (None: all run).

        `known` says that the k1 of all rows is, even if the method does not know it at the end of a step.
        """
        t_next = self.control.end(index, rows.t, rows.dt, rows.t0, rows.t1)
        if running is not None:
            t_next = torch.where(running, t_next, rows.t)
        known = known or index == 0 or self.tableau.fsal
        return Attempt(self.tableau, rows.t, t_next, rows.y, rows.k1 if known else None)

    def end(
        self, rows: LoopRows, attempt: Attempt, problem: Problem, running: Tensor | None
    ) -> tuple[LoopRows, StepRecord]:
        """The rows after the step: moved if it was accepted, frozen if they were."""
        step, t_next = attempt.finish(), attempt.t_next
        if running is None and self.control.passes(step):
            return self._passed(rows, step, t_next, problem)
        verdict = self.control.judge(step, rows.memory, problem)
        accept, error = verdict.accept, verdict.error
        dt = verdict.dt if self.control.rounds is None else rows.dt  # that of equal steps is known
        arrived = accept if t_next is rows.t1 else accept & (t_next == rows.t1)
        status = rows.status  # itself, so that the loop sees that nobody is done
        if running is not None or not known_none(arrived | verdict.failed):
            status = torch.where(verdict.failed, self.control.reason(verdict), RUNNING)
            status = status.masked_fill(arrived, int(Status.SUCCESS))
            if self.control.rounds is None:
                dt = torch.where(arrived, rows.dt, dt)  # a last step is cut short: who goes on tries the whole one
        known = rows.known if self.tableau.fsal else ~accept
        if running is not None:
            accept, status, dt = (
                accept & running,
                torch.where(running, status, rows.status),
                torch.where(running, dt, rows.dt),
            )
            known = known if self.tableau.fsal else torch.where(running, known, rows.known)
        every, column = running is None and known_all(accept), accept.unsqueeze(1)

        def moved(new: Tensor, old: Tensor) -> Tensor:
            """The new values of the rows that moved."""
            return new if every else torch.where(accept if new.ndim == 1 else column, new, old)

        accumulated = rows.accumulated
        if problem.accumulate is not None:
            accumulated = moved(accumulated + _share(problem.accumulate(step), step), accumulated)
        after = LoopRows(
            sample=rows.sample,
            t0=rows.t0,
            t1=rows.t1,
            k1=moved(step.stages[-1], rows.k1) if self.tableau.fsal else attempt.stages[0],
            known=known,
            y=moved(step.y_next, rows.y),
            t=moved(t_next, rows.t),
            n_steps=rows.n_steps + (1 if running is None else running),
            n_accepted=rows.n_accepted + accept,
            error=moved(rows.error + error, rows.error),
            status=status,
            dt=dt,
            memory=verdict.memory,
            accumulated=accumulated,
        )
        return after, StepRecord(rows.sample, step, t_next, error, accept)

    def _passed(self, rows: LoopRows, step: Step, t_next: Tensor, problem: Problem) -> tuple[LoopRows, StepRecord]:
        """The rows after a step that all of them have taken, whose error nobody measures."""
        after = rows._replace(
            k1=step.stages[-1] if self.tableau.fsal else rows.k1,
            known=rows.known if self.tableau.fsal else torch.zeros_like(rows.known),
            y=step.y_next,
            t=t_next,
            n_steps=rows.n_steps + 1,
            n_accepted=rows.n_accepted + 1,
            status=rows.status.masked_fill(t_next == rows.t1, int(Status.SUCCESS)),
        )
        if problem.accumulate is not None:
            after = after._replace(accumulated=rows.accumulated + _share(problem.accumulate(step), step))
        return after, StepRecord(rows.sample, step, t_next, rows.error, torch.ones_like(rows.known))

    def moving(self, problem: Problem) -> tuple[str, ...]:
        """Which fields of the rows a step changes."""
        never = {"sample", "t0", "t1"}
        if self.tableau.fsal:
            never.add("known")
        if problem.accumulate is None:
            never.add("accumulated")
        return tuple(name for name in LoopRows._fields if name not in never)

    def evaluations(self, rows: LoopRows) -> Tensor:
        """[n] evaluations of f that the rows' steps took.

        The first step knows its first stage, and so does one after a rejected step, or after any if the last stage is
        the next one's first.
        """
        if self.tableau.fsal:
            return (self.tableau.stages - 1) * rows.n_steps
        if self.control.rounds is not None:
            repeated = (rows.n_steps > 0).long()  # a rejected step ends a sample
        else:
            repeated = rows.n_steps - rows.n_accepted + ~rows.known
        return self.tableau.stages * rows.n_steps - repeated


def _share(value: object, step: Step) -> Tensor:
    """What `accumulate` returned, checked."""
    if isinstance(value, Tensor) and value.shape == step.t.shape:
        return value
    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(f"accumulate: expected a tensor of shape {tuple(step.t.shape)}, one value a sample, got {got}")
