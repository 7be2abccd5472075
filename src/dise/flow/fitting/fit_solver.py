"""`fit_solver`: a multistep table fitted to a flow."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from dise.flow.fitting.classical import classical
from dise.flow.fitting.descent import descend
from dise.flow.fitting.draws import DrawConditions, Draws, check_drawable, draw
from dise.flow.fitting.errors import SolverErrors, solver_errors
from dise.flow.fitting.parameters import Rows, TableParameters
from dise.flow.fitting.quadrature import fitted_quadrature
from dise.flow.fitting.report import SolverFit
from dise.flow.fitting.unroll import FittingLoss, Loss
from dise.flow.flow import Flow
from dise.integrate import Dopri5, FixedStep, Integrator, Multistep
from dise.integrate.value import check_above, check_whole

_CHOICE = 256  # draws on which classical tables are compared
_CURVATURE = 8  # draws for the curvature
_TOLERANCES = (1.0, 0.1, 0.01)  # of the loss "log", in units of the errors at the start
FEWEST_DRAWS = 16  # draws


def fit_solver(
    flow: Flow,
    n: int,
    *,
    density: bool = False,
    condition: DrawConditions | None = None,
    draws: int = 4096,
    start: Multistep | FixedStep | Sequence[Multistep | FixedStep] | None = None,
    rows: Rows = "consistent",
    loss: Loss = "mse",
    tolerance: float | None = None,
    reference: Integrator | None = None,
    iterations: int = 100,
    batch: int = 1024,
    seed: int = 0,
) -> SolverFit:
    """Fit evaluation times and weights of a solver with n evaluations of f to a flow.

    Noise is drawn and integrated by a tight reference once; the table's states, a differentiable function of its times
    and weights, are then fitted to the ends by L-BFGS. Half of the draws are fitted on, a quarter stops the fit, and a
    quarter, fresh, decides between the fitted table and the one where the fit started, so that the result is not worse
    there. The flow itself is not changed:

        fit = dise.fit_solver(flow, 8)
        print(fit)
        flow.block.integrator = fit.solver

    The solver is for the flow's span and direction alone, and other solves with it are refused: it is fitted either to
    samples or to densities.

    Args:
        flow: with `batched=True`. Put in evaluation mode during the fit.
        n: number of evaluations of f.
        density: fit a solver for `log_prob`, from data to noise. Points are the flow's own samples. The divergence's
            integral has weights of its own, from a least-squares fit; divergences are exact, whatever the flow's.
        condition: number of draws → their conditions (see `Flow`), one for each, drawn as in use; called once.
        draws: number of draws, at least 16.
        start: one or several methods of n evaluations to start from, of which the best is taken; None: `classical(n)`.
        rows: "consistent": constants are integrated exactly; "free": any weights, factors of the start, and another
            time of the first evaluation, so that a policy's evaluation at the start is one more.
        loss: "mse", or "log", which is less sensitive to hard draws (see `FittingLoss`).
        tolerance: of samples, with the loss "log": errors far below it are as good as none, which leaves the table to
            the draws that are near it. The root mean square distance of `OutputDeviation`.
        reference: for the ends; None: Dopri5(rtol=1e-6, atol=1e-6).
        iterations: at most this many, in tens.
        batch: draws per call of f; bounds the memory.
        seed: of noise and conditions; torch's global generators are left as they were.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described.
        SolveError: the reference could not integrate a draw.

    Source: Shaul et al., Bespoke Non-Stationary Solvers, 2024 (arXiv:2403.01329).
    """
    began = time.perf_counter()
    check_drawable(flow, condition, reference, seed)
    _check(flow, n, density, draws, rows, loss, tolerance, iterations, batch)
    starts = _starts(start, n, _span(flow, density), rows, density)
    reference = Dopri5(rtol=1e-6, atol=1e-6) if reference is None else reference
    with torch.inference_mode(False), _in_evaluation_mode(flow):
        drawn = draw(flow, draws, condition, reference, density=density, batch=batch, seed=seed)
        fit = fit_to_draws(
            flow, drawn, starts, rows=rows, loss=loss, tolerance=tolerance, iterations=iterations, batch=batch
        )
    return replace(fit, seconds=time.perf_counter() - began)


def fit_to_draws(
    flow: Flow,
    drawn: Draws,
    starts: Sequence[Multistep],
    *,
    rows: Rows,
    loss: Loss,
    tolerance: float | None,
    iterations: int,
    batch: int,
) -> SolverFit:
    """Fit a table to draws that are solved already, from the best of the starts.

    Args:
        flow: in evaluation mode.
        drawn: at least 16; for densities if they have a log-density.
        starts: tables of the same number of evaluations.
        rows, loss, tolerance, iterations, batch: see `fit_solver`.
    """
    began, number, density = time.perf_counter(), len(drawn), drawn.log_prob is not None
    parts = drawn[: number // 2], drawn[number // 2 : number * 3 // 4], drawn[number * 3 // 4 :]
    fit = _Fit(flow, *parts, _span(flow, density), density, rows, loss, tolerance, batch)
    first = fit.best(starts, parts[0][:_CHOICE]) if len(starts) > 1 else starts[0]
    fitted, done = fit.run(first, iterations)
    before, after = (fit.errors(solver, fit.fresh) for solver in (first, fitted))
    better = after.mean(loss) < before.mean(loss)
    return SolverFit(
        solver=fitted if better else first,
        start=first,
        before=before,
        after=after if better else before,
        density=density,
        loss=loss,
        tolerance=tolerance,
        draws=(len(fit.fitting), len(fit.held_out), len(fit.fresh)),
        iterations=done,
        seconds=time.perf_counter() - began,
    )


@dataclass(frozen=True)
class _Fit:
    """The draws of a fit and its settings."""

    flow: Flow
    fitting: Draws
    held_out: Draws
    fresh: Draws
    span: tuple[float, float]
    density: bool
    rows: Rows
    loss: Loss
    tolerance: float | None
    batch: int

    def run(self, start: Multistep, iterations: int) -> tuple[Multistep, int]:
        """The fitted solver, and the number of iterations."""
        parameters, done = TableParameters(start.table, self.rows), 0
        tolerances = self._tolerances(start)
        for tolerance in tolerances:
            loss = FittingLoss(self.flow.f, parameters, self.span, self.loss, tolerance, self.batch)
            done += descend(
                parameters,
                partial(loss, self.fitting),
                partial(loss.value, self.held_out),
                max(1, iterations // len(tolerances)),
                loss.curvature(self.fitting[:_CURVATURE]),
            )
        fitted = Multistep(parameters.table(self.span), f"Fitted({start.table.evaluations}, from {start})")
        if not self.density:
            return fitted, done
        # states that are closer to the noise need not give a better log-density: choose on the held-out draws
        plain = [fitted, Multistep(replace(start.table, span=self.span), fitted.name)]
        candidates = [solver for solver in plain if not solver.table.scaled] + [self._weighted(s) for s in plain]
        return self.best(candidates, self.held_out), done

    def _tolerances(self, start: Multistep) -> list[float | None]:
        """The user's tolerance, or falling ones and none at last.

        The logarithm of an error has a pole where a draw's error is zero, and L-BFGS stays at the first ones it meets;
        a tolerance as large as the errors takes them away, and smaller ones follow as the errors fall. One that is
        smaller than all errors takes none away: of many coordinates the error is zero for no draw.
        """
        if self.loss == "mse" or self.tolerance is not None:
            return [self.tolerance]
        errors = solver_errors(self.flow, start, self.fitting, self.span, self.batch)
        size, smallest = SolverErrors.of(errors).geometric_mean, float(errors.min())
        return [*(x * size for x in _TOLERANCES if x * size > smallest), None]

    def best(self, solvers: Sequence[Multistep], draws: Draws) -> Multistep:
        """The solver with the smallest error on draws."""
        return min(solvers, key=lambda solver: self.errors(solver, draws).mean(self.loss))

    def errors(self, solver: Multistep, draws: Draws) -> SolverErrors:
        """The errors of a solver on draws."""
        errors = solver_errors(self.flow, solver, draws, self.span, self.batch)
        return SolverErrors.of(errors, self.tolerance or 0.0)

    def _weighted(self, solver: Multistep) -> Multistep:
        """The solver with fitted weights for the divergence."""
        weights = fitted_quadrature(
            self.flow, solver.table, self.fitting, self.held_out, span=self.span, rows=self.rows, batch=self.batch
        )
        return Multistep(replace(solver.table, quadrature=weights), solver.name)


def _span(flow: Flow, density: bool) -> tuple[float, float]:
    """From noise to data; for densities the other way."""
    times = float(flow.t0), float(flow.t1)
    return (times[1], times[0]) if density else times


def _check(
    flow: Flow,
    n: int,
    density: bool,
    draws: int,
    rows: object,
    loss: object,
    tolerance: object,
    iterations: int,
    batch: int,
) -> None:
    if float(flow.t0) == float(flow.t1):
        raise ValueError(f"flow: expected a span of some length, got t0 = t1 = {float(flow.t0):g}")
    if not isinstance(density, bool):
        raise TypeError(f"density: expected True or False, got {density!r}")
    for name, value in (("n", n), ("draws", draws), ("iterations", iterations), ("batch", batch)):
        check_whole(name, value)
    if draws < FEWEST_DRAWS:
        raise ValueError(f"draws: expected at least {FEWEST_DRAWS}, got {draws}")
    if rows not in ("consistent", "free"):
        raise ValueError(f"rows: expected 'consistent' or 'free', got {rows!r}")
    if loss not in ("mse", "log"):
        raise ValueError(f"loss: expected 'mse' or 'log', got {loss!r}")
    if tolerance is not None:
        check_above("tolerance", tolerance, 0.0)
        if density or loss != "log":
            raise ValueError("tolerance: expected None unless a solver of samples is fitted with loss='log'")


def _starts(start: object, n: int, span: tuple[float, float], rows: Rows, density: bool) -> list[Multistep]:
    """The tables to start from."""
    if start is None:
        return classical(n, backwards=density)
    given = list(start) if isinstance(start, Sequence) else [start]
    if not given:
        raise ValueError("start: expected at least one method")
    return [_checked(method, n, span, rows, density) for method in given]


def _checked(method: object, n: int, span: tuple[float, float], rows: Rows, density: bool) -> Multistep:
    """The method as a table that fits the task."""
    solver = Multistep.of(method) if isinstance(method, FixedStep) else method
    if not isinstance(solver, Multistep):
        raise TypeError(f"start: expected Multistep or fixed-step methods, got {type(solver).__name__}")
    table = solver.table
    if table.evaluations != n:
        raise ValueError(f"start: expected methods of n = {n} evaluations, got {solver} of {table.evaluations}")
    if table.span is not None and not all(map(math.isclose, table.span, span)):
        raise ValueError(f"start: {solver} is for solves from {table.span[0]:g} to {table.span[1]:g} only")
    if table.scaled and (density or rows == "consistent"):
        what = "has no log-density" if density else "has no consistent rows; take rows='free'"
        raise ValueError(f"start: {solver} scales the state, so it {what}; or start from Multistep.adams")
    return solver


@contextmanager
def _in_evaluation_mode(flow: nn.Module) -> Iterator[None]:
    training = [module for module in flow.modules() if module.training]
    flow.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
