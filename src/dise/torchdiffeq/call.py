"""One call of torchdiffeq's functions, as one or more calls of `dise.solve`."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, cast

import torch
from torch import Tensor

from dise.integrate import IController, Integrator, Solution, State, solve
from dise.integrate.problem.state import Layout, leaves
from dise.integrate.stepping.grids import AbsoluteTimes, EqualLengths, Grid
from dise.integrate.stepping.tolerance import ErrorTest, frozen, max_norm
from dise.torchdiffeq.arguments import ErrorTolerances, as_slope, as_state, as_times, check_function, method_name
from dise.torchdiffeq.integrators import CALLBACKS, AdaptiveMethod, Callback, FixedMethod, StateNorm
from dise.torchdiffeq.methods import ADAMS, ADAMS_MAX_ORDER, ADAPTIVE, FIXED, has_fixed_steps, interpolated
from dise.torchdiffeq.options import TIMES, as_mapping, as_options, named_as_option
from dise.torchdiffeq.scipy_solver import scipy_odeint
from dise.torchdiffeq.slopes import (
    SLOPE,
    AdamsSlope,
    RungeKuttaSlope,
    SlopeMethod,
    SlopeRule,
    StepEnds,
    increments_agree,
)

_MAX_FIXED_STEPS = 20_000  # torchdiffeq's limit for fixed-step methods with an event
_MAX_ADAPTIVE_STEPS = 100_000  # for adaptive methods with an event torchdiffeq has no limit and may loop for ever

Event = Callable[[Tensor, State], Tensor]


def odeint_values(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    method: str | None,
    tolerances: ErrorTolerances,
    options: Mapping[str, Any] | None,
    event_fn: Event | None = None,
) -> Any:
    """The return value of `odeint`; gradients by backpropagation through the steps, none with SciPy's methods."""
    if event_fn is not None:
        check_function("event_fn", event_fn)
    given = as_mapping("options", options)
    if method_name(method) == "scipy_solver":
        if event_fn is not None:
            raise ValueError("event_fn: scipy_solver looks for none; use another method")
        return scipy_odeint(func, y0, t, tolerances, given)
    return OdeintCall(func, y0, t, method, tolerances, given, event_fn).run()


def combined_event(event_fn: Event, t0: Tensor, y0: State) -> Event | None:
    """One function of several: positive at the start, zero where the first of them is; None: one is zero at the start.

    Raises:
        TypeError: event_fn returned something else than a tensor of real numbers.
    """
    with torch.no_grad():
        value = event_fn(t0, y0)
    if not isinstance(value, Tensor):
        raise TypeError(f"event_fn: expected a tensor, got {type(value).__name__}")
    if not value.is_floating_point() or value.is_meta or value.numel() == 0:
        raise TypeError(f"event_fn: expected real numbers, got {value.dtype} of shape {tuple(value.shape)}")
    signs = value.sign()
    return None if bool((signs == 0).any()) else lambda t, y: (event_fn(t, y) * signs).min()


@dataclass(frozen=True)
class OdeintCall:
    """The arguments of one call of `odeint`, checked.

    Args:
        func, y0, t, method, options, event_fn: see `dise.torchdiffeq.odeint`.
        tolerances: its rtol and atol.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as `odeint` describes it.
    """

    func: Callable[..., Any]
    y0: State
    t: Tensor
    method: str | None
    tolerances: ErrorTolerances
    options: Mapping[str, Any]
    event_fn: Event | None = None

    def __post_init__(self) -> None:
        name = method_name(self.method)
        if name == "scipy_solver":
            raise ValueError("method: scipy_solver has no dense output")
        object.__setattr__(self, "method", name)
        check_function("func", self.func)
        object.__setattr__(self, "y0", as_state(self.y0))
        object.__setattr__(self, "options", as_options(name, self.options))
        object.__setattr__(self, "t", as_times(self.t, leaves(self.y0)[0], pair=self.event_fn is not None))
        if has_fixed_steps(name) and self._callbacks().keys() - {"callback_step"}:
            warnings.warn(f"{name} accepts all steps; of func's callbacks it calls callback_step only", stacklevel=4)

    def run(self) -> Any:
        """The return value of `odeint`."""
        return self._states() if self.event_fn is None else self._until(self.event_fn)

    def _states(self) -> State:
        """States at all times, in y0's structure."""
        # as in torchdiffeq, the values of a function: states in half precision are kept in their own dtype
        save = (lambda t, y: y) if leaves(self.y0)[0].dtype.itemsize == 2 else None
        return cast(State, self.solve(self.t[-1], save_at=self.t, save=save).saved)

    def _until(self, event_fn: Event) -> tuple[Tensor, State]:
        """The time of the first event, and the states at t[0] and there."""
        t0 = self.t[0]
        first_of_all = combined_event(event_fn, t0, self.y0)
        if first_of_all is None:
            return t0, _stack(self.y0, self.y0)
        endless = torch.full_like(t0, torch.inf if self.t[1] > t0 else -torch.inf).detach()
        solution = self.solve(endless, event=first_of_all)
        return solution.t.to(self.t), _stack(self.y0, solution.y)

    def solve(self, end: Tensor, **options: Any) -> Solution:
        """dise's solution from y0 at t[0] to `end`; further options as in `dise.solve`."""
        steps, jumps = self._stops()
        return solve(
            self._field,
            self.y0,
            self.t[0],
            end,
            self._integrator(),
            batched=False,
            step_at=steps,
            jump_at=jumps,
            **options,
        )

    def _integrator(self) -> Integrator:
        if self.method in ADAPTIVE:
            return self._adaptive()
        if self.event_fn is None:
            return self._fixed(self._grid, None)
        length = self.options.get("step_size")
        if length is None:
            raise ValueError("options: to look for an event, a fixed-step method needs the option step_size")
        grid = EqualLengths(length)
        return self._fixed(lambda ends: grid, _MAX_FIXED_STEPS)

    def _fixed(self, grid: Callable[[Tensor], Grid], max_steps: int | None) -> Integrator:
        method, interp, perturb = str(self.method), self.options.get("interp"), bool(self.options.get("perturb"))
        if method in FIXED and not perturb:
            tableau = interpolated(FIXED[method], interp)
            return FixedMethod(tableau=tableau, grid=grid, callbacks=self._callbacks(), max_steps=max_steps)
        ends = StepEnds(leaves(self.y0)[0].dtype.to_real() if perturb else None)
        return SlopeMethod(
            rule=partial(self._slope_rule, ends),
            tableau=interpolated(SLOPE, interp),
            ends=ends,
            grid=grid,
            callbacks=self._callbacks(),
            max_steps=max_steps,
        )

    def _slope_rule(self, ends: StepEnds, layout: Layout) -> SlopeRule:
        method = str(self.method)
        if method in FIXED:
            return RungeKuttaSlope(FIXED[method], ends)
        tolerances = {name: frozen(name, value) for name, value in self.tolerances.for_state(self.y0).items()}
        return AdamsSlope(
            implicit=ADAMS[method].implicit,
            max_order=self.options.get("max_order", ADAMS_MAX_ORDER),
            max_iters=self.options.get("max_iters", 4),
            agree=partial(increments_agree, ErrorTest(**tolerances, norm=max_norm), layout),
            ends=ends,
        )

    def _adaptive(self) -> Integrator:
        o, endless = self.options, self.event_fn is not None
        limit = o.get("max_num_steps", _MAX_ADAPTIVE_STEPS if endless else 2**31 - 1)
        norms = {"norm": StateNorm(o["norm"])} if "norm" in o else {}
        try:
            return AdaptiveMethod(
                table=ADAPTIVE[str(self.method)],
                callbacks=self._callbacks(),
                **self.tolerances.for_state(self.y0),
                first_step=o.get("first_step", "heuristic"),
                # torchdiffeq's limit is from each time to the next
                max_steps=limit if endless else limit * max(1, len(self.t) - 1),
                dt_min=o.get("min_step", 0.0),
                dt_max=o.get("max_step", torch.inf),
                accept_at_dt_min=o.get("min_step", 0.0) > 0,
                controller=IController(
                    safety=o.get("safety", 0.9), grow=o.get("ifactor", 10.0), shrink=o.get("dfactor", 0.2)
                ),
                **norms,
            )
        except (TypeError, ValueError) as error:
            raise named_as_option(error) from None

    def _callbacks(self) -> dict[str, Callback]:
        """func's callbacks by their names."""
        callbacks = {name: getattr(self.func, name, None) for name in CALLBACKS}
        return {name: callback for name, callback in callbacks.items() if callable(callback)}

    def _grid(self, ends: Tensor) -> Grid:
        """The fixed steps' ends over the whole span.

        Raises:
            ValueError: the option grid_constructor returned something else than times from t[0] to t[-1].
        """
        times = self._times(self.t)
        if not isinstance(times, Tensor) or times.ndim != 1 or len(times) < 2 or not torch.equal(times[[0, -1]], ends):
            raise ValueError("options: grid_constructor must return times [R] that start and end where t does")
        return AbsoluteTimes(times.to(ends))

    def _times(self, t: Tensor) -> Any:
        """The times at which fixed steps start and end, over the span of t: t itself, or as the options say."""
        step, make = self.options.get("step_size"), self.options.get("grid_constructor")
        if make is not None:
            return make(self.func, self.y0, t)
        if step is None:
            return t
        step = torch.as_tensor(step, dtype=t.dtype, device=t.device).copysign(t[-1] - t[0])
        parts = float(((t[-1] - t[0]) / step).detach())
        if not parts < 2**31:
            raise ValueError(f"options: step_size: {float(step):g} makes too many steps of the span from t[0] to t[-1]")
        number = math.ceil(parts)
        return torch.cat([t[:1] + torch.arange(number, dtype=t.dtype, device=t.device) * step, t[-1:]])

    def _stops(self) -> list[Tensor | None]:
        """The times in step_t and in jump_t."""
        given = [self.options.get(name) for name in TIMES]
        stops = [None if stop is None else stop.to(self.t) for stop in given]
        times = [stop for stop in stops if stop is not None]
        if times and len(torch.cat(times).unique()) < sum(map(len, times)):
            raise ValueError("options: step_t and jump_t must not have a time twice")
        return stops

    @property
    def _field(self) -> Callable[[Tensor, State], State]:
        """func, whose value may have fewer dimensions than y, and which may change its t, as in torchdiffeq."""

        @wraps(self.func, assigned=(), updated=())
        def field(t: Tensor, y: State) -> State:
            return cast(State, as_slope(self.func(t.clone(), y), y))

        return field


def _stack(first: State, last: State) -> State:
    """Two states of one structure, as one."""
    if isinstance(first, tuple):
        return tuple(torch.stack(pair) for pair in zip(first, last, strict=True))
    return torch.stack([cast(Tensor, first), cast(Tensor, last)])
