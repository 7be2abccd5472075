"""Weighted sums of a step's stages that grow with each stage, for small states."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from dise.integrate.runge_kutta.tableau import ButcherTableau
from dise.integrate.tracing import untracked

MAX_NUMEL = 2**15  # of all sums; for larger states their memory costs more than the fewer operations are worth


class RunningSums:
    """The tableau's sums (`WeightedSum`) of all stages, of the solution and of the error estimate, of n samples.

    There may be further ones: those of the interpolant at some places within the step.

    A new stage is added to all of them by one operation, where sums made one by one take an operation per weight. The
    sums share one buffer, which the next step overwrites. A stage that is not finite may enter sums in which its weight
    is 0; the stage after it was evaluated at a state that is not finite either.

    Args:
        tableau: the method.
        y: [n, F] a state.
        inside: M places, as fractions of the step's length.
    """

    def __init__(self, tableau: ButcherTableau, y: Tensor, inside: tuple[float, ...] = ()) -> None:
        number = _number(tableau)
        buffer = y.new_empty((number + len(inside), *y.shape))
        # those of the stages 1, 2, …, of the solution unless a stage has it, of the error
        self._sums = buffer[:number].unbind()
        self._inside = buffer[number:] if inside else None
        self._zero = y.new_zeros(())
        self._terms = [(buffer[rows], weights) for rows, weights in _weights(tableau, inside, y.dtype, y.device)]
        self._included = 0  # stages

    @staticmethod
    def suit(tableau: ButcherTableau, y: Tensor) -> bool:
        """Whether steps of states like y [n, F] gain by a buffer: it is small, and nothing tracks what it holds."""
        # the size last: a traced graph would be for sizes up to it only
        return tableau.stages > 1 and untracked(y) and _saves(tableau) and _number(tableau) * y.numel() <= MAX_NUMEL

    def fit(self, y: Tensor) -> bool:
        """Whether these are sums for states like y [n, F]."""
        return self._sums[0].shape == y.shape

    def clear(self) -> None:
        """Begin a step."""
        self._included = 0

    def stage(self, i: int, stages: Sequence[Tensor]) -> Tensor:
        """[n, F] the sum for stage i over the i stages that there are, or for the solution; without its scale."""
        self._include(stages)
        return self._sums[i - 1]

    def error(self, stages: Sequence[Tensor], dt: Tensor, scale: float) -> Tensor:
        """[n, F] the error estimate: dt [n, 1] times the sum over all stages times its scale."""
        self._include(stages)
        return torch.addcmul(self._zero, dt, self._sums[-1], value=scale)

    def inside(self, stages: Sequence[Tensor], y: Tensor, dt: Tensor) -> Tensor | None:
        """[M, n, F] states at the places within the step of length dt [n, 1] from y [n, F]; None: there are none."""
        if self._inside is None:
            return None
        self._include(stages)
        return torch.addcmul(y, dt, self._inside)

    def _include(self, stages: Sequence[Tensor]) -> None:
        for i in range(self._included, len(stages)):
            part, weights = self._terms[i]
            if i == 0:
                torch.mul(weights, stages[0], out=part)
            else:
                part.addcmul_(weights, stages[i])
        self._included = len(stages)


def _rows(tableau: ButcherTableau, inside: tuple[float, ...]) -> list[list[float]]:
    """The factors of each sum, over all stages."""
    sums = [*tableau.stage_sums[1:], *(() if tableau.last_at_end else (tableau.solution_sum,))]
    sums += [] if tableau.error_sum is None else [tableau.error_sum]
    factors = [{sum_.first: 1.0, **dict(sum_.others)} for sum_ in sums]
    rows = [[row.get(stage, 0.0) for stage in range(tableau.stages)] for row in factors]
    polynomials = tableau.interpolant or ()
    return rows + [[sum(b * x**j for j, b in enumerate(row, start=1)) for row in polynomials] for x in inside]


def _number(tableau: ButcherTableau) -> int:
    """Number of sums."""
    return tableau.stages - tableau.last_at_end + (tableau.b_err is not None)


@lru_cache(maxsize=64)
def _saves(tableau: ButcherTableau) -> bool:
    """Whether a step takes at least two operations fewer than with sums made one by one."""
    sums = [*tableau.stage_sums, *(() if tableau.last_at_end else (tableau.solution_sum,))]
    apart = sum(len(weights.others) for weights in sums)
    return apart + (0 if tableau.error_sum is None else len(tableau.error_sum.others) + 1) - tableau.stages > 1


@lru_cache(maxsize=64)  # needed whenever samples leave a solve, and they may have to be copied to a device
def _weights(
    tableau: ButcherTableau, inside: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> list[tuple[slice, Tensor]]:
    """For each stage the sums that read it, and its factors [R, 1, 1] in them; the first stage begins all sums."""
    parts = []
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in later training
        for stage, column in enumerate(zip(*_rows(tableau, inside), strict=True)):
            used = [row for row, weight in enumerate(column) if weight != 0]
            rows = slice(0, len(column)) if stage == 0 or not used else slice(used[0], used[-1] + 1)
            parts.append((rows, torch.tensor(column[rows], dtype=dtype, device=device)[:, None, None]))
    return parts
