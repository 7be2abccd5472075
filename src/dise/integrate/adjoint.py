"""Gradients by a second solve, backwards in time: memory does not grow with the number of steps.

With y' = f(t, y) and the adjoint a = dL/dy, which obeys a' = −(∂f/∂y)ᵀ a, the pair (y, a) is integrated from t1 to t0,
each sample with its own steps; at a save point a jumps by that state's own gradient, and y is set to the state saved.
Parameters' gradients are integrals, ∫ (∂f/∂θ)ᵀ a dt. They feed back into nothing, so they are no part of the state:
the accepted steps' own quadrature sums them, over all samples at once, and they have no say in the step sizes.

Sources: Chen et al., Neural Ordinary Differential Equations, 2018, Algorithm 1; Kidger et al., "Hey, that's not an
ODE", 2021, for leaving the integrals out of the error test.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dise.integrate.empty_spans import integrate_nonempty
from dise.integrate.integrators import Adaptive, FixedStep, Integrator
from dise.integrate.output.events import EventMonitor
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request, Result, drive
from dise.integrate.problem.run import Run
from dise.integrate.problem.state import Layout, State, leaves
from dise.integrate.runge_kutta.step import Attempt
from dise.integrate.solution import Solution, SolveError
from dise.integrate.status import Status
from dise.integrate.stepping.tolerance import each, rms_norm

Answer = Callable[[Request], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Backsolve:
    """`solve(..., gradient=Backsolve(...))`: what the backward solve differentiates, and how it integrates.

    Args:
        params: tensors that f uses and that get gradients, beside `args` and `sample_args`, and no others do. Default:
            f's parameters, if f is an `nn.Module`; then f may use no others that want gradients, which is checked.
        integrator: for the backward solve; default: that of the forward solve. Of fixed-step methods each stretch
            between save points takes its share of the steps, at least one.

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

    def wanted(self, f: object, args: Sequence[Any]) -> tuple[Tensor, ...]:
        """The tensors that f uses and that want gradients, each once."""
        params = self.params if self.params is not None else f.parameters() if isinstance(f, nn.Module) else ()
        tensors = [x for x in (*params, *args) if isinstance(x, Tensor) and x.requires_grad]
        return tuple({id(x): x for x in tensors}.values())

    def back(self, integrator: Integrator) -> Integrator:
        """What integrates backwards after `integrator`.

        Raises:
            ValueError: an integrator that chooses; what it learned is to choose for f, not for the adjoint.
        """
        chosen = integrator if self.integrator is None else self.integrator
        if chosen.chooses:
            raise ValueError(
                f"gradient: backsolve goes back with one integrator, and {type(chosen).__name__} gives each sample its "
                "own; name one, e.g. gradient=dise.Backsolve(integrator=dise.Dopri5())"
            )
        return chosen


@dataclass(frozen=True, eq=False)
class Adjoint:
    """The backward pass of one solve."""

    problem: Problem  # the forward solve's
    answer: Answer  # evaluates f
    wanted: tuple[Tensor, ...]
    integrator: Integrator
    event: EventMonitor | None
    drop_finished: bool
    check: bool  # that f uses nothing else that wants a gradient

    def attach(self, result: Result, points: tuple[Tensor, Tensor] | None, saved: Tensor | None) -> tuple[Result, Any]:
        """The forward solve's result and its saved states [n, T, F] or None, with gradients."""
        problem = self.problem
        times, mask = points if points is not None else (problem.t0.new_empty(len(problem), 0), None)
        mask = torch.ones_like(times, dtype=torch.bool) if mask is None else mask
        states = problem.y0.detach()[:, None, :].expand(-1, times.shape[1], -1) if saved is None else saved
        arrived = result.t == problem.t1
        if self.event is not None:
            arrived = arrived & ~self.event.stopped
        end = torch.where(arrived, problem.t1, result.t)
        values = (result.y.detach(), states.detach(), mask)
        y, states = _Pair.apply(self, values, problem.y0, problem.t0, end, times, *self.wanted)  # type: ignore[no-untyped-call]
        refused = (problem.y0, problem.t0, end, *self.wanted)
        result = result._replace(
            y=y,
            t=end,
            k1=None,  # it has no graph, and who goes on from it would not notice
            error=_Refuse.apply("error", result.error, *refused),  # type: ignore[no-untyped-call]
            accumulated=_Refuse.apply("accumulated", result.accumulated, *refused),  # type: ignore[no-untyped-call]
        )
        if self.event is not None:
            result = self._stopped(self.event, result)
        return result, None if saved is None else states

    def _stopped(self, event: EventMonitor, result: Result) -> Result:
        """The result, its stopped samples' time and state differentiated by the implicit function theorem.

        dt* = −dg / (∂g/∂t + ∂g/∂y·f), where dg is the change of the event's function at the fixed time.
        """
        samples = event.stopped.nonzero().flatten()
        if len(samples) == 0 or not result.y.requires_grad:
            return result
        t, y = result.t.detach(), result.y.detach()
        with torch.no_grad():
            slope_y = self.answer(Request(None, t, y))[samples]
        value = event.value(samples, t[samples], result.y[samples])
        with torch.enable_grad():
            theta = torch.zeros_like(t[samples]).requires_grad_()
            moved = event.value(samples, t[samples] + theta, y[samples] + theta[:, None] * slope_y)
            (slope,) = torch.autograd.grad(moved.sum(), theta, materialize_grads=True)
        slope = torch.where(slope == 0, torch.finfo(slope.dtype).tiny, slope)
        change = -(value - value.detach()) / slope
        return result._replace(
            t=result.t.index_put((samples,), t[samples] + change),
            y=result.y.index_put((samples,), result.y[samples] + change[:, None] * slope_y),
        )

    def gradients(
        self, stops: "_Stops", y0: Tensor, t0: Tensor, *, of_times: bool
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Gradients of y0 [n, F], t0 [n], stops [n, T] (0 unless `of_times`) and of the wanted tensors."""
        quadrature = Quadrature(self)
        a, of_stops = torch.zeros_like(y0), torch.zeros_like(stops.t)
        for k in reversed(range(stops.t.shape[1])):
            t, y, jump = stops.t[:, k], stops.y[:, k], stops.jump[:, k]
            if of_times:
                of_stops[:, k] = self._flow(t, y, jump)
            a = a + jump
            goal = stops.t[:, k - 1] if k > 0 else t0
            goal = torch.where((a == 0).all(1), t, goal)  # nothing depends on it
            y, a = self._stretch(y, a, t, goal, t0, quadrature)
        of_t0 = -self._flow(t0, y0, a) if of_times else torch.zeros_like(t0)
        return a, of_t0, of_stops, quadrature.sums

    def _flow(self, t: Tensor, y: Tensor, cotangent: Tensor) -> Tensor:
        """[n] cotangent·f(t, y), how the loss changes as time moves the state; 0 where the cotangent is."""
        if not bool(cotangent.any()):
            return torch.zeros_like(t)
        value = (cotangent.conj() * self.answer(Request(None, t, y))).real.sum(1)
        return torch.where((cotangent == 0).all(1), 0, value)

    def _stretch(
        self, y: Tensor, a: Tensor, start: Tensor, goal: Tensor, t0: Tensor, quadrature: "Quadrature"
    ) -> tuple[Tensor, Tensor]:
        """(y, a) [n, F] at `goal`, integrated back from `start`, while the quadrature takes the parameters' share."""
        pair = Problem(
            y0=torch.cat([y, a], 1),
            t0=start,
            t1=goal,
            layout=_doubled(self.problem.layout),
        )
        run = Run(observers=(quadrature,), drop_finished=self.drop_finished)
        integrator = self.integrator
        if isinstance(integrator, FixedStep):
            part = ((goal - start) / torch.where(self.problem.t1 == t0, 1, self.problem.t1 - t0)).abs().nan_to_num(1)
            steps = math.ceil(integrator.steps * min(1.0, float(part.max()) if len(part) else 1.0) - 1e-6)
            integrator = replace(integrator, steps=max(1, steps))
        integration = integrate_nonempty(_for_pair(integrator, self.problem.layout), pair, run)
        result = drive(integration, _Dynamics(self))
        _check(result, pair)
        y, a = result.y.split(y.shape[1], 1)
        return y, a


class _Stops:
    """Where the backward solve halts, n samples: their times in the direction of the integration, the last the end."""

    def __init__(
        self,
        times: Tensor,
        states: Tensor,
        jumps: Tensor,
        mask: Tensor,
        start: tuple[Tensor, Tensor],
        end: tuple[Tensor, ...],
    ) -> None:
        (t0, y0), (t, y, jump) = start, end
        sign = torch.where(t < t0, -1, 1).to(times.dtype)[:, None]
        reached = mask & ((t[:, None] - times) * sign >= 0)
        inside = reached[..., None]
        times = torch.where(reached, times, t0[:, None])
        self.order = (times * sign).argsort(stable=True, dim=1)
        rows = self.order[..., None].expand_as(states)
        states = torch.where(inside, states, y0[:, None]).gather(1, rows)
        jumps = torch.where(inside, jumps, 0).gather(1, rows)
        self.t = torch.cat([times.gather(1, self.order), t[:, None]], 1)  # [n, T + 1]
        self.y = torch.cat([states, y[:, None]], 1)  # [n, T + 1, F]
        self.jump = torch.cat([jumps, jump[:, None]], 1)  # [n, T + 1, F] the loss's own gradient of the state


class _Pair(torch.autograd.Function):
    """(y at the end, saved states): values of the forward solve, gradients of the backward one."""

    @staticmethod
    def forward(
        ctx: Any,
        adjoint: Adjoint,
        values: tuple[Tensor, ...],
        y0: Tensor,
        t0: Tensor,
        end: Tensor,
        times: Tensor,
        *wanted: Tensor,
    ) -> tuple[Tensor, Tensor]:
        y, states, mask = values
        y, states = y.clone(), states.clone()
        ctx.adjoint = adjoint
        ctx.save_for_backward(y, states, mask, y0, t0, end, times, *wanted)
        return y, states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        y, states, mask, y0, t0, end, times, *_ = ctx.saved_tensors  # the last are read for their version's check
        stops = _Stops(times, states, grad_states, mask, (t0, y0), (end, y, grad_y))
        of_times = any(ctx.needs_input_grad[3:6])
        of_y0, of_t0, of_stops, of_wanted = ctx.adjoint.gradients(stops, y0, t0, of_times=of_times)
        of_saves = torch.zeros_like(times).scatter(1, stops.order, of_stops[:, :-1])
        return None, None, of_y0, of_t0, of_stops[:, -1], of_saves, *of_wanted


class _Refuse(torch.autograd.Function):
    """A value whose gradient backsolve cannot give."""

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


class _Dynamics:
    """Evaluates (y, a)' = (f, −(∂f/∂y)ᵀ a)."""

    def __init__(self, adjoint: Adjoint) -> None:
        self.adjoint, self.checked = adjoint, False

    def __call__(self, request: Request) -> Tensor:
        y, a = request.y.chunk(2, 1)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            value = self.adjoint.answer(Request(request.rows, request.t, y))
        if self.adjoint.check and not self.checked:
            _check_leaves(value, (y, *self.adjoint.wanted))
            self.checked = True
        (change,) = _pull(value, (y,), a)
        return torch.cat([value.detach(), -change], 1)


class Quadrature:
    """Sums ∫ (∂f/∂θ)ᵀ a dt of the wanted tensors θ over the accepted steps, by the method's own weights."""

    def __init__(self, adjoint: Adjoint) -> None:
        self.adjoint = adjoint
        self.sums = [torch.zeros_like(tensor) for tensor in adjoint.wanted]

    def see(self, seen: StepRecord) -> None:
        """Add the step's share, stage by stage; a rejected one has none."""
        if not self.sums:
            return
        step, accept = seen.step, seen.accept
        rows = None if len(seen.sample) == len(self.adjoint.problem) else seen.sample
        dt = torch.where(accept, step.dt, 0)[:, None]
        attempt = Attempt(step.tableau, step.t, seen.t_next, step.y)
        for b, stage in zip(step.tableau.b, step.stages, strict=True):
            t, pair = attempt.point()
            attempt.stages.append(stage)
            if b == 0:
                continue
            y, adjoint = torch.where(accept[:, None], pair, step.y).chunk(2, 1)
            with torch.enable_grad():
                value = self.adjoint.answer(Request(rows, t, y.detach()))
            shares = _pull(value, self.adjoint.wanted, -b * dt * adjoint)
            self.sums = [total + share for total, share in zip(self.sums, shares, strict=True)]

    def start_over(self, sample: Tensor) -> None:
        """No integrator that chooses comes here."""
        raise RuntimeError("the backward solve does not start over")


def _pull(value: Tensor, inputs: Sequence[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    """cotangent·∂value/∂inputs; 0 where there is no dependence."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    # what f uses may have been calculated outside of it; that graph is needed again, so it is retained
    return torch.autograd.grad(value, inputs, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True)


def _check_leaves(value: Tensor, known: Sequence[Tensor]) -> None:
    """Raise if f depends on a tensor that wants a gradient and would silently get none."""
    halts = {x.grad_fn for x in known if x.grad_fn is not None}
    stack, seen = [value.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen or node in halts:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and not any(leaf is x for x in known):
            raise ValueError(
                f"gradient: f uses a tensor of shape {tuple(leaf.shape)} that requires a gradient, which backsolve "
                "would not give: pass it by args= or sample_args=, or name it: gradient=dise.Backsolve(params=[...]); "
                "of an nn.Module f the parameters are known"
            )
        stack.extend(parent for parent, _ in node.next_functions)


def _doubled(layout: Layout) -> Layout:
    """The layout of (y, a): a tuple of y's tensors and a's, in the solver's dtype."""
    return replace(layout, shapes=layout.shapes * 2, is_tuple=True, names=None, dtype=layout.working_dtype)


def _for_pair(integrator: Integrator, layout: Layout) -> Integrator:
    """An adaptive integrator with the tolerances and the norm that it has for y, for (y, a): the larger norm counts."""
    if not isinstance(integrator, Adaptive):
        return integrator
    norm = integrator.norm

    def larger(pair: State) -> Tensor:
        rows = torch.cat([part.reshape(len(part), -1) for part in leaves(pair)], 1)
        return torch.stack([norm(layout.shaped(half)) for half in rows.chunk(2, 1)]).amax(0)

    rtol, atol = (each(name, getattr(integrator, name), layout) * 2 for name in ("rtol", "atol"))
    return replace(integrator, rtol=rtol, atol=atol, norm=norm if norm is rms_norm else larger)


def _check(result: Result, pair: Problem) -> None:
    if bool((result.status == int(Status.SUCCESS)).all()):
        return
    fields = {name: x for name, x in result._asdict().items() if x is not None and name != "y"}
    solution = Solution(y=pair.layout.unpack(result.y), calls=0, **fields)
    try:
        solution.raise_for_status()
    except SolveError as error:
        error.add_note(
            "This was the backward solve of gradient='backsolve': going back, f may be unstable where forwards it is "
            "not. gradient='checkpoint' needs no such solve."
        )
        raise
