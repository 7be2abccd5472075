"""Pieces: the parts of a span between two break points, each integrated like a span of its own."""

from collections.abc import Generator

import torch
from torch import Tensor

from dise.integrate.problem.breaks import Breaks
from dise.integrate.problem.requests import Request
from dise.integrate.runge_kutta.step import within
from dise.integrate.status import Status
from dise.integrate.stepping.method import Method
from dise.integrate.stepping.rows import RUNNING, LoopRows
from dise.integrate.tracing import known_none


def first_pieces(rows: LoopRows, breaks: Breaks) -> LoopRows:
    """The rows before the first step, each at the start of its first piece."""
    return rows._replace(t1=breaks.ends[:, 0], piece=torch.zeros_like(rows.sample), bounds=breaks.bounds[:, 0])


def in_last_piece(rows: LoopRows, breaks: Breaks | None, which: Tensor) -> LoopRows:
    """The rows, of which those where `which` [n] is True have no further piece, wherever they are."""
    if rows.piece is None or breaks is None:
        return rows
    return rows._replace(piece=rows.piece.masked_fill(which, breaks.ends.shape[1] - 1))


def next_pieces(
    rows: LoopRows, breaks: Breaks, method: Method, subset: Tensor | None
) -> Generator[Request, Tensor, LoopRows]:
    """The rows, of which those that came to the end of a piece continue with the next one.

    Their step size stays. After a jump earlier values of f no longer count, and a method whose last stage is the next
    step's first needs one evaluation of f, which is requested.

    Args:
        rows: n of them, after a round.
        breaks: of the problem.
        method: of the rows.
        subset: [n] the rows' indices in the problem; None: the whole problem, in order.
    """
    piece, sample = rows.piece, rows.sample
    if piece is None:
        return rows
    last = breaks.ends.shape[1] - 1
    over = (piece == last) | (rows.t1 == breaks.ends[:, last][sample]) | (rows.t != rows.t1)
    arrived = (rows.status == int(Status.SUCCESS)) & ~over
    if known_none(arrived):
        return rows
    jumped = (arrived & breaks.jump[sample, piece]).nonzero().flatten()
    piece = piece + arrived.long()
    rows = rows._replace(
        t1=torch.where(arrived, breaks.ends[sample, piece], rows.t1),
        status=rows.status.masked_fill(arrived, RUNNING),
        piece=piece,
        bounds=breaks.bounds[sample, piece],
    )
    if not method.tableau.fsal or rows.restarts is None or len(jumped) == 0:
        return rows
    index = None if len(jumped) == len(sample) else jumped
    t, y, bounds = (x if index is None else x[index] for x in (rows.t, rows.y, breaks.bounds[sample, piece]))
    k1 = yield Request(_of(subset, index), within(t.to(bounds.dtype), bounds), y)
    k1 = k1 if index is None else rows.k1.index_put((index,), k1)
    restarts = rows.restarts.index_add(0, jumped, torch.ones_like(jumped))
    return rows.forget(jumped)._replace(k1=k1, restarts=restarts)


def _of(subset: Tensor | None, index: Tensor | None) -> Tensor | None:
    """The indices in the problem of some rows, or of all of them."""
    return index if subset is None else subset if index is None else subset[index]
