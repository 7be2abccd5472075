"""What `fit_solver` returns: the fitted solver and how it compares with where the fit started."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from dise.flow.fitting.errors import SolverErrors
from dise.flow.fitting.unroll import Loss
from dise.integrate import Multistep


@dataclass(frozen=True)
class SolverFit:
    """A fitted solver and its report; `str(fit)` is the report's text.

    Attributes:
        solver: the integrator; equal to `start` if the fit was not better on the fresh draws.
        start: the classical table where the fit started.
        before, after: errors of `start` and of `solver` on the fresh draws.
        density: whether the solver is for densities, from data to noise.
        loss: what was fitted, "mse" or "log"; it decides which mean of the errors is compared.
        tolerance: see `fit_solver`.
        draws: numbers of draws to fit on, for early stopping, and fresh ones for the comparison.
        iterations: of L-BFGS.
        seconds: wall-clock time of the whole fit, draws included.
    """

    solver: Multistep
    start: Multistep
    before: SolverErrors
    after: SolverErrors
    density: bool
    loss: Loss
    tolerance: float | None
    draws: tuple[int, int, int]
    iterations: int
    seconds: float

    @property
    def improved(self) -> bool:
        """Whether the solver is another one than the start."""
        return self.solver is not self.start

    @property
    def gain(self) -> float:
        """By how much the error is smaller than the start's, in dB: 6 dB halve it.

        The error is the root mean square, or with the loss "log" the geometric mean.
        """
        before, after = (errors.mean(self.loss) for errors in (self.before, self.after))
        if after == before:
            return 0.0
        return math.inf if after == 0 or math.isinf(before) else 20 * math.log10(before / after)

    def __str__(self) -> str:
        fitting, held_out, fresh = self.draws
        kind = "log-density, in nats" if self.density else "distance, root mean square over coordinates"
        rows = [
            ("root mean square", self.before.rms, self.after.rms),
            ("geometric mean", self.before.geometric_mean, self.after.geometric_mean),
            ("median", self.before.median, self.after.median),
            ("90 %", self.before.q90, self.after.q90),
            ("99 %", self.before.q99, self.after.q99),
        ]
        result = f"{self.gain:.1f} dB better" if self.improved else "the start is kept: the fit was not better"
        return "\n".join(
            [
                f"{self.solver}: {self.solver.table.evaluations} evaluations of f, {result}",
                f"error on {fresh} fresh draws ({kind}):",
                f"  {'':<18}{'start':>11}{'fitted':>11}",
                *(f"  {name:<18}{before:>11.4g}{after:>11.4g}" for name, before, after in rows),
                *([] if self.tolerance is None else [f"geometric mean of √(e² + {self.tolerance:g}²), with errors e"]),
                f"started from {self.start}",
                f"{fitting} draws to fit on, {held_out} to stop on; {self.iterations} iterations, {self.seconds:.0f} s",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON, solvers by name."""
        return asdict(self) | {"solver": str(self.solver), "start": str(self.start), "gain": self.gain}
