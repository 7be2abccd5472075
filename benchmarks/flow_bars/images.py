"""Adams–Bashforth 2 against the midpoint rule on images, at equal error: on equal steps, and each on its best grid."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

import dise
from dise import Multistep, grids
from flow_bars.fields import Draws, digits, rms
from flow_bars.seen import Seen

BAR, DECIBELS = 0.75, 40.0
NUMBER, RANGE = 100, 2.0  # draws; pixels are in [−1, 1]
TIGHT = dise.Dopri5(rtol=1e-6, atol=1e-6)
EVALUATIONS = (6, 8, 10, 12, 14, 16, 20)
CHOICE, CHOICE_SEED, CHOICE_EVALUATIONS = 30, 7, (8, 10, 12, 14)  # draws, not those that are measured
Method = Callable[[int | dise.TimeGrid], dise.Integrator]
MIDPOINT, AB2, AB3 = dise.Midpoint, partial(Multistep.adams, order=2), partial(Multistep.adams, order=3)
ABM2 = partial(Multistep.adams, order=2, corrector=True)


def _warped(n: int, a: float, b: float) -> dise.TimeGrid:
    """A grid of `sharp_grid`'s family."""
    return grids.of([*(1 - (1 - (i / n) ** a) ** b for i in range(n)), 1.0])


GRIDS: Mapping[str, Callable[[int], dise.TimeGrid]] = {
    "uniform": grids.uniform,
    **{f"sway({c})": partial(grids.sway, c=c) for c in (-0.7, -0.5, -0.3, -0.15)},
    **{f"shift({s})": partial(grids.shift, s=s) for s in (1.2, 1.5, 2.0)},
    **{f"power({p})": partial(grids.power, exponent=p) for p in (1.15, 1.3)},
    **{f"1 − (1 − s^{a})^{a}": partial(_warped, a=a, b=a) for a in (1.2, 1.4, 1.7)},
}


def measure() -> Seen:
    """Evaluations at 40 dB of the mean PSNR over draws, interpolated in the logarithm of the evaluations."""
    chosen = digits(CHOICE, CHOICE_SEED)
    ends = chosen.solve(TIGHT).y
    best = {name: _best_grid(method, stages, chosen, ends) for name, (method, stages) in _JUDGED.items()}
    draws = digits(NUMBER)
    reference = draws.solve(TIGHT)
    equal: dict[str, tuple[Method, int]] = {**_JUDGED, "AB2 with corrector": (ABM2, 1), "AB3": (AB3, 1)}
    cases = {name: (method, stages, "uniform") for name, (method, stages) in equal.items()}
    cases |= {f"{name}, best grid": (*_JUDGED[name], grid) for name, grid in best.items()}
    curves = {name: _curve(*case, EVALUATIONS, draws, reference.y) for name, case in cases.items()}
    found = {name: evaluations_at(DECIBELS, curve) for name, curve in curves.items()}
    numbers = {
        "curves": curves,
        "evaluations": found,
        "grids": best,
        "reference_nfe": float(reference.nfe.double().mean()),
    }
    if None in found.values():
        return Seen(f"{DECIBELS:g} dB not reached with {EVALUATIONS[-1]}", False, numbers)
    ratios = {name: evaluations / found["Midpoint"] for name, evaluations in found.items()}
    both = found["AB2, best grid"] / found["Midpoint, best grid"]
    text = f"{ratios['AB2']:.3f} ({found['AB2']:.1f} / {found['Midpoint']:.1f}) on equal steps, "
    text += f"{ratios['AB2 with corrector']:.3f} with its corrector"
    further = f"{both:.3f} each on its best grid ({best['AB2']}, {best['Midpoint']}); AB3 {ratios['AB3']:.3f}"
    return Seen(f"{text}; {further}", ratios["AB2"] <= BAR, {"ratios": ratios, "best": both, **numbers})


_JUDGED: Mapping[str, tuple[Method, int]] = {"Midpoint": (MIDPOINT, 2), "AB2": (AB2, 1)}  # evaluations per step


def _best_grid(method: Method, stages: int, draws: Draws, ends: Tensor) -> str:
    """The grid with the fewest evaluations at 40 dB."""
    needed = {
        name: evaluations_at(DECIBELS, _curve(method, stages, name, CHOICE_EVALUATIONS, draws, ends)) for name in GRIDS
    }
    return min(GRIDS, key=lambda name: needed[name] or math.inf)


def _curve(
    method: Method, stages: int, grid: str, evaluations: Sequence[int], draws: Draws, ends: Tensor
) -> dict[int, float]:
    """PSNR by evaluations."""
    return {n: psnr(draws.solve(method(GRIDS[grid](n // stages))).y, ends) for n in evaluations}


def psnr(y: Tensor, reference: Tensor) -> float:
    """The mean over draws of 20 log10(range / RMSE), in dB."""
    return float((20 * torch.log10(RANGE / rms(y, reference))).mean())


def evaluations_at(decibels: float, curve: dict[int, float]) -> float | None:
    """Evaluations at which a curve first passes a PSNR; None: it does not."""
    points = sorted(curve.items())
    for (a, low), (b, high) in pairwise(points):
        if low < decibels <= high:
            return math.exp(math.log(a) + (decibels - low) / (high - low) * (math.log(b) - math.log(a)))
    return None
