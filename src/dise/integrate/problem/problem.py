"""Initial value problems in the solver's own layout: what is to be solved. How it is solved is a `Run`."""

from collections.abc import Generator
from dataclasses import dataclass, replace

from torch import Tensor

from dise.integrate.annotations import Float, Inexact, Int
from dise.integrate.clock import shared_times
from dise.integrate.problem.breaks import Breaks
from dise.integrate.problem.requests import Request
from dise.integrate.problem.state import Layout
from dise.integrate.runge_kutta.step import within
from dise.integrate.tracing import check_readable, has_values


@dataclass(frozen=True, kw_only=True)
class Problem:
    """n initial value problems y' = f(t, y), y(t0) = y0, to be solved up to t1."""

    y0: Inexact[Tensor, "n F"]
    t0: Float[Tensor, " n"]
    t1: Float[Tensor, " n"]
    layout: Layout
    k1: Inexact[Tensor, "n F"] | None = None  # f(t0, y0), if it is known
    dt: Float[Tensor, " n"] | None = None  # first step, if it is known; for methods that choose their steps
    breaks: Breaks | None = None  # times at which steps end and f may jump
    nonempty_spans: bool | None = None  # whether t0 ≠ t1 for every sample; None if telling needs a device sync
    span: tuple[float, float] | None = None  # t0 and t1, if they are numbers, the same for all samples
    sample: Int[Tensor, " n"] | None = None  # indices in the solve's batch; None: all of it, in order
    # whether t0 and t1 are `shared_times`, of `span`; so the states are in host memory, and nothing tracks operations
    shares_times: bool = False

    def __len__(self) -> int:
        return len(self.y0)

    def check_choice(self, *values: Tensor) -> None:
        """Raise a ValueError if the values that decide on a sample's integrator cannot be read."""
        if not self.shares_times:
            check_readable("integrator: a choice for each sample", *values)

    def first_stage(self) -> Generator[Request, Tensor, Tensor]:
        """f(t0, y0) [n, F], requested unless it is known."""
        if self.k1 is not None:
            return self.k1
        t0 = self.t0.to(self.layout.time_dtype, copy=True) if self.shares_times else self.t0
        if self.breaks is not None:  # after a jump at t0
            t0 = within(t0.to(self.breaks.bounds.dtype), self.breaks.bounds[:, 0])
        return (yield Request(None, t0, self.y0))

    def with_first_stage(self, k1: Tensor) -> "Problem":
        """The problem with k1 = f(t0, y0) [n, F] known."""
        return Problem(
            y0=self.y0,
            t0=self.t0,
            t1=self.t1,
            layout=self.layout,
            k1=k1,
            dt=self.dt,
            breaks=self.breaks,
            nonempty_spans=self.nonempty_spans,
            sample=self.sample,
            span=self.span,
            shares_times=self.shares_times,
        )

    def take(self, rows: Tensor, k1: Tensor | None = None) -> "Problem":
        """The problem of some of the samples; `k1` is f(t0, y0) of all of this problem's samples, if known."""
        if self.span is None or not self.shares_times:
            t0, t1 = self.t0.index_select(0, rows), self.t1.index_select(0, rows)
        else:
            start, end = self.span
            t0 = shared_times(start, rows.shape[0], rows.device)
            t1 = shared_times(end, rows.shape[0], rows.device)
        # `dataclasses.replace` takes as long as several operations on few rows
        return Problem(
            y0=self.y0.index_select(0, rows),
            t0=t0,
            t1=t1,
            layout=self.layout,
            k1=None if k1 is None else k1.index_select(0, rows),
            dt=None if self.dt is None else self.dt.index_select(0, rows),
            breaks=None if self.breaks is None else self.breaks.take(rows),
            nonempty_spans=self.nonempty_spans,
            sample=self.samples(rows),
            span=self.span,
            shares_times=self.shares_times,
        )

    def detach(self) -> "Problem":
        """The problem without gradients."""
        breaks = None if self.breaks is None else self.breaks.detach()
        return replace(self, y0=self.y0.detach(), t0=self.t0.detach(), t1=self.t1.detach(), breaks=breaks)

    def check_span(self, span: tuple[float, float] | None) -> None:
        """Raise a ValueError unless all samples are to be solved over this span; None: any will do."""
        if span is None or not has_values(self.t0):
            return
        known = (None, None) if self.span is None else self.span
        for name, times, time, expected in zip(("t0", "t1"), (self.t0, self.t1), known, span, strict=True):
            allowed = 1e-9 + 1e-6 * abs(expected)
            if time is not None and abs(time - expected) <= allowed:
                continue
            same = (times - expected).abs() <= allowed
            if not same.all():
                different = ~same
                raise ValueError(
                    f"{name}: this grid or table is for solves from {span[0]:g} to {span[1]:g} only, "
                    f"got {name}={float(times[different][0]):g}"
                )

    def samples(self, rows: Tensor) -> Tensor:
        """Indices of some of this problem's rows in the solve's batch."""
        return rows if self.sample is None else self.sample[rows]

    def requested(self, rows: Tensor | None) -> Tensor | None:
        """The rows of a request as indices in the solve's batch; None: the whole batch, in order."""
        return self.sample if rows is None else self.samples(rows)
