"""One attempted step in the open, and going on from where a solve ended."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dise.integrate.adjoint import Backsolve
from dise.integrate.integrators import Integrator
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration
from dise.integrate.problem.run import Run
from dise.integrate.problem.state import State
from dise.integrate.solution import Solution
from dise.integrate.solve import solve


def resume(
    solution: Solution, f: Callable[..., State], t1: float | Tensor, integrator: Integrator, **options: Any
) -> Solution:
    """Go on from where a solve ended, to t1: with its state, its step sizes and, where known, its f(t, y).

    Two parts cost no more than one solve to the second t1, but for a step that the end of the first made shorter: no
    first step is chosen anew, and f is not evaluated again at the joint if the method knows it there.

    Args:
        solution: where to start: `y` at `t`, with steps of `dt`. Of a failed sample its last good state.
        f: vector field, as of `dise.solve`; k1 is taken over only if it is the one that the solution was made with.
        t1: new end, a number or [B].
        integrator: how to go on; a method that chooses its steps begins with the solution's.
        options: of `dise.solve`; `batched` is the solution's.

    Returns:
        the `Solution` of the second part alone; gradients flow into the first.

    Raises:
        TypeError, ValueError, SolveError: as of `dise.solve`.
    """
    if not isinstance(solution, Solution):
        raise TypeError(f"solution: expected what dise.solve returned, got {type(solution).__name__}")
    if not isinstance(integrator, Integrator):
        raise TypeError(f"integrator: expected an integrator such as dise.Dopri5(), got {integrator!r}")
    batched = solution.status.ndim == 1
    if options.setdefault("batched", batched) is not batched:
        raise ValueError(f"batched: expected {batched}, as the solution was made, got {options['batched']!r}")
    gradient = options.get("gradient", "direct")
    if gradient == "backsolve" or isinstance(gradient, Backsolve):
        how = gradient if isinstance(gradient, Backsolve) else Backsolve()
        options["gradient"] = replace(how, integrator=how.integrator or integrator)  # the way back is another start
    return solve(f, solution.y, solution.t, t1, _Resumed(integrator, solution), **options)


@dataclass(frozen=True, eq=False)
class _Resumed(Integrator):
    """An integrator that begins where a solution ended."""

    integrator: Integrator
    solution: Solution

    def __post_init__(self) -> None:
        object.__setattr__(self, "chooses", self.integrator.chooses)

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Integrate with the solution's step sizes, and with its k1 if it is known of all samples."""
        samples = problem.sample
        dt = torch.atleast_1d(self.solution.dt)
        dt = dt if samples is None else dt[samples]
        k1 = None if self.solution.k1 is None else problem.layout.pack(self.solution.k1)
        if k1 is not None and samples is not None:
            k1 = k1[samples]
        known = k1 is not None and bool(k1.isfinite().all())
        result = yield from self.integrator.integrate(replace(problem, dt=dt, k1=k1 if known else None), run)
        return result._replace(nfe=result.nfe - 1) if known else result
