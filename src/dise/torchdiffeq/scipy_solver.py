"""torchdiffeq's method "scipy_solver": `scipy.integrate.solve_ivp`, forward only. SciPy is imported when it is used."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dise.integrate import State
from dise.integrate.arguments import check_state
from dise.integrate.problem.field import BoundField, call
from dise.integrate.problem.state import Layout, leaves
from dise.torchdiffeq.arguments import ErrorTolerances, as_real_tensor, as_slope, as_state, as_times, check_function
from dise.torchdiffeq.integrators import CALLBACKS
from dise.torchdiffeq.options import as_options

SOLVER_NAMES = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")


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
        from scipy.integrate import OdeSolver, solve_ivp
    except ImportError as error:
        raise ImportError("method: scipy_solver needs SciPy; install it, e.g. by `pip install scipy`") from error
    check_function("func", func)
    y0 = as_state(y0)
    check_state("y0", y0, batched=False)
    times = as_times(t, leaves(y0)[0], pair=False).detach()
    options = as_options("scipy_solver", options)
    method = _checked_solver(options.get("solver", "LSODA"), OdeSolver)
    if any(hasattr(func, name) for name in CALLBACKS):
        warnings.warn("scipy_solver calls none of func's callbacks", stacklevel=3)
    layout = Layout.of(y0, batched=False)
    start = layout.pack(y0).detach()[0]
    if not start.isfinite().all():
        raise ValueError("y0: expected finite numbers")
    if len(times) == 1:
        return layout.unpack_saved(start[None, None])

    field = BoundField(lambda t, y: as_slope(func(t.clone(), y), y), layout, (), ())

    def numpy_func(time: float, y: Any) -> Any:
        with torch.no_grad():
            value = call(
                field,
                torch.tensor([time], dtype=layout.dtype.to_real(), device=start.device),
                torch.as_tensor(y).to(start)[None],
            )
        return _numpy(value[0])

    least = {"min_step": options.get("min_step", 0.0)} if method == "LSODA" else {}
    at = times.double().cpu().numpy()
    solution = solve_ivp(
        numpy_func,
        (at[0], at[-1]),
        _numpy(start),
        method=method,
        t_eval=at,
        max_step=options.get("max_step", torch.inf),
        **{name: _flat(name, value, y0) for name, value in tolerances.for_state(y0).items()},
        **least,
    )
    if not solution.success:
        raise RuntimeError(f"scipy_solver: {method} failed: {solution.message}")
    return layout.unpack_saved(torch.as_tensor(solution.y.T).to(start)[None])


def _checked_solver(solver: Any, base: type) -> Any:
    """A solver's name, or a subclass of SciPy's base class of solvers."""
    named = isinstance(solver, str) and solver in SOLVER_NAMES
    if not named and not (isinstance(solver, type) and issubclass(solver, base)):
        raise ValueError(f"options: solver: expected one of {', '.join(SOLVER_NAMES)}, got {solver!r}")
    return solver


def _numpy(x: Tensor) -> Any:
    x = x.detach().cpu()
    return (x.float() if x.dtype.itemsize == 2 else x).numpy()  # SciPy itself goes over to double precision


def _flat(name: str, tolerance: Any, y0: State) -> Any:
    """A tolerance as a number, or as an array with an entry per component of the state."""
    parts = leaves(y0)
    each = tolerance if isinstance(tolerance, tuple) and not isinstance(y0, Tensor) else (tolerance,) * len(parts)
    values = [as_real_tensor(name, x).cpu().double() for x in each]
    if not all(bool((value >= 0).all()) for value in values):
        raise ValueError(f"{name}: expected numbers of at least 0, got {tolerance!r}")
    if not isinstance(tolerance, tuple) and values[0].ndim == 0:
        return float(values[0])
    try:
        columns = [x.expand(part.shape) for x, part in zip(values, parts, strict=True)]
    except RuntimeError:
        raise ValueError(f"{name}: expected values that broadcast to the state, got {tolerance!r}") from None
    return torch.cat([column.reshape(-1) for column in columns]).numpy()
