"""Adams–Bashforth 2 against the midpoint rule on images, at equal error."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

import dise
from dise import Multistep, grids
from flow_bars.fields import digits, rms
from flow_bars.seen import Seen

BAR, DECIBELS = 0.75, 40.0
NUMBER, RANGE = 100, 2.0  # draws; pixels are in [−1, 1]
TIGHT = dise.Dopri5(rtol=1e-6, atol=1e-6)
EVALUATIONS = (6, 8, 10, 12, 14, 16, 20)
SWAY = -0.3


def measure() -> Seen:
    """Evaluations at 40 dB of the mean PSNR over draws, interpolated in the logarithm of the evaluations."""
    draws = digits(NUMBER)
    reference = draws.solve(TIGHT)
    methods: dict[str, Callable[[int], dise.Integrator]] = {
        "Midpoint": lambda n: dise.Midpoint(n // 2),
        "AB2": lambda n: Multistep.adams(n, 2),
        "AB2, sway": lambda n: Multistep.adams(grids.sway(n, SWAY), 2),
        "AB3": lambda n: Multistep.adams(n, 3),
    }
    curves = {
        name: {n: psnr(draws.solve(method(n)).y, reference.y) for n in EVALUATIONS} for name, method in methods.items()
    }
    found = {name: evaluations_at(DECIBELS, curve) for name, curve in curves.items()}
    numbers = {"curves": curves, "evaluations": found, "reference_nfe": float(reference.nfe.double().mean())}
    if None in found.values():
        return Seen(f"{DECIBELS:g} dB not reached with {EVALUATIONS[-1]}", False, numbers)
    ratios = {name: evaluations / found["Midpoint"] for name, evaluations in found.items()}
    text = f"{ratios['AB2']:.3f} ({found['AB2']:.1f} / {found['Midpoint']:.1f})"
    further = f"{ratios['AB2, sway']:.3f} on the grid sway({SWAY}), AB3 {ratios['AB3']:.3f}"
    return Seen(f"{text}; {further}", ratios["AB2"] <= BAR, {"ratios": ratios, **numbers})


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
