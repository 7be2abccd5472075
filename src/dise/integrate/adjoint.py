"""Gradients by the adjoint equation: what users pass to `solve`, and the solve's results attached to autograd.

`dise.integrate.backward_solve` solves the equation, so memory does not grow with the number of steps.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dise.integrate.backward_solve import BackwardSolve, Stops
from dise.integrate.clock import real_dtype
from dise.integrate.dependencies import dependencies
from dise.integrate.integrators import FixedStep, Integrator
from dise.integrate.multistep.grids import TimeGrid
from dise.integrate.multistep_method import Multistep
from dise.integrate.output.event_search import EventSearch
from dise.integrate.problem.field import Field
from dise.integrate.problem.forward_context import ForwardContext
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request, Result
from dise.integrate.problem.run import Run


@dataclass(frozen=True, eq=False, kw_only=True)
class Backsolve:
    """`solve(..., gradient=Backsolve(...))`: what the backward solve differentiates, and how it integrates.

    Args:
        params: tensors that f uses and that get gradients, beside `args` and `sample_args`; no others do. Default:
            f's parameters, if f (or what it wraps by `functools.wraps`) is an `nn.Module`, and all tensors on which the
            first value of f depends. If later values depend on others, the backward pass raises an error.
        integrator: for the backward solve; default: that of the forward solve. The steps of a fixed-step method are
            divided among the stretches between save points, at least one each.

    Raises:
        TypeError: not tensors, or not an integrator.
    """

    params: Iterable[Tensor] | None = None
    integrator: Integrator | None = None

    def __post_init__(self) -> None:
        if self.params is not None:
            params = (self.params,) if isinstance(self.params, Tensor) else tuple(self.params)
            for i, param in enumerate(params):
                if not isinstance(param, Tensor):
                    raise TypeError(f"params[{i}]: expected a tensor, got {type(param).__name__}")
            object.__setattr__(self, "params", params)
        if self.integrator is not None and not isinstance(self.integrator, Integrator):
            raise TypeError(f"integrator: expected an integrator such as dise.Dopri5(), got {self.integrator!r}")

    def tensors(self, f: Callable[..., Any], used: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """The tensors that f uses beside its arguments; `used` are those that it was seen to use."""
        if self.params is not None:
            return tuple(self.params)
        module = unwrap(f)
        return (*(module.parameters() if isinstance(module, nn.Module) else ()), *used)

    def back(self, integrator: Integrator) -> Integrator:
        """The integrator of the backward solve, after a forward solve by `integrator`.

        Raises:
            ValueError: an integrator that chooses; it can choose for f, not for the adjoint equation. Or a grid or
                table, which is made for the forward direction.
        """
        chosen = integrator if self.integrator is None else self.integrator
        if chosen.chooses:
            raise ValueError(
                f"gradient: backsolve integrates with one integrator, but {type(chosen).__name__} chooses one per "
                "sample; name one, e.g. gradient=dise.Backsolve(integrator=dise.Dopri5())"
            )
        if isinstance(chosen, Multistep) or (isinstance(chosen, FixedStep) and isinstance(chosen.steps, TimeGrid)):
            raise ValueError(
                f"gradient: backsolve cannot use {chosen}, which is made for the forward direction; name another "
                "integrator, e.g. gradient=dise.Backsolve(integrator=dise.Dopri5()), or use gradient='checkpoint'"
            )
        return chosen


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
        self._context = ForwardContext((plain.f, *plain.args), device)
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

    def backward_solve(self, problem: Problem, back: Backsolve, integrator: Integrator, run: Run) -> BackwardSolve:
        """The backward solve that belongs to the forward solve."""
        params = back.tensors(self._plain.f, self._used)
        return BackwardSolve(
            problem=problem,
            # it differentiates f more than once per graph, which compiled graphs do not allow
            answer=self._plain,
            context=self._context,
            first=self._first,
            used=self._used,
            params=tuple({id(x): x for x in (*params, *self._arguments()) if x.requires_grad}.values()),
            integrator=integrator,
            drop_finished=run.drop_finished,
            check=back.params is None,
        )

    def _arguments(self) -> list[Tensor]:
        return [x for x in (*self._plain.args, *self._plain.sample_args) if isinstance(x, Tensor)]


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
            error=_NoGradient.apply("error", result.error, *sources),  # type: ignore[no-untyped-call]
            accumulated=_NoGradient.apply("accumulated", result.accumulated, *sources),  # type: ignore[no-untyped-call]
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
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        # params are unpacked too, so that torch raises if one was changed in place
        y, states, mask, y0, t0, end, times, *_ = ctx.saved_tensors
        stops = Stops(times, states, grad_states, mask, (t0, y0), (end, y, grad_y))
        times_require_grad = any(ctx.needs_input_grad[3:6])
        grad_y0, grad_t0, grad_stops, grad_params = ctx.backward_solve.gradients(
            stops, y0, t0, times_require_grad=times_require_grad
        )
        grad_times = torch.zeros_like(times).scatter(1, stops.order, grad_stops[:, :-1])
        return None, None, grad_y0, grad_t0, grad_stops[:, -1], grad_times, *grad_params


class _NoGradient(torch.autograd.Function):
    """A value whose gradient backsolve cannot compute; asking for it raises."""

    @staticmethod
    def forward(ctx: Any, name: str, value: Tensor, *_: Tensor) -> Tensor:
        ctx.name = name
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            f"Solution.{ctx.name} has no gradient with gradient='backsolve', which keeps no steps; use "
            "gradient='direct' or 'checkpoint'"
        )
