"""torchdiffeq's method "scipy_solver": `scipy.integrate.solve_ivp`, forward only. SciPy is imported when it is used."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dise.integrate import State
from dise.integrate.problem.state import Layout, leaves
from dise.torchdiffeq.arguments import ErrorTolerances, as_options, as_slope, as_state, as_times
from dise.torchdiffeq.integrators import CALLBACKS


def scipy_odeint(
    func: Callable[[Tensor, State], State],
    y0: State,
    t: Tensor,
    tolerances: ErrorTolerances,
    options: Mapping[str, Any],
) -> State:
    """The states [T, ...] at all times t, without gradients; computed in double precision on the CPU.

    Raises:
        ImportError: SciPy is not installed.
        TypeError, ValueError: an argument (named in the message) is not as `dise.torchdiffeq.odeint` describes it.
        RuntimeError: SciPy's solver failed.
    """
    try:
        from scipy.integrate import solve_ivp
    except ImportError as error:
        raise ImportError("method: scipy_solver needs SciPy; install it, e.g. by `pip install scipy`") from error
    y0 = as_state(y0)
    times = as_times(t, leaves(y0)[0], pair=False).detach()
    options = as_options("scipy_solver", options)
    if any(hasattr(func, name) for name in CALLBACKS):
        warnings.warn("scipy_solver calls none of func's callbacks", stacklevel=3)
    layout = Layout.of(y0, batched=False)
    start = layout.pack(y0).detach()[0]
    if len(times) == 1:
        return layout.unpack_saved(start[None, None])

    def numpy_func(time: float, y: Any) -> Any:
        state = layout.unpack(torch.as_tensor(y).to(start)[None])
        with torch.no_grad():
            value = func(torch.as_tensor(time).to(start.device, layout.dtype.to_real()), state)
        return _numpy(layout.pack(as_slope(value, state))[0])

    method = options.get("solver", "LSODA")
    least = {"min_step": float(options.get("min_step", 0.0))} if method == "LSODA" else {}
    at = times.double().cpu().numpy()
    solution = solve_ivp(
        numpy_func,
        (at[0], at[-1]),
        _numpy(start),
        method=method,
        t_eval=at,
        max_step=float(options.get("max_step", torch.inf)),
        **{name: _flat(value, y0) for name, value in tolerances.for_state(y0).items()},
        **least,
    )
    if not solution.success:
        raise RuntimeError(f"scipy_solver: {method} failed: {solution.message}")
    return layout.unpack_saved(torch.as_tensor(solution.y.T).to(start)[None])


def _numpy(x: Tensor) -> Any:
    x = x.detach().cpu()
    return (x.float() if x.dtype.itemsize == 2 else x).numpy()  # SciPy itself goes over to double precision


def _flat(tolerance: Any, y0: State) -> Any:
    """A tolerance as a number, or as an array with an entry per component of the state."""
    if isinstance(tolerance, int | float):
        return tolerance
    parts = leaves(y0)
    each = tolerance if isinstance(tolerance, tuple) and not isinstance(y0, Tensor) else (tolerance,) * len(parts)
    columns = [torch.as_tensor(x).cpu().double().expand(part.shape) for x, part in zip(each, parts, strict=True)]
    return torch.cat([column.reshape(-1) for column in columns]).numpy()
