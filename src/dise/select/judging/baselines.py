"""Policies beside which every selector is judged, computed from what each candidate did alone."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dise.select.judging.costs import Costs


@dataclass(frozen=True)
class PolicyScore:
    """A policy's result on N samples.

    Attributes:
        name: what it is.
        weights: [N, K] float, probability that a sample gets each candidate.
        adequate: [N] float, (expected) share of adequate results.
        nfe: [N] float, (expected) NFE.
    """

    name: str
    weights: Tensor
    adequate: Tensor
    nfe: Tensor

    @classmethod
    def of(cls, name: str, costs: Costs, weights: Tensor) -> "PolicyScore":
        """The score of a policy that gives samples the candidates with probabilities `weights` [N, K]."""
        adequate, nfe = ((weights * column.float()).sum(1) for column in (costs.adequate, costs.nfe))
        return cls(name, weights, adequate, nfe)

    @property
    def accuracy(self) -> float:
        """Mean of `adequate`."""
        return float(self.adequate.double().mean())

    @property
    def mean_nfe(self) -> float:
        """Mean of `nfe`."""
        return float(self.nfe.double().mean())


def chosen(name: str, costs: Costs, choice: Tensor) -> PolicyScore:
    """The candidate `choice` [N] for each sample."""
    return PolicyScore.of(name, costs, one_hot(choice, len(costs.candidates)).float())


def single(costs: Costs, index: int) -> PolicyScore:
    """One candidate for all samples."""
    return chosen(str(costs.candidates[index]), costs, torch.full((len(costs),), index, device=costs.nfe.device))


def ideal(costs: Costs) -> Tensor:
    """[N] index of the cheapest adequate candidate of each sample; of the cheapest of all where none is adequate."""
    price = torch.where(costs.adequate, costs.delta.float(), torch.inf)
    return torch.where(costs.adequate.any(1), price.argmin(1), costs.delta.argmin(1))


def oracle(costs: Costs) -> PolicyScore:
    """Each sample's `ideal` candidate. `Dynamic(candidates, AssignedSelector(ideal(costs), K))` runs it."""
    return chosen("oracle", costs, ideal(costs))


def random_mix(costs: Costs, shares: Tensor) -> PolicyScore:
    """Random routing with the given shares [K] of the candidates: its expectation, exactly."""
    weights = (shares / shares.sum()).to(costs.nfe.device).float()
    return PolicyScore.of("random, same mix", costs, weights.expand(costs.nfe.shape))


def closed_gap(cost: Tensor, choice: Tensor) -> float | None:
    """How much of what can be gained by choosing a selector gains: 0 for the best single candidate, 1 for the oracle.

    It is negative where the selector is worse than the best single candidate.

    Args:
        cost: [N, K] cost of each candidate on each sample.
        choice: [N] index of the candidate that each sample gets.

    Returns:
        (best single − policy) / (best single − oracle), in mean costs; None where there is nothing to gain.

    Source: Xu, Hutter, Hoos, Leyton-Brown, SATzilla: portfolio-based algorithm selection for SAT, 2008; Lindauer, van
    Rijn, Kotthoff, The algorithm selection competitions 2015 and 2017, 2019.
    """
    cost = cost.double()
    best, ideal = float(cost.mean(0).min()), float(cost.min(1).values.mean())
    if best - ideal <= 1e-12 * abs(best):
        return None
    return (best - float(cost.gather(1, choice[:, None]).mean())) / (best - ideal)
