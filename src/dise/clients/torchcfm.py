"""torchdyn's `NeuralODE`, as torchcfm's examples use it, on dise's solver; neither library is needed.

from dise.clients.torchcfm import NeuralODE

node = NeuralODE(torch_wrapper(model), solver="dopri5", atol=1e-4, rtol=1e-4)
states = node.trajectory(x, t_span=torch.linspace(0, 1, 100))
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dise.clients.velocity import ADAPTIVE, Velocity, by_time, check_points, check_time_per_row
from dise.integrate import RK4, Euler, FixedStep, Integrator, Midpoint, Multistep, grids, solve
from dise.integrate.clock import clock_dtype
from dise.integrate.integrator import check_integrator
from dise.integrate.value import check_callable

FIXED: Mapping[str, Callable[..., FixedStep]] = {"euler": Euler, "midpoint": Midpoint, "rk4": RK4, "rk-4": RK4}
GRADIENTS: Mapping[str, Literal["direct", "backsolve"]] = {"autograd": "direct", "adjoint": "backsolve"}


class NeuralODE(nn.Module):
    """Trajectories of a velocity model that is called as vector_field(t, x), or vector_field(x).

    Fixed-step solvers, whose steps end at the times of t_span, and `batched=False` call it with one time, a tensor [].
    Adaptive solvers and dise's integrators give each row its own steps, with a time per row, t [n]; the first call
    checks that the model takes them. torchcfm's `torch_wrapper`, which takes one time only, is unwrapped.

    Args:
        vector_field: a module or function.
        solver: "dopri5" ("dp5"), "tsit5", "dopri8", "bosh3", "adaptive_heun"; with fixed steps "euler", "midpoint",
            "rk4".
        atol, rtol: tolerances of adaptive solvers.
        sensitivity: "autograd" keeps the steps for gradients, "adjoint" integrates backwards.
        integrator: how to solve, in place of a solver's name.
        batched: False gives the whole batch one step size.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described.
    """

    def __init__(
        self,
        vector_field: Callable[..., Tensor],
        solver: str = "tsit5",
        *,
        atol: float = 1e-3,
        rtol: float = 1e-3,
        sensitivity: str = "autograd",
        integrator: Integrator | None = None,
        batched: bool = True,
    ) -> None:
        super().__init__()
        check_callable("vector_field", vector_field, "a function or module")
        check_integrator(integrator, optional=True)
        if sensitivity not in GRADIENTS:
            raise ValueError(f"sensitivity: expected one of {', '.join(GRADIENTS)}, got {sensitivity!r}")
        solver = {"dp5": "dopri5"}.get(solver, solver)
        if integrator is None and solver not in FIXED and solver not in ADAPTIVE:
            raise ValueError(f"solver: expected one of {', '.join([*ADAPTIVE, *FIXED])}, got {solver!r}")
        self.vf, self.solver, self.atol, self.rtol, self.sensitivity = vector_field, solver, atol, rtol, sensitivity
        self.integrator, self.batched = integrator, batched
        self._checked: set[object] = set()

    def forward(self, x: Tensor, t_span: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The times [T] (default 0 and 1) and the states [T, B, ...] at them."""
        t_span = torch.tensor([0.0, 1.0]) if t_span is None else t_span
        return t_span, self.trajectory(x, t_span)

    def trajectory(self, x: Tensor, t_span: Tensor) -> Tensor:
        """States [T, B, ...] at the times t_span [T], from x [B, ...] at the first, with gradients.

        Raises:
            TypeError, ValueError, SolveError: see `dise.solve`.
        """
        check_points("x", x)
        times = torch.as_tensor(t_span, dtype=clock_dtype(x.device), device=x.device)
        if times.ndim != 1 or len(times) < 2:
            raise ValueError(f"t_span: expected at least two times [T], got shape {list(times.shape)}")
        integrator, batched = self._integrator(times)
        field = Velocity(self.vf, _caller(self.vf), {}, ())
        key = (x.shape[1:], x.dtype, getattr(self.vf, "training", False))
        if batched and key not in self._checked:
            check_time_per_row(field, x, times[0], times[-1], ())
            self._checked.add(key)
        ends_only = len(times) == 2
        if isinstance(integrator, Multistep) and not ends_only:
            raise ValueError("t_span: a Multistep method has the two ends only; use one with steps to interpolate")
        solution = solve(
            field,
            x,
            times[0],
            times[-1],
            integrator,
            save_at=None if ends_only else times,
            batched=batched,
            gradient=GRADIENTS[self.sensitivity],
        )
        states = torch.stack([x, cast(Tensor, solution.y)]) if ends_only else by_time(solution.saved, batched=batched)
        return cast(Tensor, states)

    def _integrator(self, times: Tensor) -> tuple[Integrator, bool]:
        """The integrator, and whether rows have their own times."""
        if self.integrator is None and self.solver in FIXED:
            return FIXED[self.solver](grids.of(times.tolist())), False
        integrator = self.integrator or ADAPTIVE[self.solver](rtol=self.rtol, atol=self.atol)
        if times[-1] < times[0]:
            integrator = integrator.mapped(lambda method: method.reversed())
        return integrator, self.batched


def _caller(model: Any) -> Callable[..., Tensor]:
    """How the model is called: by x and t in one tensor, by x alone, or by t and x."""
    kind = type(model)
    if kind.__name__ == "torch_wrapper" and kind.__module__.partition(".")[0] == "torchcfm":
        return lambda model, x, t, extras: model.model(torch.cat([x, t.expand(len(x))[:, None]], 1))
    function = model.forward if isinstance(model, nn.Module) else model
    names = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    positional = [p for p in names if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) == 1 and len(names) == 1:
        return lambda model, x, t, extras: model(x)
    return lambda model, x, t, extras: model(t, x)
