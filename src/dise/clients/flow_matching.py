"""flow_matching's `ODESolver` on dise's solver; the library itself is not needed.

from dise.clients.flow_matching import ODESolver

solver = ODESolver(velocity_model)
x_1 = solver.sample(x_init, method="dopri5", label=labels)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dise.clients.velocity import ADAPTIVE, Velocity, by_time, check_points, check_time_per_row, last
from dise.flow import AugmentedField, ExactDivergence, HutchinsonDivergence
from dise.flow.base import log_densities
from dise.integrate import Integrator, State, solve
from dise.integrate.clock import clock_dtype
from dise.integrate.integrator import check_integrator
from dise.integrate.value import check_callable
from dise.torchdiffeq import odeint


class ODESolver:
    """Samples and likelihoods of a velocity model that is called as velocity_model(x=…, t=…, **extras).

    Methods with fixed steps, and `batched=False`, call the model with one time, a tensor []. Adaptive methods and
    dise's integrators give each row its own steps: they call it with a time per row, t [n], on the rows that need an
    evaluation. Extras that are tensors with as many rows as x are given row by row, other ones as they are. The first
    call checks that the model can be called so.

    Args:
        velocity_model: a module or function.
        integrator: how to solve, in place of a method's name, from noise at t = 0 to data at 1; for the way back, a
            method with a time grid reverses it.
        batched: False gives the whole batch one step size.

    Raises:
        TypeError: an argument (named in the message) is not as described.
    """

    def __init__(
        self, velocity_model: Callable[..., Tensor], integrator: Integrator | None = None, *, batched: bool = True
    ) -> None:
        check_callable("velocity_model", velocity_model, "a function or module")
        check_integrator(integrator, optional=True)
        self.velocity_model, self.integrator, self.batched = velocity_model, integrator, batched
        self.checked: set[object] = set()  # kinds of calls that the model takes

    def sample(
        self,
        x_init: Tensor,
        step_size: float | None = None,
        method: str = "euler",
        atol: float = 1e-5,
        rtol: float = 1e-5,
        time_grid: Tensor | Sequence[float] = (0.0, 1.0),
        return_intermediates: bool = False,
        enable_grad: bool = False,
        **model_extras: Any,
    ) -> Tensor:
        """State at the end of time_grid of x_init [B, ...] at its start, or the states [T, B, ...] at all its times.

        Args:
            x_init: points at the first time.
            step_size: of methods with fixed steps; None: one step from each time of the grid to the next.
            method: a method of `dise.torchdiffeq.odeint`; not used with an integrator.
            atol, rtol: tolerances of adaptive methods.
            time_grid: [T] increasing or decreasing times.
            return_intermediates: return the states at all times.
            enable_grad: compute gradients.
            model_extras: further arguments of the model.

        Raises:
            TypeError, ValueError, SolveError: see `dise.solve` and `dise.torchdiffeq.odeint`.
        """
        problem = _Problem(self, x_init, time_grid, method, step_size, atol, rtol, model_extras)
        with torch.set_grad_enabled(enable_grad):
            return problem.solve(problem.field, x_init, problem.rows, keep=return_intermediates)

    def compute_likelihood(
        self,
        x_1: Tensor,
        log_p0: Callable[[Tensor], Tensor],
        step_size: float | None = None,
        method: str = "euler",
        atol: float = 1e-5,
        rtol: float = 1e-5,
        time_grid: Tensor | Sequence[float] = (1.0, 0.0),
        return_intermediates: bool = False,
        exact_divergence: bool = False,
        enable_grad: bool = False,
        **model_extras: Any,
    ) -> tuple[Tensor, Tensor]:
        """Points at t = 0 of data x_1 [B, ...] at t = 1, or at all times [T, B, ...], and log p(x_1) [B] in nats.

        Args:
            x_1: data, of any shape.
            log_p0: log-density of the noise, points [B, ...] → [B].
            step_size, method, atol, rtol, return_intermediates, enable_grad, model_extras: as in `sample`.
            time_grid: [T] decreasing times from 1 to 0.
            exact_divergence: the exact divergence, else Hutchinson's estimate with one Rademacher direction per row.

        Raises:
            TypeError, ValueError, SolveError: as in `sample`; log_p0 returns another shape.
        """
        problem = _Problem(self, x_1, time_grid, method, step_size, atol, rtol, model_extras)
        if problem.times[0] != 1 or problem.times[-1] != 0:
            raise ValueError(f"time_grid: expected times from 1 to 0, got {problem.times.tolist()}")
        augmented = AugmentedField(
            problem.field, ExactDivergence() if exact_divergence else HutchinsonDivergence(), x_1.ndim - 1
        )
        rows = (*problem.rows, *augmented.probes(x_1))
        start = x_1, x_1.new_zeros(len(x_1), 1)
        with torch.set_grad_enabled(enable_grad):
            points, change = problem.solve(augmented, start, rows, keep=return_intermediates)
            source, total = (points[-1], change[-1]) if return_intermediates else (points, change)
            return points, log_densities("log_p0", log_p0, source, x_1.ndim - 1) - total.squeeze(-1)


class _Problem:
    """The arguments of one call: the field, its rows, the times and the method."""

    def __init__(
        self,
        solver: ODESolver,
        x: Tensor,
        time_grid: Tensor | Sequence[float],
        method: str,
        step_size: float | None,
        atol: float,
        rtol: float,
        extras: Mapping[str, Any],
    ) -> None:
        self.times = _times(time_grid, x)
        self.method, self.step_size, self.atol, self.rtol = method, step_size, atol, rtol
        self.integrator = solver.integrator
        if self.integrator is None and method in ADAPTIVE:
            self.integrator = ADAPTIVE[method](rtol=rtol, atol=atol)
        if self.integrator is not None and step_size is not None:
            raise ValueError(f"step_size: expected None with {self.integrator}, got {step_size!r}")
        if self.integrator is not None and self.times[-1] < self.times[0]:
            self.integrator = self.integrator.mapped(lambda method: method.reversed())
        self.batched = solver.batched and self.integrator is not None  # other methods have one time for the batch
        names = tuple(name for name, extra in extras.items() if self.batched and _has_rows(extra, x))
        self.rows = tuple(extras[name] for name in names)
        self.field = Velocity(solver.velocity_model, _call, extras, names)
        key = (names, x.shape[1:], x.dtype, getattr(solver.velocity_model, "training", False))
        if self.batched and key not in solver.checked:
            check_time_per_row(self.field, x, self.times[0], self.times[-1], self.rows)
            solver.checked.add(key)

    def solve(self, f: Callable[..., Any], start: State, rows: tuple[Tensor, ...], *, keep: bool) -> Any:
        """The state at the last time, or at all times [T, B, ...]."""
        if self.integrator is None:
            options = {} if self.step_size is None else {"step_size": self.step_size}
            states = odeint(
                lambda t, state: f(t, state, *rows), start, self.times,
                method=self.method, atol=self.atol, rtol=self.rtol, options=options,
            )  # fmt: skip
            return states if keep else last(states)
        solution = solve(
            f,
            start,
            self.times[0],
            self.times[-1],
            self.integrator,
            args=() if self.batched else rows,
            sample_args=rows if self.batched else (),
            save_at=self.times if keep else None,
            batched=self.batched,
        )
        return by_time(solution.saved, batched=self.batched) if keep else solution.y


def _call(model: Callable[..., Tensor], x: Tensor, t: Tensor, extras: Mapping[str, Any]) -> Tensor:
    return model(x=x, t=t, **extras)


def _has_rows(extra: object, x: Tensor) -> bool:
    return isinstance(extra, Tensor) and extra.ndim > 0 and len(extra) == len(x)


def _times(time_grid: Tensor | Sequence[float], x: Tensor) -> Tensor:
    """[T] times, in float64 where the device has it."""
    check_points("x", x)
    times = torch.as_tensor(time_grid, dtype=clock_dtype(x.device), device=x.device)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"time_grid: expected at least two times [T], got shape {list(times.shape)}")
    return times
