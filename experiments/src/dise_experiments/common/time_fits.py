"""Time against NFE: the paper's "inference time is linear in NFE", from committed wall-clock times."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dise_experiments.common.task import Run


class TimeFit(NamedTuple):
    """Least squares of the ODE part's milliseconds on NFE per sample, for the single integrators of a run.

    Attributes:
        run: its name.
        slope: in times of one evaluation of f.
        r2: coefficient of determination.
        routed: times of routed batches, as multiples of NFE times the time of one evaluation: the smallest and largest;
            None if there are none.
    """

    run: str
    slope: float
    r2: float
    routed: tuple[float, float] | None


def time_fits(runs: Sequence[Run]) -> list[TimeFit]:
    """The fit of each run that was timed, in the order of the runs."""
    return [_fit(run, run.timing) for run in runs if run.timing]


def _fit(run: Run, timing: dict[str, Any]) -> TimeFit:
    unit, times = timing["parts_ms"]["f"], timing["ode_ms"]
    rows = {row["policy"]: row for row in reversed(run.policies())}
    single = [name for name in times if name in rows and not name.startswith("DISE")]
    nfe = np.array([rows[name]["nfe"] for name in single])
    ms = np.array([times[name] for name in single])
    slope, constant = np.polyfit(nfe, ms, 1)
    r2 = 1 - ((ms - slope * nfe - constant) ** 2).sum() / ((ms - ms.mean()) ** 2).sum()
    routed = [times[name] / (unit * rows[name]["nfe"]) for name in times if name.startswith("DISE") and name in rows]
    return TimeFit(run.name, float(slope / unit), float(r2), (min(routed), max(routed)) if routed else None)
