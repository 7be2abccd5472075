"""Weights of the divergence's integral for the nodes of a table, by linear least squares."""

import torch
from torch import Tensor

from dise.flow.fitting.draws import Draws, exact_field, known_log_prob
from dise.flow.fitting.parameters import Coefficients, Rows
from dise.flow.fitting.unroll import unroll
from dise.flow.flow import Flow
from dise.integrate import MultistepTable

RIDGES = tuple(10.0**k for k in range(-10, 1))  # relative to the mean square of the divergences


def fitted_quadrature(
    flow: Flow,
    table: MultistepTable,
    fitting: Draws,
    held_out: Draws,
    *,
    span: tuple[float, float],
    rows: Rows,
    batch: int,
) -> tuple[float, ...]:
    """n weights w that minimize Σ (log p̂ − log p)² over draws.

        log p̂ = log p_base(x_n) + (t1 − t0) Σ_k w_k div f(t_k, x_k)

    Given the table's states, log p̂ is linear in w. A ridge penalizes the distance from the weights of the table's last
    row; its strength is chosen on the held-out draws, "no change" among the choices. With consistent rows the sum of
    the weights stays as it is.
    """
    before = torch.tensor(table.weights[-1], dtype=torch.float64)
    free = _directions(len(before), rows)
    (slopes, change), (held_slopes, held_change) = (
        _divergences(flow, table, draws, span, batch) for draws in (fitting, held_out)
    )
    design, residual = slopes @ free, change - slopes @ before
    gram, moment = design.T @ design, design.T @ residual
    strength = gram.diagonal().mean()
    candidates = [before]
    for ridge in RIDGES:
        matrix = gram + ridge * strength * torch.eye(len(gram), dtype=torch.float64)
        solution, info = torch.linalg.solve_ex(matrix, moment)
        if not int(info) and bool(solution.isfinite().all()):
            candidates.append(before + free @ solution)
    best = min(candidates, key=lambda weights: float((held_change - held_slopes @ weights).square().mean()))
    return tuple(best.tolist())


@torch.no_grad()
def _divergences(
    flow: Flow, table: MultistepTable, draws: Draws, span: tuple[float, float], batch: int
) -> tuple[Tensor, Tensor]:
    """[N, n] slopes of the log-density at the table's states, times the span, and [N] its right change; on the CPU."""
    field, coefficients = exact_field(flow), Coefficients.of(table)
    designs, changes = [], []
    for part in draws.batches(batch):
        slopes: list[Tensor] = []

        def f(t: Tensor, z: Tensor, *conditions: Tensor, slopes: list[Tensor] = slopes) -> Tensor:
            dz, slope = field(t, (z, z), *conditions)
            slopes.append(slope.squeeze(-1))
            return dz

        end = unroll(f, part, coefficients, *span)
        designs.append((span[1] - span[0]) * torch.stack(slopes, 1).double().cpu())
        changes.append((flow.base.log_prob(end) - known_log_prob(part)).double().cpu())
    design, change = torch.cat(designs), torch.cat(changes)
    finite = design.isfinite().all(1) & change.isfinite()
    return design[finite], change[finite]


def _directions(n: int, rows: Rows) -> Tensor:
    """[n, m] an orthonormal basis of the changes that weights may make."""
    basis = torch.eye(n, dtype=torch.float64)
    if rows == "free":
        return basis
    ones_first = torch.cat([torch.ones(n, 1, dtype=torch.float64), basis[:, : n - 1]], 1)
    return torch.linalg.qr(ones_first).Q[:, 1:]
