"""Outputs that are not finite where those of the reference are: losses, whatever the risk or the cost."""

import torch
from torch import Tensor


def non_finite_loss(output: Tensor, reference: Tensor, *, leading: int = 1) -> Tensor:
    """Bool, whether a number of an output is not finite where the reference's is; NaN also where the reference's is ±∞.

    Infinite logits of the reference are legitimate: −∞ excludes a class.

    Args:
        output, reference: [n, ...], with `leading` leading dimensions; they may broadcast.
        leading: dimensions that are kept, by default [n].
    """
    lost = (~output.isfinite() & reference.isfinite()) | (output.isnan() & ~reference.isnan())
    return lost.reshape(*lost.shape[:leading], -1).any(-1)


def has_nan(output: Tensor) -> Tensor:
    """[n] bool, whether an output [n, ...] has a NaN."""
    return output.isnan().reshape(len(output), -1).any(1)


def difference(output: Tensor, reference: Tensor) -> Tensor:
    """output − reference, which is 0 where both are equal, infinite ones and NaN included."""
    equal = (output == reference) | (output.isnan() & reference.isnan())
    return torch.where(equal, 0, output - reference)
