"""The backward solve of the adjoint equation.

With y' = f(t, y) and the adjoint a = dL/dy, which obeys a' = −(∂f/∂y)ᵀ a, the pair (y, a) is integrated from t1 to t0,
each sample with its own steps. At a save point, a jumps by the loss's gradient in the saved state, and y is reset to
the saved state. The parameters' gradients are the integrals ∫ (∂f/∂θ)ᵀ a dt. Neither y nor a depends on them, so they
are not part of the state: the accepted steps' quadrature weights sum them, over all samples at once, and they do not
affect the step sizes.

Sources: Chen et al., Neural Ordinary Differential Equations, 2018, Algorithm 1; Kidger et al., "Hey, that's not an
ODE", 2021, for leaving the integrals out of the error test.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dise.integrate.clock import real_dtype
from dise.integrate.dependencies import dependencies
from dise.integrate.empty_spans import integrate_nonempty
from dise.integrate.integrator import Integrator
from dise.integrate.integrators import ErrorControlled, FixedStep
from dise.integrate.output.interpolation import states_within
from dise.integrate.problem.forward_context import ForwardContext
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request, Result, drive
from dise.integrate.problem.run import Run
from dise.integrate.problem.state import Layout, State, leaves
from dise.integrate.runge_kutta.step import Attempt, Step, within
from dise.integrate.runge_kutta.tableau import ButcherTableau
from dise.integrate.solution import Solution, SolveError
from dise.integrate.status import Status
from dise.integrate.stepping.tolerance import each, rms_norm


@dataclass(frozen=True, eq=False, kw_only=True)
class BackwardSolve:
    """Solves the adjoint equation of one forward solve.

    Args:
        problem: the forward solve's.
        answer: evaluates f.
        context: in which f is evaluated.
        first: the forward solve's first request; None if f was not evaluated.
        used: the tensors on which f's answer to it depended.
        params: all tensors that f uses and that get gradients, `args` and `sample_args` included.
        integrator: of the backward solve.
        drop_finished: see `dise.solve`.
        check: raise if f uses other tensors that require gradients.
    """

    problem: Problem
    answer: Callable[[Request], Tensor]
    context: ForwardContext
    first: Request | None
    used: tuple[Tensor, ...]
    params: tuple[Tensor, ...]
    integrator: Integrator
    drop_finished: bool
    check: bool

    def evaluate(self, request: Request) -> Tensor:
        """The requested values of f, as in the forward pass.

        Raises:
            RuntimeError: f reads a tensor that was changed in place since.
        """
        self.context.check_unchanged(lambda: self.answer(request))
        with self.context.restored():
            return self.answer(request)

    def check_unchanged(self) -> None:
        """Raise a RuntimeError if f, at the start, reads a tensor that was changed in place since."""
        first = self.first
        if first is not None:
            self.context.check_unchanged(lambda: self.answer(first))

    def gradients(
        self, stops: "Stops", y0: Tensor, t0: Tensor, *, times_require_grad: bool
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """The loss's gradients in y0 [n, F], t0 [n], the stops [n, T + 1] and params.

        Those in t0 and the stops are 0 unless `times_require_grad`.
        """
        quadrature = _ParameterQuadrature(self)
        a, grad_stops = torch.zeros_like(y0), torch.zeros_like(stops.t)
        for k in reversed(range(stops.t.shape[1])):
            t, y, jump = stops.t[:, k], stops.y[:, k], stops.jump[:, k]
            if times_require_grad:
                grad_stops[:, k] = self._time_gradient(self._side(t0, t, -1), y, jump)
            a = a + jump
            goal = stops.t[:, k - 1] if k > 0 else t0
            goal = torch.where((a == 0).all(1), t, goal)  # without an adjoint there is nothing to integrate
            y, a = self._stretch(y, a, t, goal, t0, quadrature)
        start = self._side(t0, stops.t[:, -1], 0)
        grad_t0 = -self._time_gradient(start, y0, a) if times_require_grad else torch.zeros_like(t0)
        return a, grad_t0, grad_stops, quadrature.sums

    def _side(self, t0: Tensor, t: Tensor, piece: int) -> Tensor:
        """[n] the start (piece 0) or the end (piece −1) of spans from t0 to t, on the inner side of a jump there."""
        end = t0 if piece == 0 else t
        if self.problem.breaks is None:
            return end
        bounds = self.problem.breaks.between(t0, t).bounds[:, piece]
        return within(end.to(bounds.dtype), bounds)

    def _time_gradient(self, t: Tensor, y: Tensor, cotangent: Tensor) -> Tensor:
        """[n] cotangent·f(t, y), the loss's gradient in the time of a state; 0 where the cotangent is 0."""
        if not bool(cotangent.any()):
            return torch.zeros_like(t)
        value = (cotangent.conj() * self.evaluate(Request(None, t, y))).real.sum(1)
        return torch.where((cotangent == 0).all(1), 0, value)

    def _stretch(
        self, y: Tensor, a: Tensor, start: Tensor, goal: Tensor, t0: Tensor, quadrature: "_ParameterQuadrature"
    ) -> tuple[Tensor, Tensor]:
        """(y, a) [n, F] at `goal`, integrated backwards from `start`; the quadrature adds the stretch's integrals."""
        breaks = None if self.problem.breaks is None else self.problem.breaks.between(start, goal)
        layout = _pair_layout(self.problem.layout)
        pair = Problem(y0=torch.cat([y, a], 1), t0=start, t1=goal, breaks=breaks, layout=layout)
        run = Run(observers=(quadrature,), drop_finished=self.drop_finished)
        integrator = self.integrator
        if isinstance(integrator, FixedStep):
            part = ((goal - start) / torch.where(self.problem.t1 == t0, 1, self.problem.t1 - t0)).abs().nan_to_num(1)
            steps = math.ceil(integrator.grid.steps * min(1.0, float(part.max()) if len(part) else 1.0) - 1e-6)
            integrator = replace(integrator, steps=max(1, steps))
        integration = integrate_nonempty(_pair_integrator(integrator, self.problem.layout), pair, run)
        result = drive(integration, _AugmentedDynamics(self))
        _check_success(result, pair)
        y, a = result.y.split(y.shape[1], 1)
        return y, a

    def check_uses(self, value: Tensor, y: Tensor) -> None:
        """Raise unless a value of f at y depends on the tensors that get gradients, as in the forward pass."""
        uses = dependencies(value, (y, *self.params))
        known = {id(x) for x in (y, *self.params)}
        others = [x for x in uses.values() if id(x) not in known]
        if self.check and others:
            raise ValueError(
                f"gradient: f uses a tensor of shape {tuple(others[0].shape)} that requires a gradient, but did not "
                "use it at the start of the forward pass, so backsolve would not compute the gradient: pass the tensor "
                "by args= or sample_args=, or name it: gradient=dise.Backsolve(params=[...])"
            )
        # f may use other tensors at other times, so compare at the same time
        if self.first is not None and any(id(x) in known and id(x) not in uses for x in self.used):
            with torch.enable_grad():
                uses = dependencies(self.evaluate(self.first), self.params)
            lost = [x for x in self.used if id(x) in known and id(x) not in uses]
            if lost:
                raise ValueError(
                    f"gradient: in the forward pass f used a tensor of shape {tuple(lost[0].shape)} that it does not "
                    "use in the backward pass; backsolve calls f again, so f must still be the same function. Pass "
                    "the tensor by args=, or use gradient='direct'"
                )


class Stops:
    """Times at which the backward solve resets y and a: save points, then the end, in the forward direction.

    Args:
        times: [n, T] save points.
        states: [n, T, F] states there.
        jumps: [n, T, F] the loss's gradient in these states.
        mask: [n, T] bool, False for padding.
        start: t0 [n] and y0 [n, F].
        end: time [n], state [n, F], and the loss's gradient in it [n, F].

    Attributes:
        order: [n, T] the save points' order in the direction of the integration.
        t: [n, T + 1] times; a padded or unreached save point is moved to t0, with a jump of 0.
        y: [n, T + 1, F] states.
        jump: [n, T + 1, F] the loss's gradient in the states.
    """

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
        self.t = torch.cat([times.gather(1, self.order), t[:, None]], 1)
        self.y = torch.cat([states, y[:, None]], 1)
        self.jump = torch.cat([jumps, jump[:, None]], 1)


class _AugmentedDynamics:
    """Evaluates (y, a)' = (f, −(∂f/∂y)ᵀ a), the adjoint equation's augmented dynamics."""

    def __init__(self, solve: BackwardSolve) -> None:
        self.solve, self.checked = solve, False

    def __call__(self, request: Request) -> Tensor:
        y, a = request.y.chunk(2, 1)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            value = self.solve.evaluate(Request(request.rows, request.t, y))
        if not self.checked:
            self.solve.check_uses(value, y)
            self.checked = True
        (change,) = _vjp(value, (y,), a)
        return torch.cat([value.detach(), -change], 1)


class _ParameterQuadrature:
    """Sums ∫ (∂f/∂θ)ᵀ a dt over the accepted steps, by the method's weights b, for each tensor θ in params."""

    def __init__(self, solve: BackwardSolve) -> None:
        self.solve = solve
        self.sums = [torch.zeros_like(tensor) for tensor in solve.params]

    def see(self, record: StepRecord) -> None:
        """Add the integrals over an accepted step, stage by stage."""
        if not self.sums:
            return
        step, accept = record.step, record.accept
        rows = None if len(record.sample) == len(self.solve.problem) else record.sample
        dt = torch.where(accept, step.dt, 0)[:, None].to(real_dtype(step.y))
        for b, (t, pair) in zip(step.tableau.b, _stage_points(step, record.t_next), strict=True):
            if b == 0:
                continue
            y, adjoint = torch.where(accept[:, None], pair, step.y).chunk(2, 1)
            with torch.enable_grad():
                value = self.solve.evaluate(Request(rows, t, y.detach()))
            shares = _vjp(value, self.solve.params, -b * dt * adjoint)
            self.sums = [total + share for total, share in zip(self.sums, shares, strict=True)]

    def start_over(self, sample: Tensor) -> None:
        """Raise: the backward solve has one integrator."""
        raise RuntimeError("the backward solve does not start over")


def _stage_points(step: Step, t_next: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """[n] time and [n, F] state of each stage of a step."""
    if not isinstance(step.tableau, ButcherTableau):  # stages at points of the dense output
        dtype = real_dtype(step.y)
        for c, state in zip(step.tableau.c, states_within(step, step.tableau.c), strict=True):
            time = torch.lerp(step.t, t_next, c).to(dtype)
            yield (time if step.bounds is None else within(time, step.bounds)), state
        return
    attempt = Attempt(step.tableau, step.t, t_next, step.y, bounds=step.bounds)
    for stage in step.stages:
        yield attempt.point()
        attempt.stages.append(stage)


def _vjp(value: Tensor, inputs: Sequence[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    """The vector-Jacobian products cotangent·∂value/∂inputs; 0 where value does not depend on an input."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    # f may use tensors computed outside it; the next call needs their graph again, so retain it
    return torch.autograd.grad(value, inputs, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True)


def _pair_layout(layout: Layout) -> Layout:
    """The layout of (y, a): a tuple of y's tensors and a's, in the solver's dtype."""
    return replace(layout, shapes=layout.shapes * 2, is_tuple=True, names=None, dtype=layout.working_dtype)


def _pair_integrator(integrator: Integrator, layout: Layout) -> Integrator:
    """The integrator for (y, a): tolerances as for y, and the larger of the norms of y and a."""
    if not isinstance(integrator, ErrorControlled):
        return integrator
    norm = integrator.norm

    def larger(pair: State) -> Tensor:
        rows = torch.cat([part.reshape(len(part), -1) for part in leaves(pair)], 1)
        return torch.stack([norm(layout.shaped(half)) for half in rows.chunk(2, 1)]).amax(0)

    rtol, atol = (each(name, getattr(integrator, name), layout) * 2 for name in ("rtol", "atol"))
    # for a tuple, rms_norm already is the largest of its tensors' norms
    return replace(integrator, rtol=rtol, atol=atol, norm=norm if norm is rms_norm else larger)


def _check_success(result: Result, pair: Problem) -> None:
    if bool((result.outcome == int(Status.SUCCESS)).all()):
        return
    fields = {name: x for name, x in result._asdict().items() if x is not None and name != "y"}
    solution = Solution(y=pair.layout.unpack(result.y), calls=0, **fields)
    try:
        solution.raise_for_status()
    except SolveError as error:
        error.add_note(
            "This was the backward solve of gradient='backsolve', which may be unstable where the forward solve is "
            "stable. gradient='checkpoint' needs no backward solve."
        )
        raise
