"""Scores of baseline policies (single candidates, oracle, random mix), computed from the candidates' costs."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dise.integrate.annotations import Int, Num
from dise.integrate.argument_types import checked_arguments
from dise.select.judging.costs import Costs


@dataclass(frozen=True)
class PolicyScore:
    """Results of a policy on N samples.

    Attributes:
        name: name of the policy.
        weights: [N, K] probability that a sample gets each candidate.
        adequate: [N] probability that the result is adequate; 0 or 1 without chance.
        nfe: [N] expected NFE.
    """

    name: str
    weights: Tensor
    adequate: Tensor
    nfe: Tensor

    @classmethod
    def of(cls, name: str, costs: Costs, weights: Tensor) -> "PolicyScore":
        """Score of the policy with these probabilities `weights` [N, K] of the candidates.

        Raises:
            ValueError: weights of another number of samples or candidates than the costs.
        """
        if weights.shape != costs.nfe.shape:
            expected, got = tuple(costs.nfe.shape), tuple(weights.shape)
            raise ValueError(f"weights: expected {expected}, a row per sample and a column per candidate, got {got}")
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


@checked_arguments
def assignment_score(name: str, costs: Costs, choice: Int[Tensor, " N"]) -> PolicyScore:
    """Score of the policy that gives each sample the candidate with index `choice` [N]."""
    check_choice(choice, costs)
    return PolicyScore.of(name, costs, one_hot(choice.long(), len(costs.candidates)).float())


def check_choice(choice: Tensor, costs: Costs) -> None:
    """Raise a ValueError unless all of a choice are indices of the costs' candidates."""
    candidates = len(costs.candidates)
    if not ((choice >= 0) & (choice < candidates)).all():
        raise ValueError(f"choice: expected indices of {candidates} candidates, got {choice!r}")


@checked_arguments
def single_candidate(costs: Costs, index: int) -> PolicyScore:
    """Score of one candidate for all samples."""
    choice = torch.full((len(costs),), index, device=costs.nfe.device)
    return assignment_score(str(costs.candidates[index]), costs, choice)


@checked_arguments
def oracle_choice(costs: Costs) -> Tensor:
    """[N] index of each sample's cheapest adequate candidate, or of its cheapest candidate where none is adequate."""
    price = torch.where(costs.adequate, costs.delta.float(), torch.inf)
    return torch.where(costs.adequate.any(1), price.argmin(1), costs.delta.argmin(1))


@checked_arguments
def oracle(costs: Costs) -> PolicyScore:
    """Score of the `oracle_choice`, which `Dynamic(candidates, AssignedSelector(oracle_choice(costs), K))` runs."""
    return assignment_score("oracle", costs, oracle_choice(costs))


@checked_arguments
def random_mix(costs: Costs, shares: Num[Tensor, " K"]) -> PolicyScore:
    """Exact expected score of random choice with the given shares [K] of the candidates."""
    if not (shares >= 0).all() or not 0 < float(shares.sum()) < float("inf"):
        raise ValueError(f"shares: expected numbers of at least 0, not all 0, got {shares!r}")
    weights = (shares / shares.sum()).to(costs.nfe.device).float()
    return PolicyScore.of("random, same mix", costs, weights.expand(len(costs), -1))


@checked_arguments
def closed_gap_fraction(cost: Num[Tensor, "N K"], choice: Int[Tensor, " N"]) -> float | None:
    """Fraction of the gap between the best single candidate (0) and the oracle (1) that a policy closes.

    It is negative if the policy is worse than the best single candidate.

    Args:
        cost: [N, K] cost of each candidate on each sample.
        choice: [N] index of the candidate that each sample gets.

    Returns:
        (best single − policy) / (best single − oracle), in mean costs; None if the oracle gains nothing.

    Source: Xu, Hutter, Hoos, Leyton-Brown, SATzilla: portfolio-based algorithm selection for SAT, 2008; Lindauer, van
    Rijn, Kotthoff, The algorithm selection competitions 2015 and 2017, 2019.
    """
    cost = cost.double()
    best, oracle = float(cost.mean(0).min()), float(cost.min(1).values.mean())
    if best - oracle <= 1e-12 * abs(best):
        return None
    return (best - float(cost.gather(1, choice.long()[:, None]).mean())) / (best - oracle)
