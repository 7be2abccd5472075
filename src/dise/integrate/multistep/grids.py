"""Time grids: where the steps of a fixed-step method end, as fractions of the span.

A fraction of 0 is the start of the solve and 1 its end. The grids of generative models are written for noise at the
start and data at the end; in terms of the noise level σ, which falls from 1 to 0 along a straight path, a fraction is
1 − σ. `TimeGrid.reversed` is the same grid for a solve from data to noise; `dise.Flow` takes it by
itself. `dise.sharp_grid` fits a grid to a flow.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dise.integrate.argument_types import checked_arguments
from dise.integrate.value import as_whole, check_above, check_whole, is_number, plain

_EPSS = {  # ends of the steps in 1/32
    5: (2, 4, 8, 16, 32),
    6: (2, 4, 6, 8, 16, 32),
    7: (2, 4, 6, 8, 16, 24, 32),
    10: (2, 4, 6, 8, 12, 16, 20, 24, 28, 32),
    12: (2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32),
    16: (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32),
}


@checked_arguments
@dataclass(frozen=True)
class TimeGrid:
    """Ends of the steps of a fixed-step method, e.g. `Euler(grids.shift(28, 3.0))`.

    Args:
        fractions: increasing numbers from 0, the start of the span, to 1, its end.
        span: start and end of the only solves that the grid is for; None: any.

    Raises:
        ValueError: fractions are not as described.
    """

    fractions: tuple[float, ...]
    span: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        points = tuple(map(plain, self.fractions))
        object.__setattr__(self, "fractions", points)
        object.__setattr__(self, "span", None if self.span is None else tuple(self.span))
        if len(points) < 2 or not all(is_number(x) for x in points) or (points[0], points[-1]) != (0, 1):
            raise ValueError(f"fractions: expected numbers from 0 to 1, got {points}")
        if any(not a < b for a, b in pairwise(points)):
            raise ValueError(f"fractions: expected increasing numbers, got {points}")

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.fractions) - 1

    def reversed(self) -> "TimeGrid":
        """The grid of a solve from the end to the start, with the same times."""
        return TimeGrid(tuple(1 - x for x in reversed(self.fractions)), self.span and (self.span[1], self.span[0]))

    def __str__(self) -> str:
        shown = [f"{x:.4g}" for x in self.fractions]
        return f"[{', '.join(shown if len(shown) <= 8 else [*shown[:3], '…', *shown[-2:]])}]"


def uniform(n: int) -> TimeGrid:
    """`n` equal steps."""
    n = as_whole("n", n)
    return TimeGrid(tuple(i / n for i in range(n + 1)))


def of(times: Sequence[float]) -> TimeGrid:
    """The grid of given times, from t0 to t1 of the solve, increasing or decreasing; other spans are refused."""
    try:
        points = [float(t) for t in times]
    except (TypeError, ValueError) as error:
        raise TypeError(f"times: expected a sequence of numbers, got {times!r}") from error
    if len(points) < 2 or not all(map(math.isfinite, points)) or points[0] == points[-1]:
        raise ValueError(f"times: expected at least two finite times that differ, got {points}")
    first, last = points[0], points[-1]
    inside = [(t - first) / (last - first) for t in points[1:-1]]
    if any(not a < b for a, b in zip([0.0, *inside], [*inside, 1.0], strict=True)):
        raise ValueError(f"times: expected increasing or decreasing times, got {points}")
    return TimeGrid((0.0, *inside, 1.0), (first, last))


def power(n: int, exponent: float) -> TimeGrid:
    """Fractions (i/n)^exponent: an exponent above 1 makes the first steps short, one below 1 the last ones."""
    n = as_whole("n", n)
    check_above("exponent", exponent, 0)
    return TimeGrid(tuple((i / n) ** exponent for i in range(n + 1)))


def sway(n: int, c: float = -1.0) -> TimeGrid:
    """F5-TTS's sway sampling: t + c (cos(πt/2) − 1 + t) of n equal steps; a negative c makes the first steps short.

    Source: Chen et al., F5-TTS, 2024 (arXiv:2410.06885), Eq. 7.

    Raises:
        ValueError: c outside [−1, 2/(π − 2)], where times would not increase.
    """
    n = as_whole("n", n)
    largest = 2 / (math.pi - 2)
    if not is_number(c) or not -1 <= c <= largest:
        raise ValueError(f"c: expected a number from -1 to {largest:.4f}, got {c!r}")
    inside = (i / n for i in range(1, n))
    return TimeGrid((0.0, *(t + c * (math.cos(math.pi * t / 2) - 1 + t) for t in inside), 1.0))


def epss(n: int) -> TimeGrid:
    """F5-TTS's empirically pruned steps, of 5, 6, 7, 10, 12 or 16 steps; F5-TTS applies `sway` to them as well."""
    if n not in _EPSS:
        raise ValueError(f"n: empirically pruned grids have {', '.join(map(str, _EPSS))} steps, got {n!r}")
    return TimeGrid((0.0, *(i / 32 for i in _EPSS[n])))


def shift(n: int, s: float) -> TimeGrid:
    """Noise levels sσ / (1 + (s − 1) σ) of n equal steps in σ: s above 1 makes the first steps short.

    Source: Esser et al., Scaling Rectified Flow Transformers, 2024 (arXiv:2403.03206), Eq. 23; the grid of Stable
    Diffusion 3 with s = 3.
    """
    check_above("s", s, 0)
    return _levels(_shifted(sigma, s) for sigma in _falling(n))


def dynamic_shift(n: int, mu: float, exponent: float = 1.0) -> TimeGrid:
    """Noise levels e^μ / (e^μ + (1/σ − 1)^exponent) of n equal steps in σ: Flux's grid.

    Flux takes μ from the number of image tokens, see `token_shift`. With exponent 1 this is `shift` by e^μ.
    """
    check_above("exponent", exponent, 0)
    if not is_number(mu) or not math.isfinite(mu):
        raise ValueError(f"mu: expected a finite number, got {mu!r}")
    return _levels(math.exp(mu) / (math.exp(mu) + (1 / sigma - 1) ** exponent) for sigma in _falling(n))


def token_shift(tokens: int, *, least: tuple[int, float] = (256, 0.5), most: tuple[int, float] = (4096, 1.15)) -> float:
    """Flux's μ for `dynamic_shift`: linear in the number of tokens, through two pairs of tokens and μ."""
    check_whole("tokens", tokens)
    (few, low), (many, high) = least, most
    return low + (tokens - few) * (high - low) / (many - few)


def karras(n: int, sigma_min: float = 1e-3, rho: float = 7.0) -> TimeGrid:
    """n noise levels from 1 to sigma_min, equidistant in σ^(1/ρ), and 0 (Karras et al., 2022, Eq. 5)."""
    _check_levels(n, sigma_min)
    check_above("rho", rho, 0)
    low = sigma_min ** (1 / rho)
    return _levels((1 + i / max(n - 1, 1) * (low - 1)) ** rho for i in range(n))


def exponential(n: int, sigma_min: float = 1e-3) -> TimeGrid:
    """n noise levels from 1 to sigma_min, equidistant in log σ, and 0."""
    _check_levels(n, sigma_min)
    return _levels(sigma_min ** (i / max(n - 1, 1)) for i in range(n))


def beta(n: int, a: float = 0.6, b: float = 0.6, sigma_min: float = 1e-3) -> TimeGrid:
    """n noise levels from 1 to sigma_min at quantiles of the Beta distribution, and 0; needs SciPy.

    Source: Lee et al., Beta Sampling is All You Need, 2024 (arXiv:2407.12173).
    """
    _check_levels(n, sigma_min)
    check_above("a", a, 0)
    check_above("b", b, 0)
    try:
        from scipy.special import betaincinv
    except ImportError as error:
        raise ImportError("beta: quantiles of the Beta distribution need SciPy; pip install scipy") from error
    quantiles = [float(betaincinv(a, b, 1 - i / max(n - 1, 1))) for i in range(n)]
    return _levels(sigma_min + (1 - sigma_min) * q for q in quantiles)


def edm(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> TimeGrid:
    """Karras et al.'s noise levels of a variance-exploding path, as times 1/(1 + σ) of a straight path that end at 1.

    Only for solves from 1/(1 + sigma_max) to 1. Source: Karras et al., 2022, Eq. 5.
    """
    n = as_whole("n", n)
    check_above("sigma_min", sigma_min, 0)
    check_above("sigma_max", sigma_max, sigma_min)
    check_above("rho", rho, 0)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = [(high + i / max(n - 1, 1) * (low - high)) ** rho for i in range(n)]
    return of([*(1 / (1 + sigma) for sigma in levels), 1.0])


def stretch(grid: TimeGrid, last: float) -> TimeGrid:
    """The grid stretched so that the last step but one ends at noise level `last` (diffusers' shift_terminal)."""
    check_above("last", last, 0, 1)
    if grid.steps < 2:
        raise ValueError(f"grid: expected at least two steps, got {grid.steps}")
    scale = (1 - last) / grid.fractions[-2]
    return TimeGrid((*(x * scale for x in grid.fractions[:-1]), 1.0), grid.span)


def _falling(n: int) -> list[float]:
    """Noise levels 1, 1 − 1/n, …, 1/n."""
    n = as_whole("n", n)
    return [1 - i / n for i in range(n)]


def _shifted(sigma: float, s: float) -> float:
    return s * sigma / (1 + (s - 1) * sigma)


def _levels(sigmas: Iterable[float]) -> TimeGrid:
    """The grid of falling noise levels from 1, with 0 appended."""
    levels = list(sigmas)
    return TimeGrid((0.0, *(1 - sigma for sigma in levels[1:]), 1.0))


def _check_levels(n: int, sigma_min: float) -> None:
    check_whole("n", n)
    check_above("sigma_min", sigma_min, 0, 1)
