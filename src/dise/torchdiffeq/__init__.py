"""torchdiffeq's functions on dise's solver: to move from torchdiffeq, change one import.

    from dise.torchdiffeq import odeint  # or odeint_adjoint, odeint_event, odeint_dense

Signatures, shapes, names of methods and options are those of torchdiffeq 0.2.5; the whole state is one system with one
step size. The differences:

- a step ends at the last time (torchdiffeq oversteps and interpolates), so f is never called outside of the span;
- failures raise `dise.SolveError`;
- times are float64, whatever the option dtype says (float32 on devices without float64);
- adaptive methods interpolate save points by their own dense output; fixed-step methods as the option `interp` says;
- `odeint` and `odeint_adjoint` with `event_fn` differentiate the event's time and state, like `odeint_event`.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dise.integrate import State
from dise.torchdiffeq.adjoint import OdeintArguments, adjoint_values
from dise.torchdiffeq.arguments import (
    ErrorTolerances,
    as_one_time,
    as_real_tensor,
    check_function,
    method_name,
)
from dise.torchdiffeq.call import OdeintCall, odeint_values
from dise.torchdiffeq.methods import SOLVERS
from dise.torchdiffeq.options import as_mapping

__all__ = ["SOLVERS", "odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]


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
        func: called with a scalar t, in the state's real dtype, and y in y0's structure and shapes; returns dy/dt in
            the same. Its attributes callback_step, callback_accept_step and callback_reject_step, if it has them, are
            called with (t, y, dt) after each attempted step.
        y0: tensor of any shape, or a tuple of tensors.
        t: [T] times, strictly increasing or decreasing.
        rtol, atol: tolerances: numbers, or tensors that broadcast to the state; for a tuple state also a tuple of
            these.
        method: "dopri5" (default), "dopri8", "tsit5", "bosh3", "fehlberg2", "adaptive_heun"; with fixed steps "euler",
            "midpoint", "heun2", "heun3", "rk4" (the 3/8 rule), "explicit_adams", "implicit_adams" ("fixed_adams");
            "scipy_solver" for SciPy's, without gradients. `SOLVERS` has them by name. SciPy's names "RK45", "RK23" and
            "DOP853" stand for "dopri5", "bosh3" and "dopri8".
        options: for adaptive methods first_step, min_step, max_step, safety, ifactor, dfactor, max_num_steps, step_t,
            jump_t, norm, dtype; for fixed-step methods step_size or grid_constructor (default: one step from each time
            to the next), interp ("linear" or "cubic"), perturb (evaluate f beside the ends of steps, inside them), and
            for Adams methods max_order (default 12) and max_iters (default 4); for "scipy_solver" solver (a method of
            `scipy.integrate.solve_ivp`, default "LSODA"), min_step, max_step. Options that the method does not have
            are ignored with a warning.
        event_fn: event_fn(t, y) → numbers; the solve goes from t[0] in the direction of t[1] until one of them is zero.

    Returns:
        states [T, ...] in y0's structure; with event_fn the pair of the event's time and the states [2, ...] at t[0]
        and there. Differentiable in y0, t, and the tensors that func uses.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described.
        dise.SolveError: the system could not be integrated.
    """
    return odeint_values(func, y0, t, method, ErrorTolerances(rtol, atol), options, event_fn)


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
    """`odeint` with gradients by the adjoint equation: memory is independent of the number of steps.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn: see `odeint`. func's callback_step_adjoint,
            callback_accept_step_adjoint and callback_reject_step_adjoint are called with the backward solve's state
            (t's gradient, y, adjoint, *gradients of adjoint_params); a tuple y is one tensor there.
        adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: for the backward solve; default: the forward
            solve's. adjoint_options["norm"] is a function of the tuple (t, *y, *adjoint, *adjoint_params), or
            "seminorm": the largest of |t| and of the norms of y and its adjoint, each by options["norm"]; default: also
            of the parameters' root mean squares. Tolerances for each of y's tensors apply to its adjoint too, and the
            tightest one to the rest.
        adjoint_params: tensors that func uses and that get gradients; default: func's parameters, and whatever else its
            first value depends on.

    Returns:
        see `odeint`.

    Raises:
        ValueError: see `odeint`; also if func is no nn.Module and adjoint_params is missing, if adjoint_method differs
            from method and adjoint_options is missing, or if func uses a tensor that requires a gradient but did not at
            the start.
    """
    check_function("func", func)
    for name, value in {"method": method, "adjoint_method": adjoint_method}.items():
        method_name(value, name)
    given = as_mapping("options", options)
    if adjoint_params is None and not isinstance(func, nn.Module):
        raise ValueError(
            "adjoint_params: expected the tensors that get gradients, or () if there are none, since func is no "
            "nn.Module with parameters"
        )
    if adjoint_method not in (None, method) and options is not None and adjoint_options is None:
        raise ValueError("adjoint_options: expected the options of adjoint_method, which differs from method")
    params = None if adjoint_params is None else _tensors("adjoint_params", adjoint_params)
    chosen = _adjoint_options(given, adjoint_options, _parameters(func, params))
    tolerances = ErrorTolerances(
        rtol if adjoint_rtol is None else adjoint_rtol, atol if adjoint_atol is None else adjoint_atol
    )
    return adjoint_values(
        func,
        y0,
        t,
        event_fn,
        OdeintArguments(method, ErrorTolerances(rtol, atol), given),
        OdeintArguments(adjoint_method or method, tolerances, chosen),
        params,
    )


def _tensors(name: str, values: object) -> tuple[Tensor, ...]:
    """Tensors, from an iterable of them."""
    found = tuple(values) if isinstance(values, Iterable) and not isinstance(values, Tensor | str | bytes) else None
    if found is None or not all(isinstance(x, Tensor) for x in found):
        raise TypeError(f"{name}: expected an iterable of tensors, got {type(values).__name__}")
    return found


def _parameters(func: object, params: tuple[Tensor, ...] | None) -> Iterable[Tensor]:
    return params if params is not None else func.parameters() if isinstance(func, nn.Module) else ()


def _adjoint_options(
    options: Mapping[str, Any], adjoint_options: object, params: Iterable[Tensor]
) -> Mapping[str, Any]:
    """Options of the backward solve: the forward solve's without their norm, unless others are given."""
    if adjoint_options is None:
        return {name: value for name, value in options.items() if name != "norm"}
    chosen = as_mapping("adjoint_options", adjoint_options)
    if callable(chosen.get("norm")) and not all(x.requires_grad for x in params):
        warnings.warn("adjoint_params: the norm does not see those that require no gradient", stacklevel=3)
    return chosen


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
        func, y0, event_fn: see `odeint`.
        t0: a tensor of one time.
        reverse_time: integrate backwards in time.
        odeint_interface: `odeint` or `odeint_adjoint` of this module; called with `kwargs`.
    """
    if not isinstance(t0, Tensor) or t0.numel() != 1:
        raise ValueError(
            f"t0: expected a tensor of one time, got {tuple(t0.shape) if isinstance(t0, Tensor) else t0!r}"
        )
    check_function("odeint_interface", odeint_interface)
    if not isinstance(reverse_time, bool | int):
        raise TypeError(f"reverse_time: expected True or False, got {reverse_time!r}")
    start = as_real_tensor("t0", t0).reshape(1)
    t = torch.cat([start, start.detach() + (-1 if reverse_time else 1)])
    time, states = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    return time, states


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
    """Solve from t0 to t1 and return the solution as a function of time, a number or [T].

    Args:
        func, y0, rtol, atol, method, options: see `odeint`.
        t0, t1: start and end.
    """
    ends = torch.stack([as_one_time(name, t) for name, t in {"t0": t0, "t1": t1}.items()])
    call = OdeintCall(func, y0, ends, method, ErrorTolerances(rtol, atol), as_mapping("options", options))
    return call.solve(call.t[-1], dense=True).evaluate
