"""One Runge–Kutta step."""

from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.problem import Request
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


def runge_kutta_step(
    tableau: ButcherTableau, t: Tensor, t_next: Tensor, y: Tensor, k1: Tensor, rows: Tensor | None
) -> Generator[Request, Tensor, Step]:
    """Attempt one step: a pure function of its arguments and of the values of f it asks for.

    Args:
        tableau: the method.
        t, t_next: [n] start and end of each sample's step; f is evaluated nowhere outside.
        y: [n, F] state at t.
        k1: [n, F] first stage, f(t, y).
        rows: [n] which of the problem's samples these are; None: all.
    """
    dt = t_next - t
    dt_column = dt[:, None]
    stages = [k1]
    for c, a in zip(tableau.c[1:], tableau.a[1:], strict=True):
        y_stage = torch.addcmul(y, dt_column, combine(a, stages))
        # t + dt would miss t_next by a rounding
        t_stage = t_next if c == 1 else torch.add(t, dt, alpha=c)
        stages.append((yield Request(rows, t_stage, y_stage)))
    # first same as last: the last stage was evaluated at y_next
    y_next = y_stage if tableau.fsal else torch.addcmul(y, dt_column, combine(tableau.b, stages))
    return Step(t, dt, y, y_next, tuple(stages), tableau)
