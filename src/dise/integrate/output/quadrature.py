"""Integrals along a solution on which its other tensors do not depend: Gauss's rule within each step."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from dise.integrate.clock import real_dtype
from dise.integrate.output.interpolation import states_within
from dise.integrate.problem.field import BoundField
from dise.integrate.problem.state import Layout
from dise.integrate.runge_kutta.step import Step, within


def _gauss() -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Nodes in [0, 1] of Gauss's rule with five nodes, and its weights beside those of two rules within them.

    The rules are of orders 10, 4 (the outer nodes and the middle) and 2 (the middle).
    """
    inner, outer = (math.sqrt(5 + sign * 2 * math.sqrt(10 / 7)) / 3 for sign in (-1, 1))
    heavy, light = ((322 + sign * 13 * math.sqrt(70)) / 1800 for sign in (1, -1))
    ends = 1 / (6 * outer**2)
    nodes = tuple(0.5 + x / 2 for x in (-outer, -inner, 0.0, inner, outer))
    return nodes, (
        (light, heavy, 64 / 225, heavy, light),
        (ends, 0.0, 1 - 2 * ends, 0.0, ends),
        (0.0, 0.0, 1.0, 0.0, 0.0),
    )


NODES, RULES = _gauss()


class GaussQuadrature:
    """The last tensor of a state as an integral along the others.

    The stages of a step, without that tensor's slopes, give its other tensors. Its own change is ∫ slope dt by Gauss's
    rule of order 10 at the step's dense output: 5 evaluations of f in one call. Differences e₂ and e₄ to two rules
    within the same nodes tell how fast the error falls with the order: where each order more makes it r times as large,
    e₂ ∝ r², e₄ ∝ r⁴ and the rule's own error ∝ r¹⁰, and the estimate e₄ (e₄/e₂)² ∝ r⁸ is on the safe side.

    Args:
        layout: of the state, of at least two tensors.

    Sources: Hindmarsh et al., SUNDIALS, 2005 (pure quadrature variables); Hairer, Nørsett, Wanner, II.10 (an estimate
    from two rules, in DOP853).
    """

    evaluations = len(NODES)

    def __init__(self, layout: Layout) -> None:
        self._layout, self._columns = layout, layout.sizes[-1]

    def completed(self, step: Step, error: Tensor, field: BoundField) -> tuple[Step, Tensor]:
        """A step with the change of its last tensor, and its error estimate [n, F].

        Args:
            step: of n samples.
            error: [n, F] estimate for the other tensors.
            field: f for these samples.
        """
        others = step.y.shape[1] - self._columns
        dt = step.dt.to(real_dtype(step.y))[:, None]
        slopes = self._slopes(step, field)[..., others:]  # [M, n, columns]
        whole, fourth, second = torch.einsum("rm,mnc->rnc", _weights(slopes.dtype, slopes.device), slopes) * dt
        low, lower = (whole - fourth).abs(), (whole - second).abs()
        estimate = low * (low / torch.where(lower == 0, 1, lower)).clamp(max=1) ** 2
        y_next = torch.cat([step.y_next[:, :others], step.y[:, others:] + whole], 1)
        return step._replace(y_next=y_next), torch.cat([error[:, :others], estimate], 1)

    def _slopes(self, step: Step, field: BoundField) -> Tensor:
        """[M, n, F] f at the nodes."""
        states = states_within(step, NODES)
        fractions = _nodes(step.t.dtype, step.t.device)[:, None]
        times = torch.lerp(step.t, step.t + step.dt, fractions).to(real_dtype(step.y))
        if step.bounds is not None:
            times = torch.stack([within(time, step.bounds) for time in times])
        if not self._layout.batched:  # one system; f takes one time
            return torch.stack([field(t, y) for t, y in zip(times, states, strict=True)])
        rows = tuple(torch.cat([arg] * len(NODES)) for arg in field.sample_args)
        return field._replace(sample_args=rows)(times.flatten(), states.flatten(0, 1)).view(states.shape)


@lru_cache(maxsize=16)  # every step needs them, and they may have to be copied to a device
def _nodes(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[M] nodes."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in later training
        return torch.tensor(NODES, dtype=dtype, device=device)


@lru_cache(maxsize=16)
def _weights(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[R, M] weights of the rules."""
    with torch.inference_mode(False):
        return torch.tensor(RULES, dtype=dtype, device=device)
