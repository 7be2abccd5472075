"""One Runge–Kutta step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.runge_kutta.tableau import ButcherTableau, WeightedSum
from dise.integrate.solution import seen_finite


class Step(NamedTuple):
    """An attempted step of n samples, each from its own t over its own dt."""

    t: Tensor  # [n] start
    dt: Tensor  # [n] signed length
    y: Tensor  # [n, F] state at t
    y_next: Tensor  # [n, F] state at t + dt
    stages: tuple[Tensor, ...]  # k_i, each [n, F]
    tableau: ButcherTableau

    def error(self) -> Tensor:
        """[n, F] embedded error estimate: dt Σ b_err_i k_i.

        Raises:
            ValueError: the method embeds none.
        """
        terms = self.tableau.b_err_terms
        if terms is None:
            raise ValueError("this Runge–Kutta method has no embedded error estimate; use one that has, e.g. Dopri5")
        return (self.dt * terms.scale).unsqueeze(1) * unscaled(terms, self.stages)


def unscaled(terms: WeightedSum, stages: Sequence[Tensor]) -> Tensor:
    """[n, F] a sum of stages but for its scale; stages of weight 0 are not read."""
    total = stages[terms.first]
    for i, factor in terms.rest:
        total = torch.add(total, stages[i], alpha=factor)
    return total


def all_finite(x: Tensor) -> Tensor:
    """[n] whether rows [n, F] are free of NaN and infinity: times 0 both are NaN. Faster than isfinite."""
    x = x.detach()
    if seen_finite(x):
        return torch.ones(len(x), dtype=torch.bool)
    return (x * 0).sum(1) == 0


class Attempt:
    """A step under way. It says where it needs f next; whoever runs it puts the values in:

        while attempt.pending:
            attempt.stages.append(f(*attempt.point()))
        step = attempt.finish()

    so that one text serves those who ask somebody else for f (a coroutine) and those who call it (a compiled graph).

    Args:
        tableau: the method.
        t, t_next: [n] start and end of each sample's step; f is evaluated nowhere outside.
        y: [n, F] state at t.
        k1: [n, F] first stage, f(t, y), if it is known.
    """

    def __init__(self, tableau: ButcherTableau, t: Tensor, t_next: Tensor, y: Tensor, k1: Tensor | None = None) -> None:
        self.tableau, self.t, self.t_next, self.y = tableau, t, t_next, y
        self.dt = t_next - t
        self._dt_column = self.dt.unsqueeze(1)
        self.stages = [] if k1 is None else [k1]
        self.evaluations = tableau.stages - len(self.stages)
        self._y_stage = y

    @property
    def pending(self) -> bool:
        """Whether a stage is missing."""
        return len(self.stages) < self.tableau.stages

    def point(self) -> tuple[Tensor, Tensor]:
        """[n] time and [n, F] state of the next stage."""
        i = len(self.stages)
        if i == 0:
            return self.t, self.y
        self._y_stage = self._moved(self.tableau.a_terms[i])
        c = self.tableau.c[i]
        # t + dt would miss t_next by a rounding
        return (self.t_next if c == 1 else torch.add(self.t, self.dt, alpha=c)), self._y_stage

    def finish(self) -> Step:
        """The step, once all stages are there."""
        # first same as last: the last stage was evaluated at the step's end
        y_next = self._y_stage if self.tableau.fsal else self._moved(self.tableau.b_terms)
        return Step(self.t, self.dt, self.y, y_next, tuple(self.stages), self.tableau)

    def _moved(self, terms: WeightedSum) -> Tensor:
        """y + dt · a sum of stages."""
        return torch.addcmul(self.y, self._dt_column, unscaled(terms, self.stages), value=terms.scale)
