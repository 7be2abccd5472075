"""Memory of the exact trace of a field of images, D = 784, by the number of directions at once."""

from itertools import pairwise

import torch
from memory import Memory

from dise import ExactDivergence
from flow_bars.fields import digits
from flow_bars.seen import Seen

CHUNKS = (8, 32, 128)
SHARE = 0.5  # of a chunk's memory that a quarter of it may take: half of it grows with the chunk at least


def measure() -> Seen:
    """Peak memory of one evaluation with its trace, beside what was there before."""
    peaks = {chunk: _peak(chunk) for chunk in CHUNKS}
    bounded = all(peaks[a] <= SHARE * peaks[b] for a, b in pairwise(CHUNKS))
    text = ", ".join(f"{peak:.1f}" for peak in peaks.values())
    return Seen(f"{text} MiB with {', '.join(map(str, CHUNKS))} directions", bounded, {"peak_mib": peaks})


@torch.no_grad()
def _peak(chunk: int) -> float:
    draw = digits(1)
    with Memory() as memory:
        t = torch.full((1, 1, 1, 1), 0.5)
        ExactDivergence(chunk=chunk)(lambda t, x: draw.f(t, x, *draw.conditions), t, draw.noise, (), 3)
    return memory.peak / 2**20
