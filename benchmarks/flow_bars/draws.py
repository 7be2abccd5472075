"""Evaluations per draw for 99 % of the draws within τ of a tight solve: own-step Adams against Runge–Kutta."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dise
from flow_bars.fields import POINTS, Draws, adams, points, rms
from flow_bars.seen import Seen

BAR = 0.6  # mean of the ratios
NUMBER = 4096
TOLERANCES = (0.03, 0.01)  # τ, root mean square distance per coordinate in standard deviations of the target or prior
SHARE = 0.99
TIGHT = dise.Dopri8(rtol=1e-8, atol=1e-8)
COARSE, FINE = 4.0, 8  # factor between tolerances; parts of it in the second scan
FIRST, LAST = 4.0, 1e-6  # tolerances scanned
Family = Callable[[float], dise.Integrator]  # tolerance → integrator

# first steps: by an evaluation of f, without one, and parts of the span, which often are the best
RUNGE_KUTTA: dict[str, Family] = {
    f"{method.__name__}, first step {first}": lambda tol, method=method, first=first: method(
        rtol=tol, atol=tol, first_step=first
    )
    for method, steps in (
        (dise.HeunEuler, ("heuristic", "scale", 0.1, 0.2)),
        (dise.Bosh3, ("heuristic", "scale", 0.1, 0.2)),
        (dise.Dopri5, ("scale",)),  # these two need more at such tolerances
        (dise.Tsit5, ("scale",)),
    )
    for first in steps
}


def own_step_adams() -> dict[str, Family]:
    """Own-step Adams, by order and first step."""
    made = adams()
    if made is None:
        return {}
    return {
        f"Adams, order {order}, first step {first}": lambda tol, order=order, first=first: made(
            rtol=tol, atol=tol, order=order, first_step=first
        )
        for order in (3, 4)
        for first in ("scale", 0.1, 0.2)
    }


def measure() -> Seen:
    """The cheapest tolerance of each family on each task, and the ratio of the best of both kinds."""
    numbers: dict[str, Any] = {task: compare(points(task, NUMBER)) for task in POINTS}
    ratios = [row[str(tau)].get("ratio") for row in numbers.values() for tau in TOLERANCES]
    numbers["mean"] = None if None in ratios else statistics.mean(ratios)
    best = "; ".join(
        f"{task} " + ", ".join(_cell(row[str(tau)]) for tau in TOLERANCES)
        for task, row in numbers.items()
        if task != "mean"
    )
    mean = numbers["mean"]
    text = "no own-step Adams here" if mean is None else f"mean {mean:.3f}"
    return Seen(f"{text} ({best})", None if mean is None else mean <= BAR, numbers)


def compare(draws: Draws) -> dict[str, Any]:
    """For each τ the mean NFE of every family, the best of both kinds, and their ratio."""
    reference = draws.double().solve(TIGHT).y
    found = {
        "runge_kutta": {name: scan(draws, reference, family) for name, family in RUNGE_KUTTA.items()},
        "adams": {name: scan(draws, reference, family) for name, family in own_step_adams().items()},
    }
    rows: dict[str, Any] = {}
    for tau in TOLERANCES:
        row: dict[str, Any] = {kind: _best(families, tau) for kind, families in found.items() if families}
        if "adams" in row:
            row["ratio"] = row["adams"]["nfe"] / row["runge_kutta"]["nfe"]
        rows[str(tau)] = row
    return rows


def scan(draws: Draws, reference: Tensor, family: Family) -> dict[float, dict[str, float]]:
    """For each τ the cheapest tolerance of a family at which 99 % of the draws are within τ.

    Tolerances are scanned coarsely from loose to tight, then finely around the first adequate one.
    """
    seen: dict[float, tuple[float, float]] = {}  # tolerance → error of 99 % of the draws, mean NFE

    def run(tolerance: float) -> float:
        if tolerance not in seen:
            solution = draws.solve(family(tolerance), throw=False)
            error = float(torch.quantile(rms(solution.y, reference), SHARE))
            seen[tolerance] = error, float(solution.nfe.double().mean())
        return seen[tolerance][0]

    found = {}
    for tau in sorted(TOLERANCES, reverse=True):
        tolerance = FIRST
        while tolerance > LAST and not run(tolerance) <= tau:
            tolerance /= COARSE
        for i in range(1, FINE):
            run(tolerance * COARSE ** (i / FINE))
    for tau in TOLERANCES:
        adequate = [(nfe, tolerance) for tolerance, (error, nfe) in seen.items() if error <= tau]
        if adequate:
            nfe, tolerance = min(adequate)
            found[tau] = {"nfe": nfe, "tolerance": tolerance, "error": seen[tolerance][0]}
    return found


def _best(families: dict[str, dict[float, dict[str, float]]], tau: float) -> dict[str, Any]:
    all_nfe = {name: found[tau]["nfe"] for name, found in families.items() if tau in found}
    name = min(all_nfe, key=lambda name: all_nfe[name])
    return {"method": name, **families[name][tau], "all": all_nfe}


def _cell(row: dict[str, Any]) -> str:
    best = row["runge_kutta"]["nfe"]
    return f"{best:.1f}" if "adams" not in row else f"{row['adams']['nfe']:.1f}/{best:.1f}"
