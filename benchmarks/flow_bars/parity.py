"""Grids and steps beside the libraries they come from: diffusers' schedulers, F5-TTS's formulas."""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dise
from dise import Multistep, StraightPath, grids
from flow_bars.seen import Seen

STEPS, GRIDS = 1e-5, 1e-12
LENGTHS = (2, 5, 16)
EPSS = {  # F5-TTS's indices on a lattice of 1/32
    5: [0, 2, 4, 8, 16, 32],
    6: [0, 2, 4, 6, 8, 16, 32],
    7: [0, 2, 4, 6, 8, 16, 24, 32],
    10: [0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32],
    12: [0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32],
    16: [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32],
}
WEIGHT = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def measure() -> Seen:
    """The largest difference of any state that a scheduler steps through, and of any time of a grid."""
    if importlib.util.find_spec("diffusers") is None:
        return Seen("diffusers is not installed", None)
    steps = {name: max(_steps(*case, n) for n in LENGTHS) for name, case in _cases().items()}
    times = _grids()
    worst_step, worst_grid = max(steps.values()), max(times.values())
    return Seen(
        f"steps {worst_step:.1e}, grids {worst_grid:.1e}",
        worst_step <= STEPS and worst_grid <= GRIDS,
        {"steps": steps, "grids": times, "lengths": LENGTHS},
    )


def network(t: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(x @ WEIGHT + 2 * t) - 0.3 * x


def _cases() -> dict[str, tuple[Callable[[], Any], Callable[[dise.TimeGrid], Multistep]]]:
    """A scheduler and this library's method for each case; noise is at 1 and data at 0."""
    import diffusers

    path = StraightPath(0)
    flow: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

    def unipc(order: int) -> tuple[Callable[[], Any], Callable[[dise.TimeGrid], Multistep]]:
        make = lambda: diffusers.UniPCMultistepScheduler(solver_order=order, solver_type="bh2", **flow)  # noqa: E731
        return make, lambda grid: Multistep.unipc(grid, path, order)

    return {
        "Euler": (
            lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            lambda grid: Multistep.adams(grid, 1),
        ),
        "DPM++2M": (
            lambda: diffusers.DPMSolverMultistepScheduler(flow_shift=2.0, **flow),
            lambda grid: Multistep.dpmpp2m(grid, path),
        ),
        "UniPC1": unipc(1),
        "UniPC2": unipc(2),
        "UniPC3": unipc(3),
    }


def _steps(make: Callable[[], Any], method: Callable[[dise.TimeGrid], Multistep], n: int) -> float:
    """The largest difference of the states after each of n steps."""
    scheduler = make()
    scheduler.set_timesteps(num_inference_steps=n)
    x, theirs = NOISE.clone(), []
    for time, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = scheduler.step(network(sigma.double(), x), time, x).prev_sample
        theirs.append(x)
    levels, ours = scheduler.sigmas.double().tolist(), []

    def field(t: Tensor, x: Tensor) -> Tensor:
        ours.append(x)
        return network(t, x)

    ours.append(dise.solve(field, NOISE, levels[0], levels[-1], method(grids.of(levels))).y)
    return max(float((a - b).abs().max()) for a, b in zip(ours[1:], theirs, strict=True))


def _grids() -> dict[str, float]:
    """The largest difference of a grid's times from F5-TTS's formulas, in double precision."""
    sway = max(
        abs(x - (t + c * (math.cos(math.pi / 2 * t) - 1 + t)))
        for c in (-1.0, -0.4, 1.2)
        for n in (8, 32)
        for x, t in zip(
            grids.sway(n, c).fractions, torch.linspace(0, 1, n + 1, dtype=torch.float64).tolist(), strict=True
        )
    )
    epss = max(
        abs(x - index / 32)
        for n, indices in EPSS.items()
        for x, index in zip(grids.epss(n).fractions, indices, strict=True)
    )
    return {"sway": sway, "EPSS": epss}
