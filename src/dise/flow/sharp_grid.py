"""`sharp_grid`: a time grid fitted to a flow, without training."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dise.flow.conditions import Condition
from dise.flow.flow import Flow
from dise.integrate import Dopri5, Euler, Integrator, SolveError, TimeGrid
from dise.integrate.integrator import check_integrator
from dise.integrate.value import check_callable, check_whole

_COARSE = (-1.0, -0.5, 0.0, 0.5, 1.0)  # logarithms of exponents, in base 2
EXPECTED = "a function of a grid such as dise.Midpoint"
_FINE = (0.25, 0.125)  # steps around the best of them


def sharp_grid(
    flow: Flow,
    n: int,
    method: Callable[[TimeGrid], Integrator] = Euler,
    *,
    noise: int | Tensor = 256,
    condition: Condition = None,
    reference: Integrator | None = None,
) -> TimeGrid:
    """The grid of n steps with which a method's samples of a flow are closest to its exact ones.

    Grids 1 − (1 − s^a)^b of equal steps in s are compared by the root mean square distance of their samples from
    `reference`'s, from the same noise: exponents a above 1 make the first steps short, b above 1 the last ones. Equal
    steps are among them, so the grid is never worse on these draws. The comparison takes about 40 solves, no gradients
    and no data:

        grid = dise.sharp_grid(flow, 8, dise.Midpoint)
        flow.block.integrator = dise.Midpoint(grid)

    Args:
        flow: its integrator is not used.
        n: number of steps.
        method: makes an integrator from a grid, e.g. `dise.Midpoint` or `dise.Multistep.adams`.
        noise: number of draws from the base, or the draws themselves [B, ..., D], for another random stream than
            torch's global one.
        condition: of the draws, one tensor or a tuple, with a row per draw or one for all; see `Flow`.
        reference: integrator of the exact samples; None: Dopri5 with tolerances of 1e-5.

    Returns:
        the grid, for solves from flow.t0 to flow.t1 only.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described.
        SolveError: a sample could not be integrated.

    The idea of a grid from reference paths is that of SharpEuler (arXiv:2605.11547), which takes the density of the
    paths' curvature; distances at the end also count how errors grow and cancel along the path.
    """
    if not isinstance(flow, Flow):
        raise TypeError(f"flow: expected a dise.Flow, got {type(flow).__name__}")
    check_whole("n", n)
    span, z = _span(flow), _draws(flow, noise)
    _check_method(method, _warped(n, (0.0, 0.0), span))

    @torch.no_grad()
    def ends(integrator: Integrator) -> Tensor:
        with flow.block.using(integrator):
            return flow.transport(z, *span, condition)

    exact = ends(reference or Dopri5(rtol=1e-5, atol=1e-5)).double()
    rounding = (100 * torch.finfo(z.dtype).eps) ** 2 * float(exact.square().mean())

    def distance(exponents: tuple[float, float]) -> float:
        try:
            return max(float((ends(method(_warped(n, exponents, span))) - exact).square().mean()), rounding)
        except SolveError:  # steps for which the method is not stable
            return math.inf

    found = _closest(distance)
    if distance(found) == math.inf:
        ends(method(_warped(n, found, span)))  # raises the error
    return _warped(n, found, span)


def _check_method(method: Callable[[TimeGrid], Integrator], grid: TimeGrid) -> None:
    check_callable("method", method, EXPECTED)
    try:
        made = method(grid)
    except TypeError as error:
        raise TypeError(f"method: expected {EXPECTED}, got one that takes none: {error}") from error
    check_integrator(made, "method")


def _closest(distance: Callable[[tuple[float, float]], float]) -> tuple[float, float]:
    """The logarithms of exponents with the smallest distance: of a lattice, then of finer ones around the best."""
    known = {(0.0, 0.0): distance((0.0, 0.0))}  # equal steps first: they win a tie

    def best(points: list[tuple[float, float]]) -> tuple[float, float]:
        known.update({point: distance(point) for point in points if point not in known})
        return min(known, key=lambda point: known[point])

    a, b = best([(a, b) for a in _COARSE for b in _COARSE])
    for step in _FINE:
        a, b = best([(a + i * step, b + j * step) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    return a, b


def _warped(n: int, exponents: tuple[float, float], span: tuple[float, float]) -> TimeGrid:
    """The grid 1 − (1 − s^a)^b."""
    a, b = (2**exponent for exponent in exponents)
    return TimeGrid((0.0, *(1 - (1 - (i / n) ** a) ** b for i in range(1, n)), 1.0), span)


def _span(flow: Flow) -> tuple[float, float]:
    t0, t1 = torch.as_tensor(flow.t0), torch.as_tensor(flow.t1)
    if t0.numel() != 1 or t1.numel() != 1 or t0 == t1:
        raise ValueError("flow: a grid needs one span for all samples, from t0 to another t1")
    return float(t0), float(t1)


def _draws(flow: Flow, noise: int | Tensor) -> Tensor:
    if isinstance(noise, Tensor):
        if noise.numel() == 0:
            raise ValueError(f"noise: expected at least one draw, got shape {list(noise.shape)}")
        return noise
    check_whole("noise", noise)
    return flow.base.sample(torch.Size([noise]))
