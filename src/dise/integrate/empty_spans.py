"""Samples whose span is empty, t0 = t1: they are never passed to an integrator."""

import torch
from torch import Tensor

from dise.integrate.clock import real_dtype
from dise.integrate.integrator import Integrator
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration, Request, Result, of_rows
from dise.integrate.problem.run import Run
from dise.integrate.runge_kutta.classical import EULER
from dise.integrate.status import Status
from dise.integrate.stepping.loop import empty_step


def integrate_nonempty(
    integrator: Integrator, problem: Problem, run: Run, *, gradients_in_time: bool = False
) -> Integration:
    """Integrate the samples whose spans are not empty; the others are at their end already.

    A sample with t0 = t1 needs no evaluation of f, or one if `gradients_in_time`.
    """
    if problem.nonempty_spans and problem.y0.shape[0] != 0:
        return (yield from integrator.integrate(problem, run))
    nonempty = problem.t0 != problem.t1
    rows = nonempty.nonzero().flatten()
    if len(rows) == len(problem) > 0:
        return (yield from integrator.integrate(problem, run))
    unmoved = _unmoved(problem, chooses=integrator.chooses)
    if gradients_in_time:
        unmoved = yield from _with_time_gradients(problem, unmoved, (~nonempty).nonzero().flatten())
    if len(rows) == 0:
        return unmoved._replace(accumulated=_nothing(integrator, problem, run))
    result = yield from of_rows(rows, integrator.integrate(problem.take(rows, problem.k1), run))
    if run.accumulate is not None and result.accumulated is not None and result.accumulated.ndim > 1:
        unmoved = unmoved._replace(accumulated=_nothing(integrator, problem, run))
    pairs = {name: (getattr(unmoved, name), new) for name, new in result._asdict().items() if new is not None}
    return unmoved._replace(**{name: old.index_put((rows,), new) for name, (old, new) in pairs.items()})


def _unmoved(problem: Problem, *, chooses: bool) -> Result:
    """The result of samples whose spans are empty: their start."""
    none = torch.zeros_like(problem.t0, dtype=torch.int64)
    zero = torch.zeros_like(problem.t0, dtype=real_dtype(problem.y0))
    unknown = torch.full_like(problem.y0, torch.nan)
    status, choice = none + int(Status.SUCCESS), none - 1 if chooses else None
    dt = torch.zeros_like(problem.t0)
    return Result(problem.y0, problem.t1, none, none, none, zero, status, dt, zero, unknown, choice)


def _nothing(integrator: Integrator, problem: Problem, run: Run) -> Tensor:
    """The running statistics of samples without a step, zeros where there are none."""
    if run.accumulate is None:
        return torch.zeros_like(problem.t0, dtype=real_dtype(problem.y0))
    step = empty_step(problem, torch.zeros_like(problem.y0), getattr(integrator, "tableau", EULER))
    return run.accumulate.start(step, run.field_of_statistics(problem, None))


def _with_time_gradients(problem: Problem, unmoved: Result, rows: Tensor) -> Integration:
    """The result whose `rows` have the gradients in t0 and t1 of y = y0 + (t1 − t0)·f(t0, y0); the second term is 0."""
    if len(rows) == 0:
        return unmoved
    t0, y0 = problem.t0[rows], problem.y0[rows]
    # with batched=False f's arguments have no rows
    k1 = yield Request(rows if len(rows) < len(problem) else None, t0, y0)
    span = (problem.t1[rows] - t0)[:, None].to(real_dtype(y0))
    y = torch.addcmul(y0, span, torch.where(k1.isfinite(), k1, 0))
    nfe = torch.zeros_like(unmoved.outcome).index_fill(0, rows, 1)
    return unmoved._replace(
        y=unmoved.y.index_put((rows,), y),
        nfe=nfe,
        k1=unmoved.slope.index_put((rows,), k1),
    )
