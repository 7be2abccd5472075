"""Events: a sample stops where a function of time and state crosses zero; the time of the crossing is differentiable.

The loop compares the function's signs at both ends of each accepted step. When the solve is over, all crossings are
located at once on the dense output, by bisection: a fixed number of evaluations of the function, none of f.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dise.integrate.output.interpolation import DenseSolution, PiecewisePolynomial
from dise.integrate.problem.requests import Result
from dise.integrate.problem.state import Layout, State
from dise.integrate.runge_kutta.step import Step

Function = Callable[..., Tensor]

_SCAN = 8  # parts of the last step, searched in order to find the first of several crossings


@dataclass(frozen=True)
class Event:
    """A condition that stops a sample: the first zero crossing of `function` in the direction of the integration.

    Args:
        function: called as function(t, y, *args, *sample_args) with f's arguments, for the n samples that took a step;
            returns [n] real numbers ([] with batched=False). A step that starts at exactly 0 has no crossing.
        direction: "falling" counts crossings from positive to negative only, "rising" the opposite ones, "any" both.

    Raises:
        TypeError: function cannot be called.
        ValueError: another direction.
    """

    function: Function
    direction: Literal["any", "rising", "falling"] = "any"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"event: expected a function of (t, y), got {type(self.function).__name__}")
        if self.direction not in ("any", "rising", "falling"):
            raise ValueError(f"direction: expected 'any', 'rising' or 'falling', got {self.direction!r}")

    def crossed(self, before: Tensor, after: Tensor) -> Tensor:
        """[n] bool, whether two values [n] enclose a crossing; reaching 0 is a crossing, leaving 0 is not."""
        falling, rising = (before > 0) & (after <= 0), (before < 0) & (after >= 0)
        return {"any": falling | rising, "falling": falling, "rising": rising}[self.direction]


class EventMonitor:
    """An event during one solve: evaluates it after each step and remembers the samples that it stopped.

    Args:
        event: the condition.
        layout: of the state.
        args, sample_args: further arguments of f and of the event's function.
        t0: [B] start of each sample.
    """

    def __init__(
        self, event: Event, layout: Layout, args: tuple[Any, ...], sample_args: tuple[Tensor, ...], t0: Tensor
    ) -> None:
        self._event, self._layout, self._args, self._sample_args = event, layout, args, sample_args
        self.stopped = torch.zeros_like(t0, dtype=torch.bool)  # [B]

    def value(self, sample: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """[n] the function's values for the samples [n] at times [n] and states [n, F].

        Raises:
            TypeError, ValueError: it returned something else.
        """
        rows = tuple(arg[sample] for arg in self._sample_args) if self._layout.batched else self._sample_args
        state: State = self._layout.unpack(y)
        value = self._event.function(self._layout.time(t), state, *self._args, *rows)
        shape = tuple(t.shape) if self._layout.batched else ()
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"event: expected a tensor of real numbers, got {got}")
        if value.shape != shape:
            raise ValueError(f"event: expected shape {shape}, one number per sample, got {tuple(value.shape)}")
        return value.reshape(t.shape)

    @torch.no_grad()
    def stops(self, sample: Tensor, step: Step, t_next: Tensor, accept: Tensor) -> Tensor:
        """[n] bool, which of the samples [n] the event stops in this step."""
        crossed = self._event.crossed(self.value(sample, step.t, step.y), self.value(sample, t_next, step.y_next))
        stop = accept & crossed
        self.stopped = self.stopped.index_put((sample,), self.stopped[sample] | stop)
        return stop

    def locate(self, path: DenseSolution, result: Result) -> Result:
        """The result, with t and y of the stopped samples moved from the end of their last step to the crossing."""
        samples = self.stopped.nonzero().flatten()
        if len(samples) == 0 or path.pieces is None:
            return result
        last = path.pieces.last(samples)
        theta = self._refine(samples, last, self._bisect(samples, last.detach()))
        t, y = last.time(theta), last.within(theta)
        unknown = torch.full_like(y, torch.nan)
        return result._replace(
            t=result.t.index_put((samples,), t),
            y=result.y.index_put((samples,), y),
            k1=result.slope.index_put((samples,), unknown),
        )

    @torch.no_grad()
    def _bisect(self, samples: Tensor, last: PiecewisePolynomial) -> Tensor:
        """[K] θ of the first crossing, or up to one rounding before it, in the last steps of the samples [K]."""

        def value(theta: Tensor) -> Tensor:
            return self.value(samples, last.time(theta), last.within(theta))

        low, high = torch.zeros_like(last.t), torch.ones_like(last.t)
        start = before = value(low)
        found = torch.zeros_like(samples, dtype=torch.bool)
        for part in range(_SCAN):
            after = value(torch.full_like(low, (part + 1) / _SCAN))
            here = ~found & self._event.crossed(before, after)
            low = torch.where(here, part / _SCAN, low)
            high = torch.where(here, (part + 1) / _SCAN, high)
            start, found, before = torch.where(here, before, start), found | here, after
        for _ in range(round(-torch.tensor(torch.finfo(low.dtype).eps).log2().item())):
            middle = (low + high) / 2
            past = self._event.crossed(start, value(middle))
            low, high = torch.where(past, low, middle), torch.where(past, middle, high)
        # return the point just before the crossing, so a solve restarted there is still on the original side
        return torch.where(value(high) == 0, high, low)

    def _refine(self, samples: Tensor, last: PiecewisePolynomial, theta: Tensor) -> Tensor:
        """θ [K] with its gradient; the value does not change.

        By the implicit function theorem, g(θ(p), p) = 0 gives θ' = −g_p / g_θ: a Newton step from the constant θ has
        this derivative. A second Newton step makes second derivatives right too.
        """
        value = self.value(samples, last.time(theta), last.within(theta))
        if not (torch.is_grad_enabled() and value.requires_grad):
            return theta
        theta = theta.clone().requires_grad_()
        for _ in range(2):
            value = self.value(samples, last.time(theta), last.within(theta))
            (slope,) = torch.autograd.grad(value.sum(), theta, create_graph=True, materialize_grads=True)
            # where the slope is 0 the time has no gradient; avoid 0/0, which would make the time itself NaN
            slope = torch.where(slope == 0, torch.finfo(slope.dtype).tiny, slope)
            theta = theta - (value - value.detach()) / slope
        return theta


def as_event(event: Event | Function | None) -> Event | None:
    """`solve`'s argument as an `Event`; None stays None."""
    return event if isinstance(event, Event) or event is None else Event(event)
