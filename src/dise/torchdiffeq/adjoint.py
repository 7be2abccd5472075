"""torchdiffeq's `odeint_adjoint`: gradients by the adjoint equation.

From the last time to the first, interval by interval, the system (t's gradient, y, adjoint, parameters' gradients) is
solved by `odeint` itself, so every method serves, and norms and callbacks see what they see in torchdiffeq. At each
time y is reset to the forward solve's state, and the adjoint jumps by the loss's gradient there.

Source: Chen et al., Neural Ordinary Differential Equations, 2018, Algorithm 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dise.integrate import State, rms_norm
from dise.integrate.dependencies import dependencies
from dise.integrate.no_gradient import differentiable_once
from dise.integrate.problem.forward_context import ForwardContext
from dise.integrate.problem.state import leaves
from dise.integrate.tracing import check_transforms
from dise.torchdiffeq.arguments import ErrorTolerances, as_slope, as_state, as_times
from dise.torchdiffeq.call import Event, combined_event, odeint_values
from dise.torchdiffeq.integrators import CALLBACKS

Norm = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Flattening:
    """A state as one tensor: a tensor itself, the tensors of a tuple one after the other.

    Args:
        shapes: of a tuple's tensors; None: the state is a tensor.
    """

    shapes: tuple[torch.Size, ...] | None

    @classmethod
    def of(cls, y: State) -> "Flattening":
        """The flattening of states like y."""
        return cls(tuple(part.shape for part in y) if isinstance(y, tuple) else None)

    def flat(self, y: State) -> Tensor:
        """The state as one tensor."""
        return y if isinstance(y, Tensor) else torch.cat([part.reshape(-1) for part in leaves(y)])

    def state(self, flat: Tensor) -> State:
        """The state, or with a first dimension more the states, of a flat tensor."""
        if self.shapes is None:
            return flat
        parts = flat.split([shape.numel() for shape in self.shapes], dim=-1)
        return tuple(part.view((*flat.shape[:-1], *shape)) for part, shape in zip(parts, self.shapes, strict=True))


@dataclass(frozen=True)
class OdeintArguments:
    """How `odeint` solves: its arguments beside func, y0 and t."""

    method: str | None
    tolerances: ErrorTolerances
    options: Mapping[str, Any]

    def solve(self, func: Callable[..., Any], y0: State, t: Tensor, event_fn: Event | None = None) -> Any:
        """The return value of `odeint`."""
        return odeint_values(func, y0, t, self.method, self.tolerances, self.options, event_fn)


def adjoint_values(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    event_fn: Event | None,
    forward: OdeintArguments,
    backward: OdeintArguments,
    params: Sequence[Tensor] | None,
) -> Any:
    """The return value of `odeint_adjoint`.

    Args:
        func, y0, t, event_fn: its arguments.
        forward, backward: how each solve goes; the backward solve's norm and tolerances are those of `odeint_adjoint`.
        params: tensors that get gradients; None: func's parameters and whatever else its first value depends on.
    """
    y0 = as_state(y0)
    t = as_times(t, leaves(y0)[0], pair=event_fn is not None)
    # its errors must come before the forward solve
    norm = augmented_norm(backward.options.get("norm"), forward.options.get("norm"), Flattening.of(y0))
    if not torch.is_grad_enabled():
        return forward.solve(func, y0, t, event_fn)
    try:
        check_transforms("backsolve")
    except ValueError as error:
        error.add_note("Instead of odeint_adjoint use dise.torchdiffeq.odeint, which is gradient='direct'.")
        raise
    flattening, field = Flattening.of(y0), ForwardField(func, t.device.type, seek=params is None)
    flat = flattening.flat(y0)
    with torch.no_grad():
        values = forward.solve(field, flattening.state(flat.detach()), t.detach(), event_fn)
    field.end_forward()
    wanted = tuple(x for x in (field.params() if params is None else params) if x.requires_grad)
    backward = OdeintArguments(
        backward.method, backward.tolerances.for_augmented(y0, len(wanted)), {**backward.options, "norm": norm}
    )
    time, states = (None, values) if event_fn is None else values
    states = torch.cat([part.reshape(len(part), -1) for part in states], 1) if isinstance(states, tuple) else states
    states = _OdeintAdjoint.apply(field, flattening, backward, (time, states), flat, t, *wanted)  # type: ignore[no-untyped-call]
    if time is None or event_fn is None:
        return flattening.state(states)
    if states.requires_grad:
        time, end = _at_event(field, event_fn, flattening, (t[0], y0), time, states[-1])
        states = torch.stack([states[0], end])
    return time, flattening.state(states)


class ForwardField:
    """func in the forward solve, and as it was there in the backward solve.

    Args:
        func: the user's; its attributes are this object's, too.
        device: type of the state's device.
        seek: calculate the first value with a graph, which shows the tensors on which func depends.
    """

    def __init__(self, func: Callable[..., Any], device: str, *, seek: bool) -> None:
        self._func, self._context, self.complete = func, ForwardContext(func, device), seek
        self._seek = seek
        self._used: tuple[Tensor, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._func, name)

    def __call__(self, t: Tensor, y: State) -> Any:
        """func's value in the forward solve."""
        if not self._seek:
            return self._func(t, y)
        self._seek = False
        with torch.enable_grad():
            value = self._func(t, y)
        parts = value if isinstance(value, tuple | list) else (value,)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        self._used = tuple(x for part in tensors for x in dependencies(part, self._context.tensors).values())
        return type(value)(part.detach() for part in parts) if len(tensors) == len(parts) > 1 else tensors[0].detach()

    def end_forward(self) -> None:
        """Tell that the forward solve is over."""
        self._context.end_forward()

    def again(self, t: Tensor, y: State) -> Any:
        """func's value in the backward solve, with the forward solve's tensors and autocast."""
        self._context.check_unchanged(lambda: self._func(t, y))
        with self._context.restored():
            return self._func(t, y)

    def params(self) -> list[Tensor]:
        """The parameters of func, if it is a module, and the other tensors on which its first value depends."""
        own = list(self._func.parameters()) if isinstance(self._func, nn.Module) else []
        known = {id(x) for x in own}
        return own + list({id(x): x for x in self._used if id(x) not in known}.values())


def augmented_norm(norm: Any, state_norm: Norm | None, flattening: Flattening) -> Norm:
    """The norm of an augmented state (t, y, adjoint, *parameters) with y and adjoint flat.

    Args:
        norm: the option of `odeint_adjoint`: "seminorm", or a function of (t, *y, *adjoint, *parameters); None: the
            largest of all parts' norms.
        state_norm: of y and of the adjoint; None: the root mean square, of a tuple's tensors the largest.
        flattening: of the state.

    Raises:
        ValueError: another norm.
    """
    if state_norm is not None and not callable(state_norm):
        raise ValueError(f"options: expected a function as norm, got {state_norm!r}")
    of_state = state_norm or (lambda state: rms_norm(_rows(state)))

    def default(parts: tuple[Tensor, ...]) -> Tensor:
        t, y, adjoint, *params = parts
        norms = [t.abs(), *(torch.as_tensor(of_state(flattening.state(part))) for part in (y, adjoint))]
        if norm is None:
            norms += [rms_norm(_rows(param)) for param in params if param.numel()]
        return torch.stack([value.reshape(()) for value in norms]).amax()

    def given(parts: tuple[Tensor, ...]) -> Tensor:
        t, y, adjoint, *params = parts
        states = (flattening.state(part) for part in (y, adjoint))
        return norm((t, *(leaf for state in states for leaf in leaves(state)), *params))  # type: ignore[no-any-return]

    if norm is None or (isinstance(norm, str) and norm == "seminorm"):
        return default
    if not callable(norm):
        raise ValueError(f"adjoint_options: expected 'seminorm' or a function as norm, got {norm!r}")
    return given


def _rows(state: State) -> State:
    return state[None] if isinstance(state, Tensor) else tuple(part[None] for part in leaves(state))


class _AugmentedDynamics:
    """d/dt of (t's gradient, y, adjoint, parameters' gradients), with func's callbacks of the backward solve."""

    def __init__(self, field: ForwardField, flattening: Flattening, params: Sequence[Tensor], in_time: bool) -> None:
        self._field, self._flattening, self._params, self._in_time = field, flattening, params, in_time
        self._check = field.complete
        for name in CALLBACKS:
            if callable(callback := getattr(field, f"{name}_adjoint", None)):
                setattr(self, name, callback)

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """func of a flat y."""
        state = self._flattening.state(y)
        return self._flattening.flat(as_slope(self._field.again(t, state), state))

    def __call__(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        _, y, adjoint, *_ = state
        with torch.enable_grad():
            t, y = t.detach().requires_grad_(self._in_time), y.detach().requires_grad_()
            value = self.slope(t, y)
        inputs = ((t,) if self._in_time else ()) + (y, *self._params)
        if self._check:
            _check_uses(value, (t, *inputs))
            self._check = False
        products = _products(value, inputs, -adjoint)
        of_t = products[0] if self._in_time else torch.zeros_like(t)
        of_y, *of_params = products[self._in_time :]
        return of_t.to(y.dtype), value.detach(), of_y, *(_held(x, y.dtype) for x in of_params)


def _check_uses(value: Tensor, known: Sequence[Tensor]) -> None:
    """Raise if a value of func depends on a tensor that requires a gradient and would get none."""
    ids = {id(x) for x in known}
    others = [x for x in dependencies(value, known).values() if id(x) not in ids]
    if others:
        raise ValueError(
            f"adjoint_params: func uses a tensor of shape {tuple(others[0].shape)} that requires a gradient, but did "
            "not use it at the start of the forward solve, so its gradient is not calculated; name all such tensors"
        )


def _products(value: Tensor, inputs: Sequence[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    """The vector-Jacobian products cotangent·∂value/∂inputs; 0 where value does not depend on an input."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    cotangent = cotangent.to(value.dtype)
    # f may use tensors computed outside it; the next call needs their graph again, so retain it
    return torch.autograd.grad(value, inputs, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True)


def _held(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter's gradient as part of a state of this dtype; a complex one in a real state is pairs of numbers."""
    if gradient.is_complex() and not dtype.is_complex:
        gradient = torch.view_as_real(gradient)
    return gradient.to(dtype)


def _released(held: Tensor, param: Tensor) -> Tensor:
    """The parameter's gradient that `_held` made part of a state."""
    if param.is_complex() and not held.is_complex():
        return torch.view_as_complex(held).to(param.dtype)
    return (held.real if held.is_complex() and not param.is_complex() else held).to(param.dtype)


def _at_event(
    field: ForwardField,
    event_fn: Event,
    flattening: Flattening,
    start: tuple[Tensor, State],
    time: Tensor,
    end: Tensor,
) -> tuple[Tensor, Tensor]:
    """The event's time [] and state, with gradients by the implicit function theorem, as in `dise.solve`.

    dt* = −dg / (∂g/∂t + ∂g/∂y·f), where dg is the change of the event's function at the fixed time.
    """
    event = combined_event(event_fn, *start)
    if event is None:  # at the start
        return start[0], end
    time, y = time.detach(), end.detach()
    with torch.no_grad():
        slope_y = _AugmentedDynamics(field, flattening, (), False).slope(time.to(y.real.dtype), y)
    value = event(time, flattening.state(end))
    with torch.enable_grad():
        theta = torch.zeros_like(time).requires_grad_()
        moved = event(time + theta, flattening.state(y + theta * slope_y))
        (slope,) = torch.autograd.grad(moved, theta, materialize_grads=True)
    slope = torch.where(slope == 0, torch.finfo(slope.dtype).tiny, slope)
    change = -(value - value.detach()) / slope
    return time + change, end + change * slope_y


class _OdeintAdjoint(torch.autograd.Function):
    """The forward solve's states, with the backward solve's gradients.

    Its node in the graph has `adjoint_options`, as in torchdiffeq.
    """

    @staticmethod
    def forward(
        ctx: Any,
        field: ForwardField,
        flattening: Flattening,
        backward: OdeintArguments,
        solved: tuple[Tensor | None, Tensor],
        y0: Tensor,
        t: Tensor,
        *params: Tensor,
    ) -> Tensor:
        (event_time, states), ctx.backward_arguments = solved, backward
        ctx.field, ctx.flattening, ctx.adjoint_options = field, flattening, dict(backward.options)
        ctx.of_event = event_time is not None
        times = t if event_time is None else torch.stack([t[0].to(event_time), event_time])
        states = states.clone()
        ctx.save_for_backward(times, states, *params)
        return states

    @staticmethod
    @differentiable_once("odeint_adjoint has no second derivatives; use dise.torchdiffeq.odeint")
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        t, y, *params = ctx.saved_tensors
        in_time, way = ctx.needs_input_grad[5], ctx.backward_arguments
        dynamics = _AugmentedDynamics(ctx.field, ctx.flattening, params, in_time)
        arguments = OdeintArguments(way.method, way.tolerances, ctx.adjoint_options)
        state = (y.new_zeros(()), y[-1], grad_y[-1], *(torch.zeros_like(_held(x, y.dtype)) for x in params))
        grad_t = torch.zeros_like(t)
        for i in range(len(t) - 1, 0, -1):
            if in_time:
                moved = (dynamics.slope(t[i].to(y.real.dtype), y[i]).conj() * grad_y[i]).real.sum()
                grad_t[i] = moved
                state = (state[0] - moved, *state[1:])
            if bool(state[2].any()):  # without an adjoint there is nothing to integrate
                state = tuple(part[1] for part in arguments.solve(dynamics, state, t[i - 1 : i + 1].flip(0)))
            state = (state[0], y[i - 1], state[2] + grad_y[i - 1], *state[3:])
        grad_t[0] = state[0].real
        if ctx.of_event:  # t[1] is but a direction; the event's time has its gradient elsewhere
            grad_t[1] = 0
        of_params = (_released(held, param) for held, param in zip(state[3:], params, strict=True))
        return None, None, None, None, state[2], grad_t if in_time else None, *of_params
