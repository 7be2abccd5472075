"""Guidance beside a hand-written loop, and what guidance in an interval costs."""

import torch
from torch import Tensor

import dise
from dise import Guided
from dise_experiments.flows.unet import NULL_LABEL
from flow_bars.fields import Draws, digits
from flow_bars.seen import Seen

BAR, CALLS = 1e-6, 1.5
IMAGES, STEPS, SCALE = 8, 8, 2.0


def measure() -> Seen:
    """The largest difference from Euler's method by hand, for both rules, and model calls per evaluation."""
    draws = digits(IMAGES).double()
    differences = {
        rule: float((_guided(draws, rule)[0] - _by_hand(draws, strength)).abs().max())
        for rule, strength in (("mix", SCALE - 1), ("push", SCALE))
    }
    always, half = (_guided(draws, "mix", interval)[1] for interval in (None, (0.0, 0.49)))
    worst = max(differences.values())
    return Seen(
        f"{worst:.1e}; {half:.2f} instead of {always:.2f} model calls",
        worst <= BAR and half <= CALLS,
        {"differences": differences, "calls_always": always, "calls_half": half},
    )


@torch.no_grad()
def _guided(draws: Draws, rule: str, interval: tuple[float, float] | None = None) -> tuple[Tensor, float]:
    """The end of a guided solve, and model calls per evaluation."""
    field = Guided(draws.f, SCALE, null=(NULL_LABEL,), rule=rule, interval=interval)
    with field.counting() as count:
        solution = dise.solve(field, draws.noise, 0.0, 1.0, dise.Euler(STEPS), sample_args=draws.conditions)
    return solution.y, count.rows / float(solution.nfe.sum())


@torch.no_grad()
def _by_hand(draws: Draws, strength: float) -> Tensor:
    x, labels = draws.noise, draws.conditions[0]
    for i in range(STEPS):
        t = torch.full((len(x), 1, 1, 1), i / STEPS, dtype=x.dtype)
        conditional, unconditional = draws.f(t, x, labels), draws.f(t, x, torch.full_like(labels, NULL_LABEL))
        x = x + (conditional + strength * (conditional - unconditional)) / STEPS
    return x
