"""Committees of selectors, and cross-fitting: each sample is tested with members that were not fitted to it."""

from collections.abc import Callable, Iterable
from itertools import combinations
from typing import cast

import torch
from torch import Tensor, nn

from dise.integrate.annotations import Float, Inexact, Shaped
from dise.integrate.argument_types import checked_arguments
from dise.select.judging.costs import Costs
from dise.select.learning.networks import FeatureNetwork
from dise.select.learning.selector import CostSelector
from dise.select.policies.dynamic import cheapest_candidate


@checked_arguments
class Committee(nn.Module):
    """Selector that predicts the cost of every candidate by the mean of its members' predictions.

    If the members' networks are `FeatureNetwork`s, they must have the same features before standardisation: the first
    member computes them once for all.

    Args:
        members: at least one selector; all of them are `conditional` (see `Dynamic`), or none is.

    Raises:
        ValueError: no members.
    """

    def __init__(self, members: Iterable[CostSelector]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        if not self.members:
            raise ValueError("members: expected at least one selector, got none")

    @property
    def conditional(self) -> bool:
        """Whether the members are given conditions."""
        return cast(CostSelector, self.members[0]).conditional

    def forward(
        self, h0: Inexact[Tensor, "n ..."], k1: Inexact[Tensor, "n ..."], *conditions: Shaped[Tensor, "n ..."]
    ) -> Float[Tensor, "n K"]:
        """Predicted costs [n, K] from states h0 and derivatives k1 [n, ...] at t0, and conditions if asked for."""
        members = cast(Iterable[CostSelector], self.members)
        network = self.members[0].network
        if isinstance(network, FeatureNetwork):
            features = network.features(h0, k1, *conditions)
            predictions = [member.score_features(features) for member in members]
        else:
            predictions = [member(h0, k1, *conditions) for member in members]
        return torch.stack(predictions).mean(0)


@checked_arguments
def cross_fit(
    costs: Costs, network: Callable[[], nn.Module], *, folds: int = 4, seed: int = 0
) -> tuple[Committee, Tensor]:
    """Fit a committee, and choose for each sample with members that were not fitted to it.

    Each member is fitted to all folds but two, so there are folds·(folds − 1)/2 members. The choice for the samples of
    a fold is made by the folds − 1 members that leave this fold out. So a committee is tested, not a single selector,
    whose choices would vary more than those of the final committee.

    Args:
        costs: costs on N samples.
        network: returns an untrained network for `CostSelector.fit`.
        folds: number of folds of the samples.
        seed: of the folds and the fits; torch's global generator is not used.

    Returns:
        the committee of all members, in evaluation mode; and [N] index of the candidate for each sample, chosen by the
        members that were not fitted to it.

    Raises:
        ValueError: fewer than three folds, or fewer samples than folds.
    """
    if not 3 <= folds <= len(costs):
        raise ValueError(f"folds: expected 3 to {len(costs)} (the number of samples), got {folds}")
    parts = torch.randperm(len(costs), generator=torch.Generator().manual_seed(int(seed))).tensor_split(folds)
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
        choice[part] = selector_choice(unaware, costs.take(part))
    return Committee(members).eval(), choice


@checked_arguments
@torch.no_grad()
def selector_choice(selector: Callable[..., Tensor], costs: Costs) -> Tensor:
    """[N] index of the candidate that the selector chooses for each sample."""
    scores = [selector(*inputs) for inputs in costs.input_batches(selector)]
    return cheapest_candidate(torch.cat(scores))
