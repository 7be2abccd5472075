"""Time per step of multistep methods, in a block, beside a hand-written Euler loop on the same network."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dise
from dise import Multistep, StraightPath
from dise.select.judging.profile import time_side_by_side
from flow_bars.fields import Draws, digits, points
from flow_bars.seen import Seen

BAR = 1.05
STEPS, REPEATS = 16, 31
JUDGED = ("AB2", "UniPC2")  # Euler, a Runge–Kutta method with all it can do, is in the JSON file


def measure() -> Seen:
    """Ratios of the medians of whole solves, which take turns; and operators per step."""
    cases = {"MLP, 1,000": points("two_moons", 1000), "MLP, 4,096": points("two_moons", 4096), "U-Net, 32": digits(32)}
    numbers = {name: _compare(draws) for name, draws in cases.items()}
    text = "; ".join(
        f"{name}: " + ", ".join(f"{row['ratios'][method]:.3f}" for method in JUDGED) for name, row in numbers.items()
    )
    worst = max(row["ratios"][method] for row in numbers.values() for method in JUDGED)
    return Seen(text, worst <= BAR, numbers)


def euler_by_hand(draws: Draws) -> Tensor:
    """Euler's method as samplers write it."""
    x, dt = draws.noise, 1 / STEPS
    for i in range(STEPS):
        t = torch.full((len(x), *[1] * (x.ndim - 1)), i * dt)
        x = x + dt * draws.f(t, x, *draws.conditions)
    return x


class _Placed(Sequence[Draws]):
    """The same draws again and again, each time with other memory in use.

    Where the allocator puts the tensors within f decides how many of them stay in the processor's cache: loops of the
    same operations differ, and always in the same way within one process.
    """

    def __init__(self, draws: Draws, number: int) -> None:
        self._draws, self._number = draws, number
        self._random, self._held = random.Random(0), list[Tensor]()

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index):
        if index >= self._number:
            raise IndexError(index)
        self._held = [torch.empty(self._random.randint(1, 60_000)) for _ in range(40)]
        del self._held[::2]  # every other one leaves a gap
        return self._draws


def _compare(draws: Draws) -> dict[str, dict[str, float]]:
    path = StraightPath()
    methods = {"AB2": Multistep.adams(STEPS), "UniPC2": Multistep.unipc(STEPS, path), "Euler": dise.Euler(STEPS)}
    blocks = {name: dise.NeuralODE(draws.f, method) for name, method in methods.items()}
    calls = {"by hand": euler_by_hand} | {
        name: (lambda draws, block=block: block(draws.noise, sample_args=draws.conditions))
        for name, block in blocks.items()
    }
    with torch.no_grad():
        times = time_side_by_side(calls, _Placed(draws, REPEATS))
        operators = {name: _operators(call, draws) / STEPS for name, call in calls.items()}
    return {
        "milliseconds": times,
        "operators_per_step": operators,
        "ratios": {name: times[name] / times["by hand"] for name in methods},
    }


class _Count(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def _operators(call, draws: Draws) -> int:
    with _Count() as counted:
        call(draws)
    return counted.count
