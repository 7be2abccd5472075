"""`resume`: continue a finished solve."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dise.integrate.backsolve import Backsolve
from dise.integrate.integrator import Integrator, check_integrator
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration
from dise.integrate.problem.run import Run
from dise.integrate.problem.state import State, mapped
from dise.integrate.solution import Solution
from dise.integrate.solve import solve


def resume(
    solution: Solution, f: Callable[..., State], t1: float | Tensor, integrator: Integrator, **options: Any
) -> Solution:
    """Continue a solve from the times that it reached to t1, with its states, step sizes and, where known, f(t, y).

    The two parts need as many evaluations of f as one solve to the second t1, except where the end of the first part
    truncated a step: no first step is chosen again, and f is not evaluated again at the joint if the method evaluated
    it there. With gradients on it is, unless the known value has one: it may come from a solve without gradients.

    Args:
        solution: the start: `y` at `t`, with steps of length `dt`. A failed sample starts from its last good state.
        f: vector field, see `dise.solve`; it must be the one that the solution was made with if `solution.k1` is known.
        t1: new end, a number or [B].
        integrator: of the second part; an adaptive method begins with the solution's step sizes.
        options: see `dise.solve`; `batched` must be that of the solution, and is by default.

    Returns:
        the `Solution` of the second part only; gradients flow into the first part.

    Raises:
        TypeError, ValueError, SolveError: see `dise.solve`.
    """
    if not isinstance(solution, Solution):
        raise TypeError(f"solution: expected what dise.solve returned, got {type(solution).__name__}")
    check_integrator(integrator)
    batched = solution.status.ndim == 1
    if options.setdefault("batched", batched) is not batched:
        raise ValueError(f"batched: expected {batched}, like the solution's, got {options['batched']!r}")
    gradient = options.get("gradient", "direct")
    if isinstance(gradient, Backsolve) or (isinstance(gradient, str) and gradient == "backsolve"):
        backsolve = gradient if isinstance(gradient, Backsolve) else Backsolve()
        # the backward solve starts elsewhere, so it cannot use the solution's step sizes
        options["gradient"] = replace(backsolve, integrator=backsolve.integrator or integrator)
    if torch.is_grad_enabled():
        solution = _outside_of_inference_mode(solution)
    return solve(f, solution.y, solution.t, t1, _Resumed(integrator, solution), **options)


def _outside_of_inference_mode(solution: Solution) -> Solution:
    """The solution with copies of what inference mode made, which autograd could not keep."""

    def copied(x: Tensor) -> Tensor:
        return x.clone() if x.is_inference() else x

    k1 = None if solution.k1 is None else mapped(copied, solution.k1)
    return replace(solution, y=mapped(copied, solution.y), t=copied(solution.t), dt=copied(solution.dt), k1=k1)


@dataclass(frozen=True, eq=False)
class _Resumed(Integrator):
    """An integrator that starts with the step sizes of a solution, and with its k1 where that is known."""

    integrator: Integrator
    solution: Solution

    def __post_init__(self) -> None:
        object.__setattr__(self, "chooses", self.integrator.chooses)

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Integrate with the solution's step sizes, and with its k1 if that is known for all samples."""
        samples = problem.sample
        dt = torch.atleast_1d(self.solution.dt)
        dt = dt if samples is None else dt[samples]
        k1 = None if self.solution.k1 is None else problem.layout.pack(self.solution.k1)
        if k1 is not None and samples is not None:
            k1 = k1[samples]
        # without a gradient of its own k1 would silently leave out that of the joint's f
        if k1 is not None and torch.is_grad_enabled() and not k1.requires_grad:
            k1 = None
        known = k1 is not None and bool(k1.isfinite().all())
        result = yield from self.integrator.integrate(replace(problem, dt=dt, k1=k1 if known else None), run)
        return result._replace(nfe=result.nfe - 1) if known and result.nfe is not None else result
