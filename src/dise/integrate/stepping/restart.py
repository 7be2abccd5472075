"""Restarts: samples that continue from another state, such as after an event that changed it."""

from collections.abc import Generator

import torch
from torch import Tensor

from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request
from dise.integrate.runge_kutta.step import within
from dise.integrate.status import Status
from dise.integrate.stepping.method import Method
from dise.integrate.stepping.rows import RUNNING, LoopRows


def restart(
    rows: LoopRows, which: Tensor, t: Tensor, y: Tensor, dt: Tensor, method: Method, problem: Problem
) -> Generator[Request, Tensor, LoopRows]:
    """The rows, with some of them at another time and state, from which they continue.

    Args:
        rows: n of them.
        which: [R] the restarted ones.
        t, y: [R] times and [R, F] states; a sample that is at t1 has ended.
        dt: [R] signed first steps.
        method: a method whose last stage is the next step's first needs one evaluation of f for a restart.
        problem: of the rows.
    """
    index, ended = (which,), t == rows.t1[which]
    status = torch.where(ended, int(Status.SUCCESS), RUNNING)
    rows = rows._replace(
        t=rows.t.index_put(index, t),
        y=rows.y.index_put(index, y),
        dt=rows.dt.index_put(index, dt),
        memory=None if rows.memory is None else rows.memory.index_put(index, torch.ones_like(rows.memory[which])),
        status=rows.status.index_put(index, status),
    ).forget(which)
    if method.tableau.fsal and rows.restarts is not None:
        time = t if rows.bounds is None else within(t.to(rows.bounds.dtype), rows.bounds[which])
        k1 = yield Request(rows.sample[which] if problem.layout.batched else None, time, y)
        restarts = rows.restarts.index_put(index, rows.restarts[which] + 1)
        return rows._replace(k1=rows.k1.index_put(index, k1), restarts=restarts)
    if rows.known is None:
        return rows
    return rows._replace(known=rows.known.index_put(index, torch.zeros_like(ended)))
