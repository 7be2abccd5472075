"""The integration loop: which samples still run, and what becomes of each attempted step."""

from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.control import Controller, Verdict
from dise.integrate.problem import Integration, Problem, Request, Result
from dise.integrate.solution import Status
from dise.integrate.step import Step, runge_kutta_step
from dise.integrate.tableau import ButcherTableau


class _Rows(NamedTuple):
    """The samples in the loop, a row each."""

    sample: Tensor  # which of the problem's samples
    t0: Tensor
    t1: Tensor
    k1: Tensor  # f(t, y)
    y: Tensor
    t: Tensor
    nfe: Tensor
    n_steps: Tensor
    n_accepted: Tensor
    error: Tensor
    status: Tensor
    dt: Tensor
    memory: Tensor  # the controller's
    accumulated: Tensor

    def take(self, rows: Tensor) -> "_Rows":
        return _Rows(*(field[rows] for field in self))


def integrate(tableau: ButcherTableau, control: Controller, problem: Problem) -> Integration:
    """Integrate every sample of the problem with its own steps, as a coroutine (see `dise.integrate.problem`).

    A sample that has reached t1, or failed, is frozen: it keeps its state while the others go on, and with
    `problem.compact` it leaves the batch. The device is read once a step, and never if the number of steps is known.
    """
    k1 = yield from problem.first_stage()
    dt, evaluations = yield from control.first_step(problem, k1, tableau.order)
    rows = _start(problem, k1, dt, nfe=1 + evaluations)
    everyone, finished = True, []
    for index in count() if control.rounds is None else range(control.rounds):
        if control.rounds is None:
            remaining = (rows.status == Status.RUNNING).nonzero().flatten()  # the one read of the device
            if len(remaining) == 0:
                break
            if problem.compact and len(remaining) < len(rows.t):
                finished.append(rows.take((rows.status != Status.RUNNING).nonzero().flatten()))
                rows, everyone = rows.take(remaining), False
        subset = None if everyone else rows.sample
        if index > 0 and not tableau.fsal:
            rows = _refresh(rows, (yield Request(subset, rows.t, rows.y)))
        running = rows.status == Status.RUNNING
        t_next = torch.where(running, control.end(index, rows.t, rows.dt, rows.t0, rows.t1), rows.t)
        step = yield from runge_kutta_step(tableau, rows.t, t_next, rows.y, rows.k1, subset)
        rows = _advance(rows, step, t_next, control.judge(step, rows.memory, problem), problem, control.max_steps)
    return _collect([*finished, rows])


def _start(problem: Problem, k1: Tensor, dt: Tensor, *, nfe: int) -> _Rows:
    zero = torch.zeros_like(problem.t0)
    none = torch.zeros_like(problem.t0, dtype=torch.int64)
    finite = k1.isfinite().all(1) & problem.y0.isfinite().all(1)
    return _Rows(
        sample=torch.arange(len(problem), device=zero.device),
        t0=problem.t0,
        t1=problem.t1,
        k1=k1,
        y=problem.y0,
        t=problem.t0,
        nfe=none + nfe,
        n_steps=none,
        n_accepted=none,
        error=zero,
        status=torch.where(finite, int(Status.RUNNING), int(Status.NON_FINITE)),
        dt=dt,
        memory=torch.ones_like(zero),
        accumulated=zero,
    )


def _refresh(rows: _Rows, k1: Tensor) -> _Rows:
    return rows._replace(k1=k1, nfe=rows.nfe + (rows.status == Status.RUNNING))


def _advance(
    rows: _Rows, step: Step, t_next: Tensor, verdict: Verdict, problem: Problem, max_steps: int | None
) -> _Rows:
    """The samples after an attempted step: moved if it was accepted, frozen if they were."""
    running = rows.status == Status.RUNNING
    accept = running & verdict.accept
    moved = accept[:, None]
    n_steps = rows.n_steps + running
    status = torch.where(accept & (t_next == rows.t1), int(Status.SUCCESS), verdict.status)
    if max_steps is not None:
        status = torch.where((status == Status.RUNNING) & (n_steps >= max_steps), int(Status.MAX_STEPS), status)
    if problem.trail is not None:
        problem.trail.record(problem.samples(rows.sample), step, t_next, accept)
    accumulated = rows.accumulated
    if problem.accumulate is not None:
        accumulated = accumulated + torch.where(accept, _share(problem.accumulate(step), step), 0)
    return rows._replace(
        k1=torch.where(moved, step.stages[-1], rows.k1) if step.tableau.fsal else rows.k1,
        y=torch.where(moved, step.y_next, rows.y),
        t=torch.where(accept, t_next, rows.t),
        nfe=rows.nfe + running * (step.tableau.stages - 1),
        n_steps=n_steps,
        n_accepted=rows.n_accepted + accept,
        error=rows.error + torch.where(accept, verdict.error, 0),
        status=torch.where(running, status, rows.status),
        dt=torch.where(running, verdict.dt, rows.dt),
        memory=verdict.memory,
        accumulated=accumulated,
    )


def _share(value: object, step: Step) -> Tensor:
    """What `accumulate` returned, checked."""
    if isinstance(value, Tensor) and value.shape == step.t.shape:
        return value
    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(f"accumulate: expected a tensor of shape {tuple(step.t.shape)}, one value a sample, got {got}")


def _collect(parts: list[_Rows]) -> Result:
    """The rows of all parts in the problem's order."""
    rows = parts[0]
    if len(parts) > 1:
        rows = _Rows(*(torch.cat(field) for field in zip(*parts, strict=True)))
        rows = rows.take(rows.sample.argsort())
    return Result(**{name: getattr(rows, name) for name in Result._fields if name in _Rows._fields})
