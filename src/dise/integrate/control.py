"""Step-size control: where a step ends, whether it is accepted, and how long the next one is."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dise.integrate.problem import Problem, Request
from dise.integrate.solution import Status
from dise.integrate.step import Step

# Safety factor and limits of a step's growth, as torchdiffeq, torchode and SciPy's RK45 have them
# (Hairer, Nørsett, Wanner, II.4, recommend 0.9 and limits of this size).
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0


class Verdict(NamedTuple):
    """A controller's judgement of an attempted step of n samples."""

    accept: Tensor  # [n] bool
    error: Tensor  # [n] scaled error estimate; NaN if the method embeds none
    dt: Tensor  # [n] length of the next attempt
    status: Tensor  # [n] Status.RUNNING, or why the sample cannot go on


FirstStep = Generator[Request, Tensor, tuple[Tensor, int]]


class Controller(Protocol):
    """What the loop asks of step-size control."""

    @property
    def rounds(self) -> int | None:
        """Number of steps, if it is known before."""
        ...

    @property
    def max_steps(self) -> int | None:
        """Attempted steps after which a sample gives up."""
        ...

    def first_step(self, problem: Problem, k1: Tensor, order: int) -> FirstStep:
        """[n] signed first step, and the number of evaluations of f that choosing it took."""
        ...

    def end(self, index: int, t: Tensor, dt: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """[n] time at which the step number `index` ends; t1 itself when it is the last."""
        ...

    def judge(self, step: Step, problem: Problem) -> Verdict:
        """Accept or reject."""
        ...


@dataclass(frozen=True)
class FixedSteps:
    """`rounds` steps of equal length, all accepted while finite."""

    rounds: int
    max_steps: None = None

    def first_step(self, problem: Problem, k1: Tensor, order: int) -> FirstStep:
        """The span's `rounds`-th part."""
        _check_finite(problem)
        return (problem.t1 - problem.t0) / self.rounds, 0
        yield  # a generator like the others, though it asks for nothing

    def end(self, index: int, t: Tensor, dt: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """From the index, not from t + dt, so that rounding does not add up."""
        if index + 1 == self.rounds:
            return t1
        return torch.lerp(t0, t1, (index + 1) / self.rounds)

    def judge(self, step: Step, problem: Problem) -> Verdict:
        """Everything finite is accepted."""
        finite = step.y_next.isfinite().all(1)
        status = torch.where(finite, int(Status.RUNNING), int(Status.NON_FINITE))
        return Verdict(finite, torch.full_like(step.t, torch.nan), step.dt, status)


@dataclass(frozen=True)
class ErrorControl:
    """The elementary (I) controller on the embedded error estimate, a step size per sample.

    A step is accepted if the RMS over features of err / (atol + rtol·max(|y|, |y_next|)) is at most 1.

    Source: Hairer, Nørsett, Wanner, II.4, Eq. 4.10–4.13; the exponent is 1/order, as in torchdiffeq.
    """

    rtol: float
    atol: float
    initial: str | float
    max_steps: int | None
    order: int
    rounds: None = None

    def first_step(self, problem: Problem, k1: Tensor, order: int) -> FirstStep:
        """The span, a given number, or Hairer, Nørsett and Wanner's heuristic (one evaluation of f)."""
        span = problem.t1 - problem.t0
        if self.initial == "span":
            _check_finite(problem)
            return span, 0
        if self.initial == "heuristic":
            step = yield from _starting_step(problem, k1, order, self.rtol, self.atol)
            return _resolved(step, problem), 1
        return _resolved(torch.copysign(span.abs().clamp(max=float(self.initial)), span), problem), 0

    def end(self, index: int, t: Tensor, dt: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """t + dt, or t1 if that is not beyond; a remainder of a few roundings is not left for another step."""
        slack = 1 - 100 * torch.finfo(t.dtype).eps
        return torch.where(dt.abs() >= (t1 - t).abs() * slack, t1, t + dt)

    def judge(self, step: Step, problem: Problem) -> Verdict:
        """Accept if the scaled error is at most 1; a non-finite attempt is retried with a shorter step."""
        scale = torch.maximum(step.y.abs(), step.y_next.abs()).mul_(self.rtol).add_(self.atol)
        # a component that is and stays 0 has no error, whatever the tolerance
        error = problem.layout.norm(step.error() / scale.clamp_(min=torch.finfo(scale.dtype).tiny))
        ratio = error if problem.through_control else error.detach()
        accept = ratio <= 1
        # the clamp keeps 0^(-1/order), and its gradient, out of the graph
        factor = SAFETY * ratio.clamp(min=1e-10) ** (-1 / self.order)
        lowest = torch.where(accept, torch.ones_like(ratio), SHRINK)
        factor = torch.where(ratio.isfinite(), factor, lowest).clamp(max=GROW).maximum(lowest)
        dt = (step.dt if problem.through_control else step.dt.detach()) * factor
        return Verdict(accept, error, dt, self._status(step, accept, ratio, dt))

    def _status(self, step: Step, accept: Tensor, ratio: Tensor, dt: Tensor) -> Tensor:
        underflow = ~accept & ((step.t + dt == step.t) | dt.isinf())
        reason = torch.where(ratio.isfinite(), int(Status.STEP_UNDERFLOW), int(Status.NON_FINITE))
        return torch.where(underflow, reason, int(Status.RUNNING))


def _check_finite(problem: Problem) -> None:
    # only an event may end an endless span, so that others do not read the device
    if problem.event is not None and not problem.t1.isfinite().all():
        raise ValueError(
            "t1: expected finite times, since the first step is a part of the span; for an infinite t1 use an adaptive "
            "integrator with another first_step than 'span'"
        )


def _resolved(step: Tensor, problem: Problem) -> Tensor:
    """The step, long enough to move t; a first step that rounding swallows would never end."""
    ends = torch.maximum(problem.t0.abs(), torch.where(problem.t1.isinf(), 0, problem.t1).abs())
    shortest = (4 * torch.finfo(step.dtype).eps * ends).minimum((problem.t1 - problem.t0).abs())
    return torch.copysign(step.abs().maximum(shortest), step)


def _starting_step(
    problem: Problem, k1: Tensor, order: int, rtol: float, atol: float
) -> Generator[Request, Tensor, Tensor]:
    """[n] first step such that an explicit Euler step, then the method's, has a small error.

    Source: Hairer, Nørsett, Wanner, II.4, "Starting step size", with torchdiffeq's reading: the exponent is
    1/order. The probe at t0 + h0 never leaves the span.
    """
    norm, y0 = problem.layout.norm, problem.y0
    span = problem.t1 - problem.t0
    longest = torch.where(span.isinf(), 1, span.abs())  # what a sample tries whose f is NaN; it will fail there
    with torch.set_grad_enabled(problem.through_control and torch.is_grad_enabled()):
        scale = atol + y0.abs() * rtol
        d0, d1 = norm(y0 / scale), norm(k1 / scale)
        tiny = (d0 < 1e-5) | (d1 < 1e-5)
        h0 = torch.where(tiny, 1e-6, 0.01 * d0 / torch.where(tiny, 1.0, d1))
        # of a sample that is NaN from the start f still sees a time within the span
        h0 = torch.where(h0.isfinite(), h0, longest).minimum(span.abs())
        probe = torch.copysign(h0, span)
        t_probe = torch.where(h0 == span.abs(), problem.t1, problem.t0 + probe)
        y1 = torch.addcmul(y0, probe[:, None], k1)
    f1 = yield Request(None, t_probe, y1)
    with torch.set_grad_enabled(problem.through_control and torch.is_grad_enabled()):
        d2 = norm((f1 - k1) / scale) / h0
        largest = torch.maximum(d1, d2)
        flat = largest <= 1e-15
        h1 = torch.where(flat, (h0 * 1e-3).clamp(min=1e-6), (0.01 / torch.where(flat, 1.0, largest)) ** (1 / order))
        step = torch.minimum(100 * h0, h1)
        # a NaN would poison t; the loop finds it in the first step instead
        step = torch.where(step.isfinite(), step, longest).minimum(span.abs())
        return torch.copysign(step, span)
