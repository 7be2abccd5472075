"""Policies beside which every selector is judged, computed from what each candidate did alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dise.select.cost import Costs


@dataclass(frozen=True)
class PolicyScore:
    """A policy's result on N samples.

    Attributes:
        name: what it is.
        adequate: [N] float, (expected) share of adequate results.
        nfe: [N] float, (expected) NFE.
    """

    name: str
    adequate: Tensor
    nfe: Tensor

    @property
    def accuracy(self) -> float:
        """Mean of `adequate`."""
        return float(self.adequate.double().mean())

    @property
    def mean_nfe(self) -> float:
        """Mean of `nfe`."""
        return float(self.nfe.double().mean())


def single(costs: Costs, index: int) -> PolicyScore:
    """One candidate for all samples."""
    return PolicyScore(str(costs.candidates[index]), costs.adequate[:, index].float(), costs.nfe[:, index].float())


def oracle(costs: Costs) -> PolicyScore:
    """The cheapest adequate candidate of each sample; the cheapest of all where none is adequate."""
    price = torch.where(costs.adequate, costs.nfe.float(), torch.inf)
    best = torch.where(costs.adequate.any(1), price.argmin(1), costs.nfe.argmin(1))
    return _assigned("oracle", costs, best)


def random_mix(costs: Costs, shares: Tensor) -> PolicyScore:
    """Random routing with the given shares [K] of the candidates: its expectation, exactly."""
    weights = (shares / shares.sum()).to(costs.nfe.device).float()
    return PolicyScore("random, same mix", costs.adequate.float() @ weights, costs.nfe.float() @ weights)


def _assigned(name: str, costs: Costs, choice: Tensor) -> PolicyScore:
    rows = torch.arange(len(costs), device=choice.device)
    return PolicyScore(name, costs.adequate[rows, choice].float(), costs.nfe[rows, choice].float())
