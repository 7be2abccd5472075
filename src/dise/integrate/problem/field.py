"""The user's vector field, as the solver calls it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dise.integrate.problem.requests import ExactRequest, Request
from dise.integrate.problem.row_check import check_rows, checked, precision, remember
from dise.integrate.problem.state import Layout, State, leaves, same_structure, shapes
from dise.integrate.tracing import stops_recomputation, times_changed, transformed


class BoundField(NamedTuple):
    """f with its arguments, on the solver's layout and for certain samples."""

    f: Callable[..., State]
    layout: Layout
    args: tuple[Any, ...]
    sample_args: tuple[Tensor, ...]  # the samples' rows

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """f at times [n] and states [n, F]: [n, F]."""
        return call(self, t, y)


def call(f: BoundField, t: Tensor, y: Tensor) -> Tensor:
    """f at times [n], in any real dtype, and states [n, F], checked: [n, F].

    A function, not a method: torch 2.6 cannot compile the method.
    """
    layout = f.layout
    state = layout.unpack(y.contiguous())
    time = layout.time(t)
    if torch.compiler.is_compiling() or t.is_inference():
        time = time.clone()  # torch does not count changes there, so give f a copy that it may change
    value = f.f(time, state, *f.args, *f.sample_args)
    if (
        layout.single
        and isinstance(value, Tensor)
        and value.dtype is y.dtype is layout.dtype
        and value.shape == cast("Tensor", state).shape
        and value.device == y.device
    ):  # it needs no closer look
        return value if layout.plain else value.reshape(y.shape)
    _check(value, state, layout, y.device)
    return layout.pack(value)


def _check(value: object, state: State, layout: Layout, device: torch.device) -> None:
    """Raise an error unless f's value is a derivative of the state."""
    if not same_structure(value, state):
        raise ValueError(f"f: expected dy/dt of shape {shapes(state)} like y, got {shapes(value)}.")
    for part in leaves(cast("State", value)):
        if part.is_complex() and not layout.dtype.is_complex:
            raise TypeError(f"f: expected a real dy/dt like y, of {layout.dtype}, got a complex one")
        if part.device != device:
            raise TypeError(f"f: expected dy/dt on {device} like y, got it on {part.device}")


def note_call(error: Exception, name: str, t: Tensor, y: Tensor, layout: Layout, samples: str) -> None:
    """Add a note to an error that a function of (t, y) raised: how it was called. Once, where several places do.

    Args:
        error: raised by the function.
        name: of the function.
        t, y: [n] times and [n, F] states in the solver's layout.
        layout: of the state.
        samples: which samples these are.
    """
    if not layout.batched:
        t, y = t[:1], y[:1]
    time, state = layout.time(t), layout.unpack(y)
    arguments = f"{name} was called with t of shape {tuple(time.shape)} and y of shape {shapes(state)}, {layout.dtype}"
    if layout.batched:
        note = (
            f"{arguments}: a row for each of {samples}. So y[:, 1] is a feature and y[1] a sample, and torch.where "
            "takes the place of `if`. With batched=False the state is one system: its shape has no rows, and t is one "
            "number."
        )
    else:
        note = f"{arguments}: with batched=False the state is one system, and t is one number."
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


PARTIAL = (
    "Tensors with a row per sample belong in sample_args=, not in a closure; or pass drop_finished=False, so that f "
    "is always called on all samples."
)


class Field:
    """The user's f on the solver's layout: answers requests, checks what comes back, counts calls.

    Args:
        f: vector field (see `dise.solve`).
        layout: of the state.
        stand_ins: times [B] and states [B, F] at which samples without a request are evaluated, where f gets the whole
            batch; None: f gets the requested samples only.
        args, sample_args: further arguments of f.
        samples: number of samples B, for error messages.
        whole: give f the whole batch always. Otherwise it is given once, to check that this makes no difference.
    """

    def __init__(
        self,
        f: Callable[..., State],
        layout: Layout,
        stand_ins: tuple[Tensor, Tensor] | None = None,
        args: Sequence[Any] = (),
        sample_args: Sequence[Tensor] = (),
        samples: int | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self.f, self.layout, self.stand_ins, self.samples, self.whole = f, layout, stand_ins, samples, whole
        self.args, self.sample_args = tuple(args), tuple(sample_args)
        self.calls = 0
        self._last: tuple[Tensor | None, int] = None, 0  # the value returned last, and how often it had been changed
        self._rows_checked = stand_ins is None or whole
        self._all_rows = BoundField(f, layout, self.args, self.sample_args)

    def __call__(self, request: Request) -> Tensor:
        """The requested values of f."""
        if isinstance(request, ExactRequest) and torch.is_autocast_enabled(device := request.y.device.type):
            with torch.autocast(device, enabled=False):
                return self(request)
        if request.rows is None:
            return self._checked(request)
        if self.whole:
            return self._checked(self._completed(request))[request.rows]
        value = self._checked(request)
        if not self._rows_checked:
            self.check_rows(request, value)
        return value

    def check_rows(self, request: Request, value: Tensor | None = None) -> None:
        """Compare f's values for a part of the batch with those for all of it: one call of f, once per f.

        Args:
            request: of the part.
            value: f's values for it; None: evaluate them too.

        Raises:
            ValueError: f mixes the samples of a batch.
        """
        number, rows = len(request.y), request.rows
        if self._rows_checked or rows is None or number == self.samples or transformed():
            return
        self._rows_checked = True
        if checked(self.f, self.args):
            return

        def part() -> Tensor:
            return call(self.bound(request.rows), request.t, request.y.clone())

        def whole() -> Tensor:
            every = self._completed(request)
            return call(self.bound(every.rows), every.t, every.y)[rows]

        eps = precision(self.f, self.args, self.layout.dtype, request.y.device)
        check_rows(part() if value is None else value, part, whole, f"{number} of {self.samples} samples", eps)
        remember(self.f, self.args)

    def _completed(self, request: Request) -> Request:
        """The request of all samples, in order, with stand-ins for those that it lacks."""
        if self.stand_ins is None or request.rows is None:
            return request
        rows, (t, y) = (request.rows,), self.stand_ins
        return request._replace(rows=None, t=t.index_put(rows, request.t.to(t.dtype)), y=y.index_put(rows, request.y))

    def bound(self, rows: Tensor | None) -> BoundField:
        """f for some of the samples (None: all, in order)."""
        if rows is None or not self.sample_args:
            return self._all_rows
        return self._all_rows._replace(sample_args=tuple(arg[rows] for arg in self.sample_args))

    def evaluate(self, f: BoundField, t: Tensor, y: Tensor) -> Tensor:
        """f at times [n] and states [n, F]: [n, F]."""
        return call(f, t, y)

    def explain(self, error: Exception, request: Request) -> None:
        """Add notes to an error that f raised: how f was called, and a likely cause."""
        if stops_recomputation(error):
            return
        n, partly = len(request.y), request.rows is not None
        samples = f"{n} of {self.samples or 'the'} samples" if partly else f"{n} samples"
        note_call(error, "f", request.t, request.y, self.layout, samples)
        if partly and PARTIAL not in error.__notes__:
            error.add_note(PARTIAL)

    def _checked(self, request: Request) -> Tensor:
        self.calls += 1
        rows, t, y = request
        try:
            if t.dtype is not self.layout.time_dtype or not t.is_contiguous():
                t = t.to(self.layout.time_dtype).contiguous()
            t_before, y_before, marked = times_changed(t), times_changed(y), y.requires_grad
            value = self.evaluate(self._all_rows if rows is None else self.bound(rows), t, y)
            # with its graph the value would lead back to this object where a backward pass calls f again
            constant = value.detach() if value.requires_grad else value
            last, seen = self._last
            # f may overwrite neither its arguments nor the value that it returned before: the solver still reads them
            if times_changed(t) != t_before or times_changed(y) != y_before:
                name = "y" if times_changed(t) == t_before else "t"
                raise RuntimeError(f"f: changed {name} in place; work on a copy")
            if last is not None and times_changed(last) != seen:
                raise RuntimeError(
                    "f: returned memory that it returned before, overwritten; return a new tensor each time"
                )
            if self.layout.working_dtype is self.layout.dtype:  # otherwise the solver has a copy
                self._last = constant, times_changed(constant)
            if y.requires_grad is not marked:
                y.requires_grad_(marked)  # f takes derivatives in y for itself
            return value if torch.is_grad_enabled() else constant
        except Exception as error:
            self.explain(error, request)
            raise
