"""Lobatto's rule of seven nodes, with the Legendre coefficients of the integrand and an error estimate from them."""

from functools import lru_cache

import torch
from torch import Tensor

from dise.integrate.lobatto_nodes import lobatto_nodes

NUMBER = 7
NODES = lobatto_nodes(NUMBER)  # in [0, 1]


def _coefficient_rows() -> tuple[tuple[float, ...], ...]:
    """Weights of the coefficients of the Legendre polynomials P_0, P_1, … in the interpolant at the nodes."""
    columns = []
    for node in NODES:
        x = 2 * node - 1
        polynomials = [1.0, x]
        for k in range(1, NUMBER - 1):  # Bonnet's recursion
            polynomials.append(((2 * k + 1) * x * polynomials[k] - k * polynomials[k - 1]) / (k + 1))
        weight = 2 / (NUMBER * (NUMBER - 1) * polynomials[-1] ** 2)
        norms = [2 / (2 * k + 1) for k in range(NUMBER - 1)] + [2 / (NUMBER - 1)]  # Σ weight P_k², not exact for P_6
        columns.append([weight * p / norm for p, norm in zip(polynomials, norms, strict=True)])
    return tuple(zip(*columns, strict=True))


ROWS = _coefficient_rows()  # the first has the weights of the integral over [0, 1]


def legendre_coefficients(values: Tensor) -> Tensor:
    """[7, ...] coefficients a_k of the polynomial Σ a_k P_k through values [7, ...] at the nodes; a_0 is the integral.

    The rule has order 12. Its nodes include the ends, so it sees a jump wherever it is.
    """
    weights = _weights(values.dtype, values.device)
    with torch.autocast(values.device.type, enabled=False):  # it is meant for f and would round the values
        return torch.mm(weights, values.flatten(1)).view(values.shape)


def error_estimate(coefficients: Tensor) -> Tensor:
    """[...] the estimated error of the integral a_0, from its Legendre coefficients [7, ...].

    The coefficients of a smooth function decrease geometrically, and the error is about a_12, the first coefficient
    that the rule does not integrate to 0. Let each be r times the one before it. Pairs of them, since the even or the
    odd ones may vanish, give two values of r: (a_3² + a_4²) / (a_1² + a_2²) and (a_5² + a_6²) / (a_3² + a_4²) are r⁴.
    With the larger one a_12 is about r^6.5 √(a_5² + a_6²), and r⁶ is on the safe side. Where r > 1/2 the function
    jumps, has kinks or is not resolved, and the estimate is √(a_5² + a_6²).

    Source: Berntsen, Espelid, Error estimation in automatic quadrature routines, 1991 (decreasing null rules).
    """
    first, second, third = torch.hypot(coefficients[1::2], coefficients[2::2])
    ratio = torch.maximum(second / first, third / second)  # r²
    return torch.where(ratio <= 0.25, third * ratio * ratio * ratio, third)  # pow is ten times as slow


@lru_cache(maxsize=16)  # every call needs them, and they may have to be copied to a device
def _weights(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[7, 7] weights of the values in the coefficients."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in later training
        return torch.tensor(ROWS, dtype=dtype, device=device)
