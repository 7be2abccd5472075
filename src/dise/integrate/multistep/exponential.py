"""DPM-Solver++ and UniPC as tables: multistep methods in the log signal-to-noise ratio, for known paths.

They integrate the predicted data x̂ against λ = log(α/σ). From the velocity v = dx/dt of a path x = α x̂ + σ ε̂,

    x̂ = (σ v − σ' x) / (σ α' − σ' α),

so each method is linear in the start and in the velocities.

Sources: Lu et al., DPM-Solver++, 2022 (arXiv:2211.01095); Zhao et al., UniPC, 2023 (arXiv:2302.04867).
"""

import math
from itertools import pairwise
from typing import Literal, NamedTuple

import torch

from dise.integrate.multistep.grids import TimeGrid
from dise.integrate.multistep.paths import Path, at, log_ratio
from dise.integrate.multistep.table import START, Combination, MultistepTable, value

Variant = Literal["bh1", "bh2"]


class _Node(NamedTuple):
    """A time of the grid, with the data that the field predicts there."""

    t: float
    ratio: float  # λ
    data: Combination


def dpmpp2m(grid: TimeGrid, path: Path) -> MultistepTable:
    """DPM-Solver++(2M), the midpoint variant: order 2, one evaluation of f per step.

    Steps from pure noise and to pure data have order 1, as has the first step.
    """
    times, points, x = _times(grid, path), [], START
    before: _Node | None = None
    for k, (t, end) in enumerate(pairwise(times)):
        points.append((grid.fractions[k], x))
        node = _node(path, times, t, x, k)
        data = node.data
        if before is not None and math.isfinite(before.ratio) and at(path.sigma, end) > 0:
            slope = (node.data - before.data) * (1 / (node.ratio - before.ratio))
            data = data + (log_ratio(path, end) - node.ratio) / 2 * slope
        decay, gain = _coefficients(path, t, end)
        x, before = decay * x + gain * data, node
    return MultistepTable.of(points, x, (times[0], times[-1]), _blends(path, times))


def unipc(
    grid: TimeGrid, path: Path, order: int, variant: Variant, *, lower_final_order: bool = True
) -> MultistepTable:
    """UniPC with its corrector, which takes no further evaluation of f.

    The predictor has order `order`, predictor and corrector together one more. In the first steps there are too few
    earlier values for that; with `lower_final_order`, the authors' choice for few steps, the last steps have orders
    down to 1, and the method has order 2.

    Args:
        grid: ends of the steps.
        path: of the field.
        order: 1 to 3.
        variant: B(h) = h ("bh1") or e^h − 1 ("bh2").
        lower_final_order: lower the order in the last steps.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order: expected 1, 2 or 3, got {order!r}")
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant: expected 'bh1' or 'bh2', got {variant!r}")
    times, points, x = _times(grid, path), [], START
    known: list[_Node] = []  # the newest first
    step: tuple[float, Combination, list[_Node]] | None = None  # the last one, to be corrected
    for k, (t, end) in enumerate(pairwise(times)):
        points.append((grid.fractions[k], x))
        node = _node(path, times, t, x, k)
        if step is not None:
            x = _unified(path, *step, variant, t, corrected_by=node)
        known = [node, *known][:order]
        finite = [node, *(other for other in known[1:] if math.isfinite(other.ratio))]
        limit = min(order, grid.steps - k) if lower_final_order else order
        used = finite[:limit] if math.isfinite(node.ratio) and at(path.sigma, end) > 0 else [node]
        step = t, x, used
        x = _unified(path, *step, variant, end, corrected_by=None)
    return MultistepTable.of(points, x, (times[0], times[-1]), _blends(path, times))


def _unified(
    path: Path, t: float, x: Combination, known: list[_Node], variant: Variant, end: float, corrected_by: _Node | None
) -> Combination:
    """UniPC's state at `end` from x at t: predicted, or corrected by the data predicted there (Eq. 3 and 9)."""
    h = log_ratio(path, end) - log_ratio(path, t)
    decay, gain = _coefficients(path, t, end)
    newest, earlier = known[0], known[1:]
    state = decay * x + gain * newest.data
    nodes = earlier if corrected_by is None else [*earlier, corrected_by]
    if not nodes or (variant == "bh1" and not math.isfinite(h)):
        return state
    positions = [(node.ratio - newest.ratio) / h for node in earlier] + [1.0] * (corrected_by is not None)
    if len(nodes) == 1:
        weights = [0.5]  # the authors' choice for one difference, in place of the solution of the equation
    else:
        powers = torch.tensor([[r**i for r in positions] for i in range(len(nodes))], dtype=torch.float64)
        moments = torch.tensor(_moments(len(nodes), h, variant), dtype=torch.float64)
        weights = torch.linalg.solve(powers, moments).tolist()
    # gain = −α (e^(−h) − 1) is α B(h) of bh2, up to the sign
    size = gain if variant == "bh2" else at(path.alpha, end) * h
    for weight, position, node in zip(weights, positions, nodes, strict=True):
        state = state + size * weight / position * (node.data - newest.data)
    return state


def _moments(number: int, h: float, variant: Variant) -> list[float]:
    """n! φ_{n+1}(−h) / B(−h) for n = 1, 2, …: the right-hand side of UniPC's equation for its weights."""
    moments = []
    scale = math.expm1(-h) if variant == "bh2" else -h
    phi = math.expm1(-h) / -h - 1 if math.isfinite(h) else -1.0
    factorial = 1
    for n in range(1, number + 1):
        moments.append(phi * factorial / scale)
        factorial *= n + 1
        phi = (phi / -h if math.isfinite(h) else 0.0) - 1 / factorial
    return moments


def _times(grid: TimeGrid, path: Path) -> list[float]:
    """The grid's times, within its own span or the path's."""
    start, end = grid.span or path.span
    inside = (start + x * (end - start) for x in grid.fractions[1:-1])
    return [start, *inside, end]


def _node(path: Path, times: list[float], t: float, x: Combination, k: int) -> _Node:
    """The node of evaluation k, at time t and state x."""
    alpha, sigma, alpha_slope, sigma_slope = (
        at(coefficient, t) for coefficient in (path.alpha, path.sigma, path.alpha_slope, path.sigma_slope)
    )
    velocity = value(k) * (1 / (times[-1] - times[0]))  # tables multiply by the span's length
    data = (sigma * velocity - sigma_slope * x) * (1 / (sigma * alpha_slope - sigma_slope * alpha))
    return _Node(t, log_ratio(path, t), data)


def _blends(path: Path, times: list[float]) -> list[float]:
    """c_k with which v_k + c_k x_k / span is the data predicted by evaluation k, up to a factor: −σ' / σ."""
    return [-(times[-1] - times[0]) * at(path.sigma_slope, t) / at(path.sigma, t) for t in times[:-1]]


def _coefficients(path: Path, t: float, end: float) -> tuple[float, float]:
    """σ_end / σ_t, and α_end (1 − e^(−h)) where h is the step in λ."""
    decay = at(path.sigma, end) / at(path.sigma, t)
    return decay, at(path.alpha, end) - decay * at(path.alpha, t)
