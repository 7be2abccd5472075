"""Several selectors that decide together, and fits of which no member has seen the samples that it is tested on."""

from collections.abc import Callable, Iterable
from itertools import combinations
from typing import cast

import torch
from torch import Tensor, nn

from dise.select.judging.costs import Costs
from dise.select.learning.networks import FeatureNetwork
from dise.select.learning.selector import CostSelector
from dise.select.policies.dynamic import cheapest


class Committee(nn.Module):
    """Predicted costs of every candidate: the mean of what the members predict.

    Members whose networks are `FeatureNetwork`s must have the same features, apart from their standardisation: they
    are computed once, by the first member, for all.

    Args:
        members: at least one.

    Raises:
        ValueError: no members.
    """

    def __init__(self, members: Iterable[CostSelector]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        if not self.members:
            raise ValueError("members: expected at least one selector, got none")

    def forward(self, h0: Tensor, k1: Tensor) -> Tensor:
        """Predicted costs [n, K] of samples with states and derivatives [n, ...] at t0."""
        members = cast(Iterable[CostSelector], self.members)
        network = self.members[0].network
        if isinstance(network, FeatureNetwork):
            features = network.features(h0, k1)
            predictions = [member.of_features(features) for member in members]
        else:
            predictions = [member(h0, k1) for member in members]
        return torch.stack(predictions).mean(0)


def cross_fit(
    costs: Costs, network: Callable[[], nn.Module], *, folds: int = 4, seed: int = 0
) -> tuple[Committee, Tensor]:
    """A committee, and the choices that committees like it make for samples that they have not seen.

    Each member is fitted to all parts of the samples but two, so there are folds·(folds − 1)/2 of them. The members
    that have not seen a part, folds − 1, choose for it. With them a committee is tested, not a single selector, whose
    choices scatter more than those of the committee that is used in the end.

    Args:
        costs: of N samples.
        network: makes an untrained network as `CostSelector.fit` takes it.
        folds: parts of the samples.
        seed: of the parts and the fits. It leaves torch's global generator alone.

    Returns:
        the committee of all members, in evaluation mode; [N] index of the candidate that each sample gets from those
        which have not seen it.

    Raises:
        ValueError: fewer than three folds, or fewer samples than folds.
    """
    if not 3 <= folds <= len(costs):
        raise ValueError(f"folds: expected 3 to {len(costs)} (the number of samples), got {folds}")
    parts = torch.randperm(len(costs), generator=torch.Generator().manual_seed(seed)).tensor_split(folds)
    pairs = list(combinations(range(folds), 2))
    members = []
    for index, pair in enumerate(pairs):
        seen = torch.cat([part for i, part in enumerate(parts) if i not in pair])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + index)
            members.append(CostSelector.fit(network(), costs.take(seen), seed=seed + index))
    choice = torch.empty(len(costs), dtype=torch.int64, device=costs.nfe.device)
    for i, part in enumerate(parts):
        unaware = Committee(member for member, pair in zip(members, pairs, strict=True) if i in pair)
        choice[part] = route(unaware, costs.take(part))
    return Committee(members).eval(), choice


@torch.no_grad()
def route(selector: nn.Module, costs: Costs) -> Tensor:
    """[N] index of the candidate that the selector gives each sample."""
    scores = [selector(h0, k1) for h0, k1 in zip(costs.h0.split(500), costs.k1.split(500), strict=True)]
    return cheapest(torch.cat(scores))
