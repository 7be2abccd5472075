"""A method with its stepping rule, on rows of samples: the start and end of a step, and its evaluations of f."""

from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.multistep.own_steps import AdamsAttempt, AdamsFormula, History
from dise.integrate.problem.field import BoundField
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.run import Run
from dise.integrate.problem.state import Layout
from dise.integrate.runge_kutta.running_sums import RunningSums
from dise.integrate.runge_kutta.step import Attempt, Step
from dise.integrate.runge_kutta.tableau import ButcherTableau
from dise.integrate.status import Status
from dise.integrate.stepping.control import Controller, Verdict
from dise.integrate.stepping.rows import LoopRows
from dise.integrate.tracing import known_all, known_none

SHORT_STEP = 0.01  # of the next step: f at points so close tells little of it, and differences of f are rounding


class Method(NamedTuple):
    """A Runge–Kutta or Adams method with its stepping rule."""

    tableau: ButcherTableau | AdamsFormula
    control: Controller

    @property
    def always_known(self) -> bool:
        """Whether the rows need no mark where k1 is known: each step, or the number of steps, tells."""
        return self.tableau.fsal or self.control.rounds is not None

    def begin(
        self, rows: LoopRows, index: int, running: Tensor | None, sums: RunningSums | None = None, *, known: bool
    ) -> Attempt | AdamsAttempt:
        """The rows' step number `index`.

        Args:
            rows: n of them.
            index: from 0.
            running: [n] bool; rows where it is False take a step of length 0. None: all rows run.
            sums: for the step's stages, if it may have some.
            known: whether `rows.k1` is f(t, y) for all rows.
        """
        t_next, before_t1 = self.control.end(index, rows.t, rows.dt, rows.t0, rows.t1)
        if running is not None:
            t_next = torch.where(running, t_next, rows.t)
        if isinstance(self.tableau, AdamsFormula):
            history = rows.history() or History.none(self.tableau, rows.t, rows.y)
            return AdamsAttempt(
                self.tableau, rows.t, t_next, rows.y, rows.k1, history, rows.bounds, before_t1=before_t1
            )
        k1 = rows.k1 if known else None
        return Attempt(self.tableau, rows.t, t_next, rows.y, k1, rows.bounds, sums, before_t1=before_t1)

    def end(
        self,
        rows: LoopRows,
        attempt: Attempt | AdamsAttempt,
        layout: Layout,
        run: Run,
        running: Tensor | None,
        field: BoundField | None = None,
    ) -> tuple[LoopRows, StepRecord]:
        """The rows after the step, and its record: accepted rows advance, rejected ones and those not running stay.

        `field` is f for these rows, where the run's statistics need it.

        If all rows run and all are known to be accepted, new values replace old ones without a `torch.where`.
        """
        t_next = attempt.t_next
        step = attempt.finish() if isinstance(attempt, Attempt) else attempt.finish(inside=run.reads_inside)
        error = None if self.control.test is None else (attempt if isinstance(attempt, Attempt) else step).error()
        verdict = self.control.judge(step, error, rows.memory, layout, run)
        every = running is None and (verdict.all_accepted or known_all(verdict.accept))
        accept = verdict.accept if running is None else verdict.accept & running
        column = accept if every else accept.unsqueeze(1)

        def advanced(new: Tensor, old: Tensor) -> Tensor:
            return new if every else torch.where(accept if new.ndim == 1 else column, new, old)

        known, accumulated, error = rows.known, rows.accumulated, rows.error
        if known is not None:  # k1, after a rejected step
            known = ~accept if running is None else torch.where(running, ~accept, known)
        if run.accumulate is not None and accumulated is not None:
            accumulated = advanced(run.accumulate.after(accumulated, step, field), accumulated)
        if self.control.test is not None:
            error = advanced(error + verdict.error, error)
        status, dt = self._outcome(rows, step, attempt, verdict, accept, running, run, every=every)
        after = LoopRows(
            sample=rows.sample,
            t1=rows.t1,
            k1=advanced(step.stages[-1], rows.k1) if self.tableau.fsal else attempt.stages[0],
            y=advanced(step.y_next, rows.y),
            t=advanced(t_next, rows.t),
            n_steps=rows.n_steps + (1 if running is None else running),
            n_accepted=rows.n_accepted + (1 if every else accept),
            error=error,
            status=status,
            dt=dt,
            t0=rows.t0,
            known=known,
            memory=verdict.memory,
            accumulated=accumulated,
            restarts=rows.restarts,
            piece=rows.piece,
            bounds=rows.bounds,
        )
        if isinstance(attempt, AdamsAttempt):
            short = accept & (step.dt.abs() < SHORT_STEP * dt.abs())
            after = after.with_history(attempt.history(None if every else accept, short))
        return after, StepRecord(rows.sample, step, t_next, verdict.error, accept)

    def _outcome(
        self,
        rows: LoopRows,
        step: Step,
        attempt: Attempt | AdamsAttempt,
        verdict: Verdict,
        accept: Tensor,
        running: Tensor | None,
        run: Run,
        *,
        every: bool,
    ) -> tuple[Tensor, Tensor]:
        """[n] status and [n] next step; the status itself, unchanged, if all rows run and none is known to end."""
        adaptive, t_next = self.control.rounds is None, attempt.t_next
        dt = self.control.planned(verdict.dt, accept, t_next, rows.t1) if adaptive else rows.dt
        if every and not adaptive:  # only the last one of a fixed number of steps ends at t1, and it is t1 itself
            return (torch.full_like(rows.status, int(Status.SUCCESS)) if t_next is rows.t1 else rows.status), dt
        arrived = None if attempt.before_t1 else t_next == rows.t1
        stuck = None if every else self.control.stuck(step, verdict, run)
        if running is None:
            stuck = None if stuck is None or known_none(stuck) else stuck
            if stuck is None and (arrived is None or known_none(arrived)):
                return rows.status, dt
        status = rows.status
        if stuck is not None:
            failed = stuck > accept
            failed = failed if running is None else failed & running
            status = torch.where(failed, self.control.reason(verdict), status)
        if arrived is not None:
            arrived = arrived if every else arrived & accept
            status = status.masked_fill(arrived, int(Status.SUCCESS))
            if adaptive:
                # where the last step was truncated at t1, keep the untruncated size for `resume`
                truncated = arrived if self.control.stretch == 1 else arrived & (step.dt.abs() < rows.dt.abs())
                dt = torch.where(truncated, rows.dt, dt)
        return status, (dt if running is None or not adaptive else torch.where(running, dt, rows.dt))

    def evaluations(self, rows: LoopRows, first: int) -> Tensor:
        """[n] evaluations of f that the rows needed: `first` of them before the steps, k1 among them.

        The first stage is known at the first step, after a rejected step, and after every step of a method whose last
        stage is the next step's first.
        """
        each = self.tableau.evaluations if self.tableau.fsal else self.tableau.stages
        evaluations = rows.n_steps if each == 1 else each * rows.n_steps
        if self.tableau.fsal:
            evaluations = evaluations + first
            return evaluations if rows.restarts is None else evaluations + rows.restarts
        if rows.known is None:  # the first step's k1 is among `first`; a rejected step ends a sample
            evaluations = evaluations.clamp(min=1)
            return evaluations if first == 1 else evaluations + (first - 1)
        repeated = rows.n_steps - rows.n_accepted + ~rows.known
        return evaluations - repeated + first
