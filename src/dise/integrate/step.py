"""One Runge–Kutta step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.tableau import ButcherTableau


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
        if self.tableau.b_err is None:
            raise ValueError("this Runge–Kutta method has no embedded error estimate; use one that has, e.g. Dopri5")
        return self.dt[:, None] * combine(self.tableau.b_err, self.stages)


def combine(weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """Σ weights_i · stages_i; stages of weight 0 are not read."""
    terms = [(w, k) for w, k in zip(weights, stages, strict=False) if w != 0]
    total = terms[0][0] * terms[0][1]
    for weight, stage in terms[1:]:
        total = torch.add(total, stage, alpha=weight)
    return total


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
        self._y_stage = torch.addcmul(self.y, self.dt[:, None], combine(self.tableau.a[i], self.stages))
        c = self.tableau.c[i]
        # t + dt would miss t_next by a rounding
        return (self.t_next if c == 1 else torch.add(self.t, self.dt, alpha=c)), self._y_stage

    def finish(self) -> Step:
        """The step, once all stages are there."""
        if self.tableau.fsal:
            y_next = self._y_stage  # first same as last: the last stage was evaluated at the step's end
        else:
            y_next = torch.addcmul(self.y, self.dt[:, None], combine(self.tableau.b, self.stages))
        return Step(self.t, self.dt, self.y, y_next, tuple(self.stages), self.tableau)
