"""Baseline selectors: a given assignment and random choice."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot


class AssignedSelector(nn.Module):
    """Gives each sample of one batch the candidate that somebody chose for it: an oracle, or any other routing, run.

    Args:
        choice: [B] index of each sample's candidate, for the batch that is to be solved.
        candidates: K.

    Raises:
        ValueError: indices that are none of 0, …, K − 1; when solving: another number of samples than B.
    """

    choice: Tensor

    def __init__(self, choice: Tensor, candidates: int) -> None:
        super().__init__()
        if choice.ndim != 1 or not ((choice >= 0) & (choice < candidates)).all():
            raise ValueError(f"choice: expected [B] indices of {candidates} candidates, got {choice!r}")
        self.candidates = candidates
        self.register_buffer("choice", choice.long())

    def forward(self, h0: Tensor, k1: Tensor) -> Tensor:
        """[B, ...] twice → [B, K]: 0 for the candidate that is assigned, 1 for the others."""
        if len(h0) != len(self.choice):
            raise ValueError(f"choice: was made for {len(self.choice)} samples, got {len(h0)}")
        return 1 - one_hot(self.choice, self.candidates).to(h0.real.dtype)


class RandomSelector(nn.Module):
    """Chooses at random with given shares: what a `Dynamic` of the same mix must beat.

    Args:
        shares: [K], how often each candidate is chosen; at least 0, not all 0. It draws from torch's generator.

    Raises:
        ValueError: shares that are none.
    """

    shares: Tensor

    def __init__(self, shares: Sequence[float]) -> None:
        super().__init__()
        values = torch.as_tensor(shares, dtype=torch.float32)
        if values.ndim != 1 or not (values >= 0).all() or not 0 < float(values.sum()) < float("inf"):
            raise ValueError(f"shares: expected numbers of at least 0, not all 0, got {shares!r}")
        self.register_buffer("shares", values / values.sum())

    def forward(self, h0: Tensor, k1: Tensor) -> Tensor:
        """[n, ...] twice → [n, K]: the first of exponential clocks with these rates rings with these probabilities."""
        clocks = torch.empty(len(h0), len(self.shares), device=h0.device).exponential_()
        return clocks / self.shares.to(h0.device)
