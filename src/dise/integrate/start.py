"""The start of a solve: the checked arguments that every solve has."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dise.integrate.arguments import Span, as_sequence, check_sample_args, check_state
from dise.integrate.clock import shared_times
from dise.integrate.integrator import Integrator, check_integrator
from dise.integrate.problem.breaks import Breaks
from dise.integrate.problem.field import Field
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.state import Layout, State
from dise.integrate.tracing import has_values, untracked

MAX_SHARED = 2**12  # samples; with more, an operation takes longer than its call, and shared tensors hold memory


class Start(NamedTuple):
    """An initial value problem, and the further arguments of its vector field."""

    problem: Problem
    span: Span
    args: tuple[Any, ...]
    sample_args: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        y0: State,
        t0: float | Tensor,
        t1: float | Tensor,
        integrator: Integrator,
        *,
        args: Sequence[Any],
        sample_args: Sequence[Tensor],
        batched: bool,
        endless: bool = False,
        end_only: bool = False,
    ) -> "Start":
        """The start of a solve with these arguments of `dise.solve`.

        Args:
            y0, t0, t1, integrator, args, sample_args, batched: see `dise.solve`.
            endless: t1 may be infinite.
            end_only: the times are not given to the user, so solves may share their tensors.

        Raises:
            TypeError, ValueError: an argument (named in the message) is not as described.
        """
        check_state("y0", y0, batched=batched)
        check_integrator(integrator)
        layout = Layout.of(y0, batched=batched)
        packed = layout.pack(y0)
        further, own = as_sequence("args", args), check_sample_args(sample_args, packed, batched=batched)
        common = _common_span(t0, t1, packed) if end_only else None
        if common is None:
            span = Span.of(t0, t1, packed, batched=batched, endless=endless)
        else:
            span = _shared_span(*common, packed.shape[0], packed.device)
        problem = Problem(
            y0=packed,
            t0=span.t0,
            t1=span.t1,
            layout=layout,
            nonempty_spans=_nonempty_spans(t0, t1),
            span=None if isinstance(t0, Tensor) or isinstance(t1, Tensor) else (float(t0), float(t1)),
            shares_times=common is not None,
        )
        return cls(problem, span, further, own)

    def with_breaks(self, breaks: Breaks) -> "Start":
        """The start of a solve whose steps end at these times too."""
        return self._replace(problem=replace(self.problem, breaks=breaks))

    def field(self, f: Callable[..., State], problem: Problem, *, whole: bool) -> Field:
        """The vector field of a solve of `problem`, this one or itself without gradients; see `Field`."""
        stand_ins, number = (problem.t0, problem.y0), problem.y0.shape[0]  # len would fix the size of a traced batch
        return Field(f, problem.layout, stand_ins, self.args, self.sample_args, number, whole=whole)


def _common_span(t0: float | Tensor, t1: float | Tensor, y0: Tensor) -> tuple[float, float] | None:
    """The span of all samples, if solves may share its tensors: it is of numbers, and nothing tracks operations."""
    if not (isinstance(t0, float) and isinstance(t1, float) and math.isfinite(t0) and math.isfinite(t1)):
        return None
    if _is_negative_zero(t0) or _is_negative_zero(t1):  # equal to 0.0, so it would get that one's tensor
        return None
    return (t0, t1) if y0.is_cpu and untracked(y0) and y0.shape[0] <= MAX_SHARED else None


@lru_cache(maxsize=256)
def _shared_span(t0: float, t1: float, number: int, device: torch.device) -> Span:
    """The spans of a number of samples, for all solves; see `shared_times`."""
    start, end = shared_times(t0, number, device), shared_times(t1, number, device)
    return Span(start, end, (start.dtype, end.dtype))


def _is_negative_zero(t: float) -> bool:
    return t == 0 and math.copysign(1, t) < 0


def _nonempty_spans(t0: float | Tensor, t1: float | Tensor) -> bool | None:
    """Whether t0 ≠ t1 for every sample; None if telling needs a device sync."""
    if not isinstance(t0, Tensor) and not isinstance(t1, Tensor):
        return t0 != t1
    # Traced times have no values, so empty spans cannot be detected. Treat them as non-empty: a zero-length step leaves
    # y unchanged.
    return None if all(has_values(t) for t in (t0, t1) if isinstance(t, Tensor)) else True
