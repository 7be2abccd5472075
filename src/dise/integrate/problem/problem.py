"""Initial value problems in the solver's own layout, and how an integrator asks for evaluations of f.

Inside the solver a state is one [n, F] tensor and an integration is a coroutine: it yields a `Request` for each
evaluation of f that it needs and receives the values. Whoever runs it answers. That is what lets one loop serve a
single integrator, and a batch whose samples have different ones: `merge` runs several integrations in lockstep and
asks for all their evaluations in one call of f.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from dise.integrate.output.observers import Observer, StepRecord
from dise.integrate.solution import State

if TYPE_CHECKING:
    from dise.integrate.output.events import EventMonitor
    from dise.integrate.problem.field import Field


class Request(NamedTuple):
    """A wish for f(t, y) of some samples."""

    rows: Tensor | None  # [n] indices into the problem's samples; None: all of them, in order
    t: Tensor  # [n]
    y: Tensor  # [n, F]


class Result(NamedTuple):
    """The end of an integration, a row a sample; fields as in `Solution`."""

    y: Tensor  # [n, F]
    t: Tensor
    nfe: Tensor
    n_steps: Tensor
    n_accepted: Tensor
    error: Tensor
    status: Tensor
    dt: Tensor
    accumulated: Tensor
    k1: Tensor | None = None  # [n, F] f(t, y); NaN where the method did not evaluate it there, None if it nowhere did
    choice: Tensor | None = None

    @property
    def slope(self) -> Tensor:
        """[n, F] k1, or NaN that takes no memory."""
        return self.y.new_full((), torch.nan).expand_as(self.y) if self.k1 is None else self.k1


Integration = Generator[Request, Tensor, Result]
T = TypeVar("T")


def leaves(state: State) -> tuple[Tensor, ...]:
    """A state's tensors."""
    if isinstance(state, Tensor):
        return (state,)
    return tuple(state.values()) if isinstance(state, dict) else state


@dataclass(frozen=True)
class Layout:
    """How the user's state lies in the solver's [n, F] tensor.

    A batch of B samples is n = B rows. With batched=False the whole state is one system: n = 1.

    States of half precision are added up in float32, since dt·k is soon less than what y resolves; f gets and returns
    its own dtype.
    """

    shapes: tuple[torch.Size, ...]  # of the state's tensors, without the batch dimension if batched
    is_tuple: bool
    batched: bool
    names: tuple[str, ...] | None = None  # of a dict's tensors
    dtype: torch.dtype = torch.float32  # the user's
    # the rest follows; it is kept, since every evaluation of f asks for it
    sizes: tuple[int, ...] = field(init=False, compare=False)  # features of each tensor of the state
    working_dtype: torch.dtype = field(init=False, compare=False)  # what the solver calculates in
    plain: bool = field(init=False, compare=False)  # whether the user's state is the solver's

    def __post_init__(self) -> None:
        half = self.dtype in (torch.float16, torch.bfloat16)
        structured = self.is_tuple or self.names is not None or not self.batched
        object.__setattr__(self, "sizes", tuple(shape.numel() for shape in self.shapes))
        object.__setattr__(self, "working_dtype", torch.float32 if half else self.dtype)
        object.__setattr__(self, "plain", not structured and len(self.shapes[0]) == 1)

    @classmethod
    def of(cls, y: State, *, batched: bool) -> "Layout":
        """Layout of a state whose tensors are [B, ...]."""
        parts = leaves(y)
        shapes = tuple(leaf.shape[1:] if batched else leaf.shape for leaf in parts)
        return cls(shapes, isinstance(y, tuple), batched, tuple(y) if isinstance(y, dict) else None, parts[0].dtype)

    def pack(self, y: State) -> Tensor:
        """User's state → [n, F], in the solver's dtype."""
        if self.plain and isinstance(y, Tensor):
            return y if y.dtype is self.working_dtype else y.to(self.working_dtype)
        parts = tuple(y[name] for name in self.names) if isinstance(y, dict) and self.names else leaves(y)
        rows = [
            leaf.reshape(leaf.shape[0] if self.batched else 1, size)
            for leaf, size in zip(parts, self.sizes, strict=True)
        ]
        return (rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)).to(self.working_dtype)

    def unpack(self, y: Tensor) -> State:
        """[n, F] → user's state of n samples."""
        y = y if y.dtype is self.dtype else y.to(self.dtype)
        return y if self.plain else self._structured(y, y.shape[:1] if self.batched else ())

    def unpack_saved(self, y: Tensor) -> State:
        """[n, T, F] → user's state of n samples at T times: [n, T, ...]; [T, ...] if not batched."""
        return self._structured(y.to(self.dtype), tuple(y.shape[:2] if self.batched else y.shape[1:2]))

    def shaped(self, x: Tensor) -> State:
        """[n, F] of any dtype → the state's structure and shapes, [n, ...] always: [1, ...] if not batched."""
        return self._structured(x, x.shape[:1])

    def _structured(self, x: Tensor, batch: tuple[int, ...]) -> State:
        parts = x.split(self.sizes, dim=-1) if len(self.sizes) > 1 else (x,)
        shaped = tuple(part.reshape((*batch, *shape)) for part, shape in zip(parts, self.shapes, strict=True))
        if self.names is not None:
            return dict(zip(self.names, shaped, strict=True))
        return shaped if self.is_tuple else shaped[0]

    def time(self, t: Tensor) -> Tensor:
        """[n] → [n, 1, …, 1] with as many ones as the (first) state has feature dimensions; [] if not batched."""
        if self.plain:
            return t.unsqueeze(1)
        return t.reshape(-1, *(1 for _ in self.shapes[0])) if self.batched else t.reshape(())

    def norm(self, x: Tensor) -> Tensor:
        """[n, F] → [n] root mean square of moduli over features; of a tuple or dict the largest of its tensors'."""
        parts = x.split(self.sizes, dim=1) if len(self.sizes) > 1 else (x,)
        # vector_norm has gradient 0 at 0, where sqrt(mean(x²)) has NaN
        norms = [torch.linalg.vector_norm(part, dim=1) / max(part.shape[1], 1) ** 0.5 for part in parts]
        return norms[0] if len(norms) == 1 else torch.stack(norms).amax(0)


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


def alike(*results: Result) -> tuple[Result, ...]:
    """The results, all with k1 or all without."""
    if all(result.k1 is None for result in results):
        return results
    return tuple(result._replace(k1=result.slope.contiguous()) for result in results)


def merge(parts: Sequence[tuple[Tensor, Integration]]) -> Generator[Request, Tensor, list[Result]]:
    """Run integrations of disjoint samples in lockstep: their n-th evaluations of f are one call.

    Batch calls are thus the maximum over the parts, not the sum.

    Args:
        parts: pairs of the rows [n_i] that a part integrates and its integration.

    Returns:
        the parts' results, in their order.
    """
    results: list[Result | None] = [None] * len(parts)
    answers: dict[int, Tensor | None] = dict.fromkeys(range(len(parts)))
    while True:
        requests: dict[int, Request] = {}
        for i, answer in answers.items():
            rows, integration = parts[i]
            try:
                request = next(integration) if answer is None else integration.send(answer)
            except StopIteration as stop:
                results[i] = stop.value
            else:
                requests[i] = request._replace(rows=rows if request.rows is None else rows[request.rows])
        if not requests:
            return [result for result in results if result is not None]
        if len(requests) == 1:
            ((i, request),) = requests.items()
            answers = {i: (yield request)}
        else:
            values = yield Request(*(torch.cat(field) for field in zip(*requests.values(), strict=True)))
            answers = dict(zip(requests, values.split([len(r.y) for r in requests.values()]), strict=True))


def drive(coroutine: Generator[Request, Tensor, T], answer: Callable[[Request], Tensor]) -> T:
    """Run a coroutine to its end, answering each of its requests."""
    value = None
    while True:
        try:
            request = next(coroutine) if value is None else coroutine.send(value)
        except StopIteration as stop:
            return stop.value
        value = answer(request)
