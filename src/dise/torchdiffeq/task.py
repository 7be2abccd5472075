"""One call of torchdiffeq's functions: its arguments, checked, and what this library's `solve` makes of them."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dise.integrate import IController, Integrator, Solution, State, solve
from dise.integrate.problem.state import leaves
from dise.torchdiffeq.methods import ADAPTIVE, ADAPTIVE_OPTIONS, FIXED, FIXED_OPTIONS, interpolated
from dise.torchdiffeq.stepping import AdaptiveMethod, Endless, Norm, OnGrid

_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")
_ENDLESS_STEPS = 100_000  # for adaptive ones it has none; a loop that never ends helps nobody


@dataclass(frozen=True)
class Tolerance:
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
class Task:
    """One call of odeint, checked."""

    func: Callable[..., Any]
    y0: State
    t: Tensor
    method: str | None
    tolerance: Tolerance
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
        tableau = interpolated(FIXED[str(self.method)], self.options.get("interp"))
        if self.event_fn is None or times is None:
            return OnGrid(tableau, self._grid, times, tell)
        step = self.options.get("step_size")
        if step is None:
            raise ValueError("options: to look for an event, a fixed-step method needs the option step_size")
        return Endless(tableau, float(step), tell)

    def _adaptive(self, first_step: float | None, tell: Mapping[str, Callable]) -> Integrator:
        o, endless = self.options, self.event_fn is not None
        limit = int(o.get("max_num_steps", _ENDLESS_STEPS if endless else 2**31 - 1))
        first_step = first_step if o.get("first_step") is None else float(o["first_step"])
        shortest = float(o.get("min_step", 0))
        return AdaptiveMethod(
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
            **({} if o.get("norm") is None else {"norm": Norm(o["norm"])}),
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
    known = ADAPTIVE_OPTIONS if method in ADAPTIVE else FIXED_OPTIONS
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
