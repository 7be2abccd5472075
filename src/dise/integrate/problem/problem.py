"""Initial value problems in the solver's own layout."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from dise.integrate.problem.hooks import Observer, StepRecord
from dise.integrate.problem.requests import Request
from dise.integrate.problem.state import Layout

if TYPE_CHECKING:
    from dise.integrate.output.events import EventMonitor
    from dise.integrate.problem.field import Field


@dataclass(frozen=True, kw_only=True)
class Problem:
    """n initial value problems y' = f(t, y), y(t0) = y0, wanted at t1, and how they are to be solved."""

    y0: Tensor  # [n, F]
    t0: Tensor  # [n]
    t1: Tensor  # [n]
    layout: Layout
    k1: Tensor | None = None  # [n, F] f(t0, y0), where somebody evaluated it already
    drop_finished: bool = False
    differentiate_step_sizes: bool = False
    accumulate: Callable | None = None
    event: "EventMonitor | None" = None  # what stops a sample before t1, if anything
    dt: Tensor | None = None  # [n] first step, where it is known; for step-size control that chooses it
    observers: tuple[Observer, ...] = ()  # who is shown each attempted step
    field: "Field | None" = None  # f, for integrations that call it themselves instead of asking for it
    checkpoint: bool = False  # keep some states of the solve only, and take the steps between again for gradients
    moves: bool | None = None  # whether all spans have a length, where it is known without reading the device
    sample: Tensor | None = None  # [n] which of the solve's samples these are; None: all, in order

    def __len__(self) -> int:
        return len(self.y0)

    def first_stage(self) -> Generator[Request, Tensor, Tensor]:
        """f(t0, y0) [n, F], asked for unless known."""
        if self.k1 is not None:
            return self.k1
        return (yield Request(None, self.t0, self.y0))

    def take(self, rows: Tensor, k1: Tensor | None = None) -> "Problem":
        """The problem of some of the samples; `k1` is f(t0, y0) of all of this problem's samples, if known."""
        y0, t0, t1 = (x.index_select(0, rows) for x in (self.y0, self.t0, self.t1))
        k1, dt = (None if x is None else x.index_select(0, rows) for x in (k1, self.dt))
        return replace(self, y0=y0, t0=t0, t1=t1, k1=k1, dt=dt, sample=self.samples(rows))

    def samples(self, rows: Tensor) -> Tensor:
        """Which of the solve's samples some of this problem's are."""
        return rows if self.sample is None else self.sample[rows]

    def answer(self, request: Request) -> Tensor:
        """The request's evaluation of f, by calling it."""
        if self.field is None:
            raise RuntimeError("this problem has no field to call; its integration asks for evaluations")
        return self.field(request._replace(rows=self.asked(request.rows)))

    @property
    def compiled_field(self) -> "Field | None":
        """f, if whole rounds of this problem can be compiled with it inside."""
        field = self.field
        if field is None or field.options is None or (self.sample is not None and not self.drop_finished):
            return None
        return field

    def asked(self, rows: Tensor | None) -> Tensor | None:
        """The rows of a request as the solve's samples; None: all of them, in order."""
        return self.sample if rows is None else self.samples(rows)

    def show(self, seen: StepRecord) -> None:
        """Tell the observers of an attempted step of some of this problem's samples."""
        if self.observers:
            seen = seen._replace(sample=self.samples(seen.sample))
            for observer in self.observers:
                observer.see(seen)
