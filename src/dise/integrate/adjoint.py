"""Gradients by the adjoint equation: what a solve keeps for it, and the solve's results attached to autograd.

`dise.integrate.backward_solve` solves the equation, so memory does not grow with the number of steps.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dise.integrate.backsolve import Backsolve
from dise.integrate.backward_solve import BackwardSolve, Stops
from dise.integrate.clock import real_dtype
from dise.integrate.dependencies import dependencies
from dise.integrate.exact import Exact, inner
from dise.integrate.integrator import Integrator
from dise.integrate.no_gradient import differentiable_once, without_gradient
from dise.integrate.output.event_search import EventSearch
from dise.integrate.problem.field import Field
from dise.integrate.problem.forward_context import ForwardContext
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request, Result
from dise.integrate.problem.run import Run

NO_STEPS = (
    "Solution.{} has no gradient with gradient='backsolve', which keeps no steps; use gradient='direct' or 'checkpoint'"
)


@dataclass(frozen=True, eq=False)
class StoppedSamples:
    """The samples that events stopped.

    Args:
        search: the forward solve's.
        which: [B] index of the event that stopped each sample; -1: none did.
    """

    search: EventSearch
    which: Tensor

    def value(self, samples: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """[K] the functions of the events that stopped the samples [K], at times [K] and states [K, F]."""
        return self.search.value(samples, self.which[samples], t, y)


@dataclass(frozen=True, eq=False)
class Adjoint:
    """The results of a forward solve, with gradients by a backward solve.

    Args:
        backward: the backward solve.
        stopped: samples that events stopped; None: the forward solve had no events.
    """

    backward: BackwardSolve
    stopped: StoppedSamples | None

    def attach(
        self, result: Result, points: tuple[Tensor, Tensor] | None, saved: Tensor | None
    ) -> tuple[Result, Tensor | None]:
        """The forward solve's result and its saved states [n, T, F] or None, with gradients."""
        problem, params = self.backward.problem, self.backward.params
        times, mask = points if points is not None else (problem.t0.new_empty(len(problem), 0), None)
        mask = torch.ones_like(times, dtype=torch.bool) if mask is None else mask
        states = problem.y0.detach()[:, None, :].expand(-1, times.shape[1], -1) if saved is None else saved
        arrived = result.t == problem.t1
        if self.stopped is not None:
            arrived = arrived & (self.stopped.which < 0)
        end = torch.where(arrived, problem.t1, result.t)
        values = (result.y.detach(), states.detach(), mask)
        y, states = _AdjointFunction.apply(self.backward, values, problem.y0, problem.t0, end, times, *params)  # type: ignore[no-untyped-call]
        sources = (problem.y0, problem.t0, end, *params)
        result = result._replace(
            y=y,
            t=end,
            k1=None,  # k1 has no autograd graph; resuming from it would silently drop gradients
            **{
                name: without_gradient(value, sources, NO_STEPS.format(name))
                for name, value in (("error", result.error), ("accumulated", result.accumulated))
                if value is not None
            },
        )
        if self.stopped is not None:
            result = self._at_events(self.stopped, result)
        return result, None if saved is None else states

    def _at_events(self, stopped: StoppedSamples, result: Result) -> Result:
        """The result, with gradients of the stopped samples' times and states by the implicit function theorem.

        dt* = −dg / (∂g/∂t + ∂g/∂y·f), where dg is the change of the event's function at the fixed time.
        """
        samples = (stopped.which >= 0).nonzero().flatten()
        if len(samples) == 0 or not result.y.requires_grad:
            return result
        t, y = result.t.detach(), result.y.detach()
        with torch.no_grad():
            slope_y = self.backward.evaluate(Request(None, t, y))[samples]
        value = stopped.value(samples, t[samples], result.y[samples])
        with torch.enable_grad():
            theta = torch.zeros_like(t[samples]).requires_grad_()
            moved = stopped.value(samples, t[samples] + theta, y[samples] + theta[:, None] * slope_y)
            (slope,) = torch.autograd.grad(moved.sum(), theta, materialize_grads=True)
        slope = torch.where(slope == 0, torch.finfo(slope.dtype).tiny, slope)
        change = -(value - value.detach()) / slope
        return result._replace(
            t=result.t.index_put((samples,), t[samples] + change),
            y=result.y.index_put((samples,), result.y[samples] + change[:, None].to(real_dtype(y)) * slope_y),
        )


class ForwardAnswers:
    """Answers a forward solve's requests, and keeps what the backward solve must know of f.

    The first value of f is calculated with a graph, which shows the tensors on which it depends.

    Args:
        field: answers.
        plain: the field, not compiled.
        device: type of the state's device.
    """

    def __init__(self, field: Field, plain: Field, device: str) -> None:
        self._field, self._plain = field, plain
        self._context = ForwardContext(plain.f, device, plain.args, plain.sample_args)
        self._first: Request | None = None
        self._used: tuple[Tensor, ...] = ()

    def __call__(self, request: Request) -> Tensor:
        """The requested values of f, without graphs."""
        if self._first is not None:
            return self._field(request)
        self._first = request
        with torch.enable_grad():
            value = self._plain(request)
        if self._plain is not self._field:
            self._field.calls += 1
        self._used = tuple(dependencies(value, (*self._context.tensors, *self._arguments())).values())
        return value.detach()

    def adjoint(
        self,
        problem: Problem,
        back: Backsolve,
        integrator: Integrator,
        run: Run,
        stopped: tuple[EventSearch, Tensor] | None,
    ) -> "Adjoint":
        """The gradients of the forward solve.

        Args:
            problem: what it solved.
            back: says what to differentiate.
            integrator: of the backward solve.
            run: the forward solve's.
            stopped: its events, and [B] the index of the event that stopped each sample; None: it had no events.
        """
        self._context.end_forward()
        params = back.tensors(self._plain.f, self._used)
        backward = BackwardSolve(
            problem=problem,
            # it differentiates f more than once per graph, which compiled graphs do not allow
            answer=self._plain,
            context=self._context.without_autocast() if isinstance(integrator, Exact) else self._context,
            first=self._first,
            used=self._used,
            params=tuple({id(x): x for x in (*params, *self._arguments()) if x.requires_grad}.values()),
            integrator=inner(integrator),
            drop_finished=run.drop_finished,
            check=back.params is None,
        )
        return Adjoint(backward, None if stopped is None else StoppedSamples(*stopped))

    def _arguments(self) -> list[Tensor]:
        return [x for x in (*self._plain.args, *self._plain.sample_args) if isinstance(x, Tensor)]


class _AdjointFunction(torch.autograd.Function):
    """(y at the end, saved states): the forward solve's values, with the backward solve's gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        backward: BackwardSolve,
        values: tuple[Tensor, ...],
        y0: Tensor,
        t0: Tensor,
        end: Tensor,
        times: Tensor,
        *params: Tensor,
    ) -> tuple[Tensor, Tensor]:
        y, states, mask = values
        y, states = y.clone(), states.clone()
        ctx.backward_solve = backward
        ctx.save_for_backward(y, states, mask, y0, t0, end, times, *params)
        return y, states

    @staticmethod
    @differentiable_once("gradient='backsolve' has no second derivatives; use gradient='direct' or 'checkpoint'")
    def backward(ctx: Any, grad_y: Tensor, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        ctx.backward_solve.check_unchanged()
        # params are unpacked too, so that torch raises if one that f uses later was changed in place
        y, states, mask, y0, t0, end, times, *_ = ctx.saved_tensors
        stops = Stops(times, states, grad_states, mask, (t0, y0), (end, y, grad_y))
        times_require_grad = any(ctx.needs_input_grad[3:6])
        grad_y0, grad_t0, grad_stops, grad_params = ctx.backward_solve.gradients(
            stops, y0, t0, times_require_grad=times_require_grad
        )
        grad_times = torch.zeros_like(times).scatter(1, stops.order, grad_stops[:, :-1])
        return None, None, grad_y0, grad_t0, grad_stops[:, -1], grad_times, *grad_params
