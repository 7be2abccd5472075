"""The Jacobian's Frobenius norm (Finlay et al., How to Train Your Neural ODE, 2020)."""

import torch
from torch import Tensor

from dise.integrate.annotations import Float
from dise.integrate.problem.field import BoundField
from dise.integrate.value import as_whole
from dise.regularize.path_integral import PathIntegral, squared_norm
from dise.regularize.regularizer import Reduce


class JacobianNorm(PathIntegral):
    """R = ∫ ‖∂f/∂h‖_F² dt, estimated by random directions ε: E ‖(∂f/∂h) ε‖² = ‖∂f/∂h‖_F² (Hutchinson).

    With `KineticEnergy` (`TransportCost` for a flow) it is the regularizer of RNODE.

    Args:
        probes: number of random directions ε ∈ {−1, 1}^F at each of a step's two nodes, drawn from torch's global
            generator; None: all F coordinate directions, which gives the norm itself.
        reduce: "mean" or "sum" over the batch.

    Raises:
        ValueError: probes is not a positive whole number.

    Source: Finlay, Jacobsen, Nurbekyan, Oberman, How to Train Your Neural ODE, 2020 (RNODE).
    """

    def __init__(self, probes: int | None = 1, *, reduce: Reduce = "mean") -> None:
        super().__init__(reduce=reduce)
        self.probes = None if probes is None else as_whole("probes", probes)

    def integrand(self, field: BoundField, t: Float[Tensor, " n"], y: Tensor) -> Float[Tensor, " n"]:
        """[n] ‖∂f/∂h‖_F², or its estimate."""
        if self.probes is None:
            directions = list(torch.eye(y.shape[1], dtype=y.dtype, device=y.device)[:, None].expand(-1, *y.shape))
        else:
            directions = [torch.randint_like(y.real, 0, 2).to(y.dtype) * 2 - 1 for _ in range(self.probes)]
        products = [torch.func.jvp(lambda y: field(t, y), (y,), (direction,))[1] for direction in directions]
        total = torch.stack([squared_norm(product) for product in products]).sum(0)
        return total if self.probes is None else total / self.probes

    def __repr__(self) -> str:
        return f"JacobianNorm(probes={self.probes}, reduce={self.reduce!r})"
