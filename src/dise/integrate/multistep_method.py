"""`Multistep`: methods of a fixed number of evaluations of f, as integrators."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from dise.integrate.argument_types import checked_arguments
from dise.integrate.clock import real_dtype
from dise.integrate.integrator import Integrator
from dise.integrate.integrators import FixedStep
from dise.integrate.multistep import adams, exponential
from dise.integrate.multistep.exponential import Variant
from dise.integrate.multistep.grids import TimeGrid, uniform
from dise.integrate.multistep.paths import Path
from dise.integrate.multistep.table import MultistepTable, Update
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration, Request, Result
from dise.integrate.problem.run import Run
from dise.integrate.runge_kutta.step import finite_rows, unscaled_sum
from dise.integrate.status import Status
from dise.integrate.tracing import known_finite


@dataclass(frozen=True)
class Multistep(Integrator):
    """A method whose states are linear in the start and in earlier values of f: the samplers of flows and diffusion.

    One evaluation of f per step, where a Runge–Kutta method of the same order takes two to four: with a small, fixed
    budget of evaluations, multistep methods are usually the most accurate. Made by the class methods, or from a table
    of one's own, e.g. one fitted to a model:

        Multistep.adams(8, order=2)
        Multistep.adams(grids.sway(8), order=2)
        Multistep.dpmpp2m(grids.karras(10), path)

    The table has no steps to interpolate or to measure: save points, dense output, events, `accumulate`, `record` and
    `progress` are refused, and `Solution.error` is NaN. Every sample needs the same number of evaluations. A sample
    where f is not finite fails at its start.

    Args:
        table: evaluation times and weights.
        name: for printing.
        reverse: table of the solve from the end to the start, for a flow's densities; None if there is none. The
            methods of class that know their grid make it.
    """

    one_way: ClassVar[bool] = True

    table: MultistepTable
    name: str = field(default="Multistep", compare=False)
    reverse: MultistepTable | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.table, MultistepTable):
            raise TypeError(f"table: expected a MultistepTable, got {type(self.table).__name__}")
        if self.reverse is not None and not isinstance(self.reverse, MultistepTable):
            raise TypeError(f"reverse: expected a MultistepTable, got {type(self.reverse).__name__}")

    @classmethod
    @checked_arguments
    def adams(cls, grid: int | TimeGrid, order: int = 2, *, corrector: bool = False) -> "Multistep":
        """The Adams–Bashforth method of order 1 to 4 with exact weights for the grid's steps.

        NFE is the number of steps, and 2 more with order 4; see `dise.integrate.multistep.adams` for the first steps.

        Args:
            grid: number of equal steps, or their ends.
            order: 1 (Euler's method) to 4; 2 or 3 with a corrector.
            corrector: correct each step but the last by the Adams–Moulton method of the same order, which costs no
                evaluation: f at the predicted state, which the next step needs, corrects the step that led there.
                The error constant of order 2 falls from 5/12 to 1/12; steps of stiff fields must be shorter.
        """
        if corrector:
            table, name = adams.adams_bashforth_moulton, f"ABM{order}({grid})"
        else:
            table, name = adams.adams_bashforth, f"AB{order}({grid})"
        return cls._both_ways(lambda grid: table(grid, order), grid, name)

    @classmethod
    @checked_arguments
    def ipndm(cls, grid: int | TimeGrid, order: int = 4) -> "Multistep":
        """Adams–Bashforth weights of equal steps on any grid, with lower orders in the first steps (iPNDM)."""
        return cls._both_ways(lambda grid: adams.ipndm(grid, order), grid, f"iPNDM{order}({grid})")

    @classmethod
    @checked_arguments
    def dpmpp2m(cls, grid: int | TimeGrid, path: Path) -> "Multistep":
        """DPM-Solver++(2M), for the velocity field of a path from noise to data.

        Its weights depend on the path's times, so the table is for one span alone, that of the grid or else the path's.
        """
        return cls(exponential.dpmpp2m(_grid(grid), path), f"DPM++2M({grid})")

    @classmethod
    @checked_arguments
    def unipc(
        cls,
        grid: int | TimeGrid,
        path: Path,
        order: int = 2,
        variant: Variant = "bh2",
        *,
        lower_final_order: bool = True,
    ) -> "Multistep":
        """UniPC of order 1 to 3 with its corrector, for the velocity field of a path; the span as in `dpmpp2m`.

        See `dise.integrate.multistep.exponential.unipc` for the arguments.
        """
        table = exponential.unipc(_grid(grid), path, order, variant, lower_final_order=lower_final_order)
        return cls(table, f"UniPC{order}({grid})")

    @classmethod
    def of(cls, integrator: FixedStep) -> "Multistep":
        """A fixed-step Runge–Kutta method as a table: the same states up to rounding."""
        if not isinstance(integrator, FixedStep):
            raise TypeError(f"integrator: expected a fixed-step method such as RK4(steps=4), got {integrator!r}")
        tableau, name = integrator.tableau, f"Multistep.of({integrator})"
        return cls._both_ways(lambda grid: adams.runge_kutta(tableau, grid), integrator.steps, name)

    @classmethod
    def _both_ways(cls, table: Callable[[TimeGrid], MultistepTable], grid: int | TimeGrid, name: str) -> "Multistep":
        """The method with its tables on a grid and on the reversed grid."""
        there = table(_grid(grid))
        return cls(there, name, table(grid.reversed()) if isinstance(grid, TimeGrid) else there)

    def reversed(self) -> "Multistep":
        """The method with the table of the way back; itself, if its table is for one span alone."""
        if self.reverse is None and self.table.span is not None:
            return self  # the solve compares the span
        if self.reverse is None:
            raise ValueError(
                f"integrator: {self} is for solves from noise to data only, and a density goes back; use "
                "Multistep.adams, or give the table of the way back as reverse="
            )
        return self if self.reverse is self.table else replace(self, table=self.reverse, reverse=self.table)

    @property
    def uses_first_stage(self) -> bool:
        """Whether the table's first time is that of the start."""
        return self.table.times[0] == 0

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Compute the table's states one after the other."""
        self._check(problem, run)
        table = self.table
        length = _length(problem)
        states: dict[int, Tensor] = {0: problem.y0}
        values: dict[int, Tensor] = {}
        for k, (time, update) in enumerate(zip(_times(table, problem), table.updates, strict=True)):
            if k == 0 and self.uses_first_stage:
                values[k] = yield from problem.first_stage()
            elif run.checkpoint and run.field is not None:
                values[k] = _recomputed(Request(None, time, states[k]), problem, run)
            else:
                values[k] = yield Request(None, time, states[k])
            if table.multiples[k] != 0:
                values[k] = torch.add(values[k], states[k], alpha=table.multiples[k])
            states[k + 1] = _state(update, states, length, values)
            for base in table.last_used[k]:
                del states[base]
            if table.quadrature is None:
                for i in table.values_last_used[k]:
                    del values[i]
        end = states[table.evaluations]
        if table.quadrature is not None and len(problem.layout.sizes) > 1:
            end = _with_integrals(end, problem, length, values, table.quadrature)
        unused = problem.k1 is not None and not self.uses_first_stage  # the policy needed it
        return _result(problem, end, table.evaluations, unused, end_only=run.end_only)

    def __str__(self) -> str:
        return self.name if self.name != "Multistep" else f"Multistep({self.table.evaluations} evaluations)"

    def _check(self, problem: Problem, run: Run) -> None:
        """Raise a ValueError if the table cannot give what the solve asks for."""
        if run.observers or run.events is not None or run.accumulate is not None:
            raise ValueError(
                "save_at, dense, event, accumulate, record, progress: a Multistep method has no steps to interpolate "
                "or to measure; use a Runge–Kutta method, e.g. Midpoint(steps=8)"
            )
        if problem.breaks is not None:
            raise ValueError(
                "jump_at, step_at: a Multistep method steps where its table says; use a Runge–Kutta method"
            )
        if self.table.scaled and self.table.quadrature is None and len(problem.layout.shapes) > 1:
            raise ValueError(
                "integrator: this Multistep table scales the state, which is wrong for a tuple or dict state such as "
                "points with their log-density; use Multistep.adams"
            )
        problem.check_span(self.table.span)


def _grid(grid: int | TimeGrid) -> TimeGrid:
    return grid if isinstance(grid, TimeGrid) else uniform(grid)


def _times(table: MultistepTable, problem: Problem) -> Iterable[Tensor]:
    """[n] time of each evaluation, computed in the clock's dtype and rounded to y's."""
    t0, t1, dtype = problem.t0, problem.t1, real_dtype(problem.y0)
    if problem.span is not None:
        start, end = problem.span
        # one at a time: what lives longer may lie between f's own tensors and split the memory that they use again
        times = ((1 - fraction) * start + fraction * end for fraction in table.times)
        return (torch.full(t0.shape, time, dtype=dtype, device=t0.device) for time in times)
    if torch.compiler.is_compiling():  # a tensor of fractions would be a constant of the graph
        return [torch.lerp(t0, t1, fraction).to(dtype) for fraction in table.times]
    fractions = torch.tensor(table.times, dtype=t0.dtype, device=t0.device).unsqueeze(1)
    return torch.lerp(t0, t1, fractions).to(dtype).unbind()


def _recomputed(request: Request, problem: Problem, run: Run) -> Tensor:
    """f as requested; its intermediate values are computed again in the backward pass."""
    from torch.utils.checkpoint import checkpoint  # it imports torch's compiler when called

    def answer(y: Tensor) -> Tensor:
        return run.answer(problem, request._replace(y=y))

    value: Tensor = checkpoint(answer, request.y, use_reentrant=False)
    return value


def _length(problem: Problem) -> float | Tensor:
    """Length of the spans, a number if it is the same for all samples, else [n, 1]."""
    if problem.span is not None:
        return problem.span[1] - problem.span[0]
    return (problem.t1 - problem.t0).to(real_dtype(problem.y0)).unsqueeze(1)


def _state(update: Update, states: dict[int, Tensor], length: float | Tensor, values: dict[int, Tensor]) -> Tensor:
    """scale · base + length Σ weights · values."""
    base = states[update.base]
    base = base if update.scale == 1 else base * update.scale
    if update.sum is None:
        return base
    total = unscaled_sum(update.sum, values)
    if isinstance(length, Tensor):
        return torch.addcmul(base, length, total, value=update.sum.scale)
    return torch.add(base, total, alpha=length * update.sum.scale)


def _with_integrals(
    end: Tensor, problem: Problem, length: float | Tensor, values: dict[int, Tensor], quadrature: tuple[float, ...]
) -> Tensor:
    """The end, with the parts of the state after the first integrated by weights of their own."""
    points = problem.layout.sizes[0]
    total = sum(weight * value[:, points:] for weight, value in zip(quadrature, values.values(), strict=True))
    return torch.cat([end[:, :points], problem.y0[:, points:] + length * total], dim=1)


def _result(problem: Problem, y: Tensor, steps: int, unused: int, *, end_only: bool) -> Result:
    """The end of the solve, with `unused` evaluations beside the steps'; non-finite samples stay at their start."""
    finite = known_finite(y)
    if finite and end_only:
        return Result.of_end(y, problem.t1)
    number = torch.full_like(problem.t0, steps, dtype=torch.int64)
    status, t, accepted = torch.full_like(number, int(Status.SUCCESS)), problem.t1, number
    if not finite:
        rows = finite_rows(y)
        status, accepted = torch.where(rows, status, int(Status.NON_FINITE)), number * rows
        y, t = torch.where(rows[:, None], y, problem.y0), torch.where(rows, t, problem.t0)
    zero = torch.zeros_like(problem.t0, dtype=real_dtype(y))
    return Result(
        y=y,
        t=t,
        nfe=number + unused if unused else number,
        n_steps=number,
        n_accepted=accepted,
        error=torch.full_like(zero, torch.nan),
        status=status,
        dt=problem.t1 - problem.t0,
        accumulated=zero,
    )
