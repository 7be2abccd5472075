"""Norms of the vector field's parameters."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dise.integrate import Solution
from dise.integrate.annotations import Float
from dise.regularize.regularizer import Regularizer


class L1(Regularizer):
    """R = ‖θ‖₁ of the vector field's parameters."""

    def __call__(self, solution: Solution | None, f: nn.Module) -> Float[Tensor, ""]:
        """Σ |θ|, a scalar []."""
        return _sum(p.abs().sum() for p in f.parameters())


class L2(Regularizer):
    """R = ‖θ‖₂² of the vector field's parameters."""

    def __call__(self, solution: Solution | None, f: nn.Module) -> Float[Tensor, ""]:
        """Σ θ², a scalar []."""
        return _sum(p.square().sum() for p in f.parameters())


def _sum(terms: Iterable[Tensor]) -> Tensor:
    """[] sum of scalars; 0 if there are none."""
    values = list(terms)
    return torch.stack(values).sum() if values else torch.zeros(())
