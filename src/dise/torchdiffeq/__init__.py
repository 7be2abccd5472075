"""torchdiffeq's functions on this library's solver: who uses `torchdiffeq.odeint` changes one import.

    from dise.torchdiffeq import odeint  # or odeint_adjoint, odeint_event, odeint_dense

Signatures, shapes, methods' names and options are those of torchdiffeq 0.2.5; the whole state is one system with one
step size. What differs, and why:

- a step ends at the last time (torchdiffeq oversteps and interpolates), so f is never called outside of the span;
- failures raise `dise.SolveError`, and an option that a method does not have is an error, not a warning;
- times have the state's real dtype, not float64 always;
- save points are interpolated by the method's own dense output, of a fixed-step method's step as `interp` says;
- `odeint_adjoint` leaves the parameters' integrals out of the error test, as torchdiffeq's "seminorm" does;
- the time and state of an event are differentiable however they were asked for.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dise.integrate import Backsolve, State
from dise.torchdiffeq.task import Task, Tolerance

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]


def odeint(
    func: Callable[[Tensor, State], State],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[[Tensor, State], Tensor] | None = None,
) -> Any:
    """Solve dy/dt = func(t, y), y(t[0]) = y0, for y at all times t.

    Args:
        func: called with a scalar t and y in y0's structure and shapes; returns dy/dt in the same. Its attributes
            callback_step, callback_accept_step and callback_reject_step, if it has them, are called with (t, y, dt) of
            each attempted step, after it.
        y0: tensor of any shape, or a tuple of tensors.
        t: [T] times, strictly increasing or decreasing.
        rtol, atol: tolerances: numbers, tensors that broadcast to the state, of a tuple a tuple of these.
        method: "dopri5" (default), "dopri8", "tsit5", "bosh3", "fehlberg2", "adaptive_heun"; with fixed steps "euler",
            "midpoint", "heun2", "heun3", "rk4" (the 3/8 rule).
        options: of adaptive methods first_step, min_step, max_step, safety, ifactor, dfactor, max_num_steps, step_t,
            jump_t, norm, dtype; of fixed-step methods step_size or grid_constructor (default: steps from time to time),
            interp ("linear" or "cubic").
        event_fn: event_fn(t, y) → numbers; the solve goes from t[0] in the direction of t[1] until one of them is zero.

    Returns:
        states [T, ...] in y0's structure; with event_fn the pair of the event's time and the states [2, ...] at t[0]
        and there. Differentiable in y0, t, and what func uses.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described.
        dise.SolveError: the system could not be integrated.
    """
    task = Task(func, y0, t, method, Tolerance(rtol, atol), dict(options or {}), event_fn)
    return task.run("direct")


def odeint_adjoint(
    func: Callable[[Tensor, State], State],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[[Tensor, State], Tensor] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """`odeint` with gradients by the adjoint equation (`dise.Backsolve`): memory does not grow with the steps.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn: as of `odeint`. func's callback_step_adjoint,
            callback_accept_step_adjoint and callback_reject_step_adjoint are called with the pair (y, adjoint).
        adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: of the backward solve; default: the forward
            solve's. adjoint_options["norm"] is "seminorm" or nothing; options["norm"] measures y and its adjoint.
        adjoint_params: tensors that func uses and that want gradients; default: func's parameters.

    Returns:
        as `odeint`.

    Raises:
        ValueError: as `odeint`; func is no nn.Module and adjoint_params are not given; another method for going back
            without its options.
    """
    if adjoint_params is None and not isinstance(func, nn.Module):
        raise ValueError(
            "adjoint_params: func is no nn.Module whose parameters were known, so name the tensors that want "
            "gradients; () if there are none"
        )
    if adjoint_method not in (None, method) and options is not None and adjoint_options is None:
        raise ValueError("adjoint_options: adjoint_method is another than method, whose options may not be its own")
    params = tuple(
        func.parameters() if adjoint_params is None and isinstance(func, nn.Module) else adjoint_params or ()
    )
    task = Task(func, y0, t, method, Tolerance(rtol, atol), dict(options or {}), event_fn)
    tolerance = Tolerance(
        rtol if adjoint_rtol is None else adjoint_rtol, atol if adjoint_atol is None else adjoint_atol
    )
    chosen = dict((options if adjoint_options is None else adjoint_options) or {})
    if chosen.pop("norm", None) not in (None, "seminorm", task.options.get("norm")):
        raise ValueError("adjoint_options: expected the norm 'seminorm', which is what is done here anyway")
    if "norm" in task.options:
        chosen["norm"] = task.options["norm"]
    back = replace(task, method=adjoint_method or task.method, tolerance=tolerance, options=chosen, suffix="_adjoint")
    return task.run(Backsolve(params=params, integrator=back.integrator()))


def odeint_event(
    func: Callable[[Tensor, State], State],
    y0: State,
    t0: Tensor,
    *,
    event_fn: Callable[[Tensor, State], Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, State]:
    """The time and states [2, ...] (at t0 and there) of the first zero of event_fn(t, y) after t0, differentiable.

    Args:
        func, y0, event_fn: as of `odeint`.
        t0: a tensor of one time.
        reverse_time: go backwards.
        odeint_interface: `odeint` or `odeint_adjoint` of this module, which gets `kwargs`.
    """
    if not isinstance(t0, Tensor) or t0.numel() != 1:
        raise ValueError(
            f"t0: expected a tensor of one time, got {tuple(t0.shape) if isinstance(t0, Tensor) else t0!r}"
        )
    start = t0.reshape(1)
    t = torch.cat([start, start.detach() + (-1 if reverse_time else 1)])
    return odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)


def odeint_dense(
    func: Callable[[Tensor, State], State],
    y0: State,
    t0: float | Tensor,
    t1: float | Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[[float | Tensor], State]:
    """Solve from t0 to t1; the function of time (a number, or [T]) that is returned gives the state there."""
    ends = torch.stack([torch.as_tensor(x, dtype=torch.float64).reshape(()) for x in (t0, t1)])
    task = Task(func, y0, ends, method, Tolerance(rtol, atol), dict(options or {}))
    if (options or {}).keys() & {"step_t", "jump_t"}:
        raise ValueError("options: odeint_dense takes no step_t and jump_t")
    return task.solve(y0, ends[0], ends[1], "direct", dense=True).evaluate
