"""Baseline selectors: a given assignment, and random choice."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from dise.integrate.annotations import Float, Inexact
from dise.integrate.argument_types import checked_arguments


@checked_arguments
class AssignedSelector(nn.Module):
    """Selector of a given assignment for one batch, e.g. that of an oracle.

    Args:
        choice: [B] index of each sample's candidate, for the batch to be solved.
        candidates: K.

    Raises:
        ValueError: indices outside of 0, …, K − 1; when solving: a number of samples other than B.
    """

    choice: Tensor

    def __init__(self, choice: Tensor, candidates: int) -> None:
        super().__init__()
        if choice.ndim != 1 or not ((choice >= 0) & (choice < candidates)).all():
            raise ValueError(f"choice: expected [B] indices of {candidates} candidates, got {choice!r}")
        self.candidates = candidates
        self.register_buffer("choice", choice.long())

    def forward(self, h0: Inexact[Tensor, "n ..."], k1: Inexact[Tensor, "n ..."]) -> Float[Tensor, "n K"]:
        """h0, k1 [B, ...] → scores [B, K]: 0 for the assigned candidate, 1 for the others."""
        if len(h0) != len(self.choice):
            raise ValueError(f"choice: expected the {len(self.choice)} samples of the assignment, got {len(h0)}")
        return 1 - one_hot(self.choice, self.candidates).to(h0.real.dtype)


@checked_arguments
class RandomSelector(nn.Module):
    """Random selector with given shares of the candidates: a policy with the same shares must do better.

    Choices are drawn from torch's global generator.

    Args:
        shares: [K] how often each candidate is chosen, up to a factor; at least 0, not all 0.

    Raises:
        ValueError: shares that are negative, not finite or all 0.
    """

    shares: Tensor

    def __init__(self, shares: Sequence[float]) -> None:
        super().__init__()
        values = torch.as_tensor(shares, dtype=torch.float32)
        if values.ndim != 1 or not (values >= 0).all() or not 0 < float(values.sum()) < float("inf"):
            raise ValueError(f"shares: expected numbers of at least 0, not all 0, got {shares!r}")
        self.register_buffer("shares", values / values.sum())

    def forward(self, h0: Inexact[Tensor, "n ..."], k1: Inexact[Tensor, "n ..."]) -> Float[Tensor, "n K"]:
        """h0, k1 [n, ...] → scores [n, K]: exponential variables whose rates are the shares.

        The probability that one of independent exponential variables is the smallest is proportional to its rate.
        """
        draws = torch.empty(len(h0), len(self.shares), device=h0.device).exponential_()
        return draws / self.shares.to(h0.device)
