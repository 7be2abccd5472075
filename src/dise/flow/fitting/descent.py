"""Fitting parameters by L-BFGS, with early stopping on held-out draws."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

_CHECK, _PATIENCE = 10, 3  # iterations between looks at the held-out loss; looks without improvement
_DAMPING = 1e-4  # of the curvature, relative to the largest


def descend(
    parameters: nn.Module,
    loss: Callable[[], Tensor],
    held_out: Callable[[], float],
    iterations: int,
    curvature: Tensor,
) -> int:
    """Minimize a loss that sets gradients; leaves the parameters of the smallest held-out loss seen.

    A table has few parameters and the draws are fixed, so that a quasi-Newton method on all draws converges in some
    tens of iterations, where Adam takes hundreds. Directions differ in curvature by many orders of magnitude: they are
    scaled by an estimate of it first.

    Args:
        parameters: to fit.
        loss: of the parameters; sets their gradients.
        held_out: loss on other draws.
        iterations: at most this many, in tens.
        curvature: [P, P] positive semidefinite estimate of the loss's second derivatives.

    Returns:
        number of iterations done.
    """
    first = parameters_to_vector(parameters.parameters()).detach()
    scaling = _inverse_root(curvature)
    moved = torch.zeros_like(first, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [moved], max_iter=_CHECK, max_eval=10 * _CHECK, history_size=50, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        vector_to_parameters(first + scaling @ moved.detach(), parameters.parameters())
        value = float(loss())
        gradient = torch.cat([p.grad.flatten() for p in parameters.parameters() if p.grad is not None])
        moved.grad = scaling @ gradient
        return value

    best, kept, stale, done = held_out(), copy.deepcopy(parameters.state_dict()), 0, 0
    for _ in range(math.ceil(iterations / _CHECK)):
        optimizer.step(closure)
        vector_to_parameters(first + scaling @ moved.detach(), parameters.parameters())
        if not bool(moved.isfinite().all()):
            break
        done, before = int(optimizer.state[moved]["n_iter"]), done
        value = held_out()
        if value < best:
            best, kept, stale = value, copy.deepcopy(parameters.state_dict()), 0
        else:
            stale += 1
        if stale == _PATIENCE or done - before < _CHECK:  # L-BFGS stops by itself where it has converged
            break
    parameters.load_state_dict(kept)
    return done


def _inverse_root(curvature: Tensor) -> Tensor:
    """(C/c + damping)^(−1/2) with c the largest eigenvalue of C."""
    values, vectors = torch.linalg.eigh(curvature)
    relative = values.clamp(min=0) / values.max().clamp(min=torch.finfo(values.dtype).tiny)
    return vectors @ torch.diag((relative + _DAMPING).rsqrt()) @ vectors.T
