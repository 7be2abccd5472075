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

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dise.integrate import (
    Adaptive,
    Backsolve,
    ButcherTableau,
    IController,
    Integrator,
    Solution,
    State,
    Step,
    methods,
    solve,
)
from dise.integrate.control import Controller, FixedSteps, Verdict
from dise.integrate.dopri8 import DOPRI8
from dise.integrate.loop import integrate
from dise.integrate.problem import Integration, Problem, leaves

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]

# Heun's method of order 3: Hairer, Nørsett, Wanner, Table II.1.1.
_HEUN3 = ButcherTableau(c=(0.0, 1 / 3, 2 / 3), a=((), (1 / 3,), (0.0, 2 / 3)), b=(1 / 4, 0.0, 3 / 4), order=3)

ADAPTIVE: dict[str, ButcherTableau] = {
    "dopri8": DOPRI8,
    "dopri5": methods.DOPRI5,
    "tsit5": methods.TSIT5,
    "bosh3": methods.BOSH3,
    "fehlberg2": methods.FEHLBERG2,
    "adaptive_heun": methods.HEUN,
}
FIXED: dict[str, ButcherTableau] = {
    "euler": methods.EULER,
    "midpoint": methods.MIDPOINT,
    "heun2": methods.HEUN,
    "heun3": _HEUN3,
    "rk4": methods.RK38,
}
_ADAPTIVE_OPTIONS = (
    "first_step", "min_step", "max_step", "safety", "ifactor", "dfactor", "max_num_steps", "step_t", "jump_t", "norm",
    "dtype",
)  # fmt: skip
_FIXED_OPTIONS = ("step_size", "grid_constructor", "interp", "perturb", "norm")
_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")

_ENDLESS_FIXED_STEPS = 20_000  # torchdiffeq's limit for fixed-step methods that look for an event
_ENDLESS_STEPS = 100_000  # for adaptive ones it has none; a loop that never ends helps nobody


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
    task = _Task(func, y0, t, method, _Tolerance(rtol, atol), dict(options or {}), event_fn)
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
    task = _Task(func, y0, t, method, _Tolerance(rtol, atol), dict(options or {}), event_fn)
    tolerance = _Tolerance(
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
    task = _Task(func, y0, ends, method, _Tolerance(rtol, atol), dict(options or {}))
    if (options or {}).keys() & {"step_t", "jump_t"}:
        raise ValueError("options: odeint_dense takes no step_t and jump_t")
    return task.solve(y0, ends[0], ends[1], "direct", dense=True).evaluate


@dataclass(frozen=True)
class _Tolerance:
    """rtol and atol, as torchdiffeq takes them."""

    rtol: Any
    atol: Any

    def of(self, y0: State) -> dict[str, Any]:
        """As this library takes them for such a state."""
        return {"rtol": self._each("rtol", self.rtol, y0), "atol": self._each("atol", self.atol, y0)}

    @staticmethod
    def _each(name: str, value: Any, y0: State) -> Any:
        several = isinstance(value, tuple | list) or getattr(value, "ndim", 0) > 0
        parts = tuple(value) if several else (value,)
        if any(isinstance(part, Tensor) and part.requires_grad for part in parts):
            raise ValueError(f"{name}: a tolerance has no gradient, so it must not require one")
        if not several or isinstance(y0, Tensor):
            return value
        if len(parts) != len(y0):
            raise ValueError(f"{name}: expected one for each of the state's {len(y0)} tensors, got {len(parts)}")
        return parts


@dataclass(frozen=True)
class _Task:
    """One call of odeint, checked."""

    func: Callable[..., Any]
    y0: State
    t: Tensor
    method: str | None
    tolerance: _Tolerance
    options: dict[str, Any]
    event_fn: Callable[..., Tensor] | None = None
    suffix: str = ""  # of the callbacks' names

    def __post_init__(self) -> None:
        name = "dopri5" if self.method is None else self.method
        if name not in ADAPTIVE and name not in FIXED:
            raise ValueError(f"method: expected one of {', '.join([*ADAPTIVE, *FIXED])}, got {self.method!r}")
        object.__setattr__(self, "method", name)
        if not callable(self.func):
            raise TypeError(f"func: expected a function of (t, y), got {type(self.func).__name__}")
        parts = self.y0 if isinstance(self.y0, tuple) else (self.y0,)
        if isinstance(self.y0, dict) or not parts or not all(isinstance(part, Tensor) for part in parts):
            raise TypeError(f"y0: expected a tensor or a tuple of tensors, got {type(self.y0).__name__}")
        first = leaves(self.y0)[0]
        _check_options(name, self.options, first)
        object.__setattr__(self, "t", _checked_times(self.t, first, pair=self.event_fn is not None))

    def run(self, gradient: Any) -> Any:
        """What `odeint` returns."""
        if self.event_fn is not None:
            return self._until_event(gradient)
        saved: list[State] = []
        y, first_step = self.y0, None
        for a, b in self._pieces(self.t[-1]):
            inside = (self.t - a) * (self.t - b) <= 0
            if saved:
                inside = inside & (self.t != a)
            times = self.t[inside]
            solution = self.solve(y, a, b, gradient, first_step=first_step, save_at=times)
            saved.append(solution.saved)  # type: ignore[arg-type]
            y, first_step = solution.y, abs(float(solution.dt.detach()))
        return _stacked(saved, torch.cat)

    def _until_event(self, gradient: Any) -> tuple[Tensor, State]:
        event_fn, t0 = self.event_fn, self.t[0]
        with torch.no_grad():
            value = event_fn(t0, self.y0)  # type: ignore[misc]
        if not isinstance(value, Tensor):
            raise TypeError(f"event_fn: expected a tensor, got {type(value).__name__}")
        signs = value.sign()
        if bool((signs == 0).any()):
            return t0, _stacked([self.y0, self.y0], torch.stack)
        # the first of several: all are positive at the start, so the smallest crosses zero first
        event = lambda t, y: (event_fn(t, y) * signs).min()  # type: ignore[misc]  # noqa: E731
        y, first_step = self.y0, None
        endless = torch.full_like(t0, torch.inf if self.t[1] > t0 else -torch.inf).detach()
        for a, b in self._pieces(endless):
            solution = self.solve(y, a, b, gradient, first_step=first_step, event=event)
            if bool(solution.event):
                break
            y, first_step = solution.y, abs(float(solution.dt.detach()))
        return solution.t.to(self.t), _stacked([self.y0, solution.y], torch.stack)

    def solve(
        self, y: State, a: Tensor, b: Tensor, gradient: Any, *, first_step: float | None = None, **options: Any
    ) -> Solution:
        """This library's solve from time a to b."""
        field, integrator = self._field(a, b), self.integrator(first_step, self.t)
        return solve(field, y, a, b, integrator, batched=False, gradient=gradient, **options)

    def _pieces(self, end: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Where solves start and end: at t[0], `end`, and each of step_t and jump_t between."""
        given = [self.options[name] for name in ("step_t", "jump_t") if self.options.get(name) is not None]
        start = self.t[0]
        stops = torch.cat([torch.as_tensor(stop).reshape(-1).to(self.t) for stop in given]) if given else self.t[:0]
        if len(stops.unique()) < len(stops):
            raise ValueError("options: step_t and jump_t must not have a time twice")
        stops = stops[(stops - start) * (stops - end) < 0].sort(descending=bool(end < start)).values
        return list(pairwise([start, *stops, end]))

    def _field(self, a: Tensor, b: Tensor) -> Callable[[Tensor, State], State]:
        """func, which within a piece sees a jump's time from its own side."""
        jumps = self.options.get("jump_t")
        jumps = self.t[:0] if jumps is None else torch.as_tensor(jumps).to(self.t)
        low = torch.nextafter(a.detach(), b.detach()) if bool((jumps == a).any()) else None
        high = torch.nextafter(b.detach(), a.detach()) if bool((jumps == b).any()) else None

        def field(t: Tensor, y: State) -> State:
            if low is not None:
                t = torch.where(t == a, t + (low - t).detach(), t)
            if high is not None:
                t = torch.where(t == b, t + (high - t).detach(), t)
            value = self.func(t, y)
            return tuple(value) if isinstance(self.y0, tuple) and isinstance(value, list) else value

        return field

    def integrator(self, first_step: float | None = None, times: Tensor | None = None) -> Integrator:
        """The method with its options; `first_step` unless the options have one, `times` of fixed steps."""
        names = {name: getattr(self.func, name + self.suffix, None) for name in _CALLBACKS}
        tell = {name: call for name, call in names.items() if callable(call)}
        return self._fixed(times, tell) if self.method in FIXED else self._adaptive(first_step, tell)

    def _fixed(self, times: Tensor | None, tell: Mapping[str, Callable]) -> Integrator:
        if tell.keys() - {"callback_step"}:
            warnings.warn(f"{self.method} accepts all steps; it calls callback_step alone", stacklevel=6)
        tableau = _interpolated(FIXED[str(self.method)], self.options.get("interp"))
        if self.event_fn is None or times is None:
            return _OnGrid(tableau, self._grid, times, tell)
        step = self.options.get("step_size")
        if step is None:
            raise ValueError("options: to look for an event, a fixed-step method needs the option step_size")
        return _Endless(tableau, float(step), tell)

    def _adaptive(self, first_step: float | None, tell: Mapping[str, Callable]) -> Integrator:
        o, endless = self.options, self.event_fn is not None
        limit = int(o.get("max_num_steps", _ENDLESS_STEPS if endless else 2**31 - 1))
        first_step = first_step if o.get("first_step") is None else float(o["first_step"])
        shortest = float(o.get("min_step", 0))
        return _Adaptive(
            table=ADAPTIVE[str(self.method)],
            tell=tell,
            **self.tolerance.of(self.y0),
            first_step="heuristic" if first_step is None else first_step,
            max_steps=limit if endless else limit * max(1, len(self.t) - 1),  # torchdiffeq's is from time to time
            dt_min=shortest,
            dt_max=float(o.get("max_step", torch.inf)),
            accept_at_dt_min=shortest > 0,
            controller=IController(
                safety=float(o.get("safety", 0.9)),
                grow=float(o.get("ifactor", 10.0)),
                shrink=float(o.get("dfactor", 0.2)),
            ),
            **({} if o.get("norm") is None else {"norm": _Norm(o["norm"])}),
        )

    def _grid(self, t: Tensor) -> Tensor:
        """The times at which fixed steps begin and end."""
        step, make = self.options.get("step_size"), self.options.get("grid_constructor")
        if step is None:
            return t if make is None else make(self.func, self.y0, t)
        if make is not None:
            raise ValueError("options: step_size and grid_constructor say the same twice; give one")
        step = torch.as_tensor(step, dtype=t.dtype, device=t.device).copysign(t[-1] - t[0])
        number = int(torch.ceil((t[-1] - t[0]) / step))
        return torch.cat([t[:1] + torch.arange(number, dtype=t.dtype, device=t.device) * step, t[-1:]])


def _stacked(states: list[State], how: Callable[..., Tensor]) -> State:
    if isinstance(states[0], tuple):
        return tuple(how(parts) for parts in zip(*states, strict=True))
    return how(states)


def _check_options(method: str, options: Mapping[str, Any], y0: Tensor) -> None:
    known = _ADAPTIVE_OPTIONS if method in ADAPTIVE else _FIXED_OPTIONS
    for name in options:
        if name not in known:
            raise ValueError(f"options: {method} has {', '.join(known)}, got {name!r}")
    dtype = options.get("dtype")
    if dtype is not None and torch.promote_types(dtype, y0.dtype.to_real()) != y0.dtype.to_real():
        raise ValueError(f"options: times have the state's real dtype, {y0.dtype.to_real()}; for {dtype} cast y0")
    if options.get("perturb"):
        raise ValueError("options: perturb is not supported; with an adaptive method name discontinuities by jump_t")
    if options.get("interp") not in (None, "linear", "cubic"):
        raise ValueError(f"options: interp is 'linear' or 'cubic', got {options['interp']!r}")
    step = options.get("step_size")
    if step is not None and not float(step) > 0:
        raise ValueError(f"options: step_size: expected a positive number, got {float(step):g}")
    norm = options.get("norm")
    if norm is not None and not callable(norm):
        raise ValueError(f"options: expected a function as norm, got {norm!r}")


def _checked_times(t: object, y0: Tensor, *, pair: bool) -> Tensor:
    """[T] times in the real dtype of y0 and on its device."""
    if not isinstance(t, Tensor) or not t.is_floating_point():
        raise TypeError(
            f"t: expected a tensor of real times, got {t.dtype if isinstance(t, Tensor) else type(t).__name__}"
        )
    if t.ndim != 1 or len(t) == 0:
        raise ValueError(f"t: expected shape [T], got {tuple(t.shape)}")
    steps = t.diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        raise ValueError("t: expected strictly increasing or decreasing times")
    if pair and len(t) != 2:
        raise ValueError(f"t: expected two times with event_fn, the start and another one on its way, got {len(t)}")
    return t.to(device=y0.device, dtype=torch.promote_types(y0.dtype.to_real(), torch.float32))


class _Norm:
    """A norm of torchdiffeq's, state → number, on errors [1, ...] → [1]."""

    def __init__(self, norm: Callable[[State], Tensor]) -> None:
        self.norm = norm

    def __call__(self, error: Any) -> Tensor:
        state = tuple(part[0] for part in error) if isinstance(error, tuple) else error[0]
        value = torch.as_tensor(self.norm(state))
        if value.numel() != 1:
            raise ValueError(f"options: expected a norm that returns one number, got shape {tuple(value.shape)}")
        return value.abs().reshape(1)


class _Told:
    """A controller that tells callbacks of the steps it judges."""

    def __init__(self, control: Controller, tell: Mapping[str, Callable]) -> None:
        self._control, self._tell = control, tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)

    def judge(self, step: Step, *rest: Any) -> Verdict:
        verdict = self._control.judge(step, *rest)
        layout, outcome = rest[-1].layout, "callback_accept_step" if bool(verdict.accept) else "callback_reject_step"
        for name in ("callback_step", outcome):
            if name in self._tell:
                self._tell[name](layout.time(step.t), layout.unpack(step.y), layout.time(step.dt.abs()))
        return verdict


@dataclass(frozen=True, kw_only=True)
class _Adaptive(Adaptive):
    """An adaptive method of a given tableau, and whom it tells of its steps."""

    table: ButcherTableau
    tell: Mapping[str, Callable]

    @property
    def tableau(self) -> ButcherTableau:  # type: ignore[override]
        return self.table

    @property
    def control(self) -> Controller:
        return _Told(super().control, self.tell) if self.tell else super().control


@dataclass(frozen=True, eq=False)
class _OnGrid(Integrator):
    """Steps from time to time of a grid: that of `times`, or of a span's two ends."""

    tableau: ButcherTableau
    grid: Callable[[Tensor], Tensor]
    times: Tensor | None
    tell: Mapping[str, Callable]

    def integrate(self, problem: Problem) -> Integration:
        """Step one system."""
        ends = torch.cat([problem.t0, problem.t1])
        grid = self.grid(ends if self.times is None else self.times)
        if not isinstance(grid, Tensor) or grid.ndim != 1 or len(grid) < 2 or not bool((grid[[0, -1]] == ends).all()):
            raise ValueError("options: grid_constructor must return times [R] that start and end where t does")
        control = _Grid(len(grid) - 1, grid=grid.to(ends))
        return integrate(self.tableau, _Told(control, self.tell) if self.tell else control, problem)


@dataclass(frozen=True, eq=False)
class _Grid(FixedSteps):
    grid: Tensor | None = None

    def first_step(self, problem: Problem, k1: Tensor, order: int) -> Any:
        return self.grid[1:2] - self.grid[:1], 0  # type: ignore[index]
        yield

    def end(self, index: int, t: Tensor, dt: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        return self.grid[index + 1 : index + 2]  # type: ignore[index]


@dataclass(frozen=True, eq=False)
class _Endless(Integrator):
    """Equal steps until an event."""

    tableau: ButcherTableau
    step: float
    tell: Mapping[str, Callable]

    def integrate(self, problem: Problem) -> Integration:
        """Step one system."""
        control = _EqualSteps(step=self.step)
        return integrate(self.tableau, _Told(control, self.tell) if self.tell else control, problem)


@dataclass(frozen=True, eq=False)
class _EqualSteps(FixedSteps):
    rounds: None = None  # type: ignore[assignment]
    max_steps: int = _ENDLESS_FIXED_STEPS  # type: ignore[assignment]
    step: float = 1.0

    def first_step(self, problem: Problem, k1: Tensor, order: int) -> Any:
        return torch.full_like(problem.t0, self.step).copysign(problem.t1), 0
        yield

    def end(self, index: int, t: Tensor, dt: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        return t + torch.full_like(t, self.step).copysign(t1)


def _interpolated(tableau: ButcherTableau, interp: str | None) -> ButcherTableau:
    """The method with torchdiffeq's interpolation between fixed steps: linear, or Hermite's cubic.

    The cubic needs f at the step's end, a further stage, which is the next step's first.
    """
    if interp != "cubic":
        return replace(tableau, interpolant=tuple((b,) for b in tableau.b), b_err=None)
    b = (*tableau.b, 0.0)
    rows = [[0.0, 3 * weight, -2 * weight] for weight in b]
    rows[0] = [1.0, rows[0][1] - 2, rows[0][2] + 1]
    rows[-1] = [0.0, -1.0, 1.0]
    return ButcherTableau(
        c=(*tableau.c, 1.0),
        a=(*tableau.a, tableau.b),
        b=b,
        order=tableau.order,
        interpolant=tuple(tuple(row) for row in rows),
    )
