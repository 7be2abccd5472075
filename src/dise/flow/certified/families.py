"""Families of policies for a flow: selectors over tables, over own steps, and over both."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dise.integrate import Integrator
from dise.integrate.exact import inner
from dise.integrate.integrators import ErrorControlled
from dise.nn import NeuralODE
from dise.select.judging.costs import Costs
from dise.select.judging.front import pareto_front
from dise.select.learning.adequacy import AdequacySelector
from dise.select.learning.fit import FitData
from dise.select.learning.networks import StateNetwork
from dise.select.make_dynamic.families import FEWEST, Family
from dise.select.model.block import device_of
from dise.select.policies.dynamic import Dynamic

DIALS = tuple(2 ** (i / 8) for i in range(104, -1, -1))  # μ, in units of the cheapest candidate's price
WIDTH, DEPTH = 48, 3  # of a selector's hidden layers
MOST = 10  # candidates of a selector: more make more groups of draws, and hardly save evaluations


@dataclass(frozen=True)
class Material:
    """What families are made from.

    Attributes:
        costs: of all candidates, by rising price, the reference last, on the draws to learn from.
        block: the flow's, for families that look at its field.
        seed: of fits.
    """

    costs: Costs
    block: NeuralODE
    seed: int


MakeFamily = Callable[[Material], Family | None]
"""Makes a family, its safest setting first; None if the candidates or draws do not allow it."""


def selectors(name: str, allowed: Callable[[Integrator], bool], material: Material) -> Family | None:
    """Selectors that give each draw the cheapest candidate that is probably adequate, which differ in the dial μ.

    A network predicts the probability that a candidate is adequate from the noise, the first evaluation of the field
    and the conditions. The expected price NFE_k + μ (1 − p_k) is the Lagrangian of the smallest mean NFE at a given
    risk.

    Args:
        name: of the family.
        allowed: which candidates it may use.
        material: candidates and draws.
    """
    columns = [i for i, candidate in enumerate(material.costs.candidates) if allowed(candidate)]
    chosen = most_useful(material.costs, columns)
    if len(chosen) < 2:
        return None
    costs = material.costs.take_candidates(chosen)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(material.seed)  # of the network's first weights
        network = StateNetwork.like(costs.h0, costs.conditions, len(costs.candidates), hidden=WIDTH, depth=DEPTH)
    if int(FitData.of(network, costs, costs.adequate).finite().sum()) < FEWEST:
        return None
    selector = AdequacySelector.fit(
        network, costs, max_epochs=100, patience=20, batch_size=256, learning_rate=4e-3, seed=material.seed
    ).to(device_of(material.block))
    price = float(selector.price.min())
    return Family(
        name, tuple(Dynamic(costs.candidates, selector.with_dial(price * dial)) for dial in DIALS), learnt=True
    )


def most_useful(costs: Costs, columns: list[int], most: int = MOST) -> list[int]:
    """At most `most` + 1 of some candidates, by rising price: those that an oracle gains most from, and the safest.

    They are added one by one, each so that the mean price of an oracle that may use the reference falls most.

    Args:
        costs: of all candidates, the reference last.
        columns: indices of those to choose from.
        most: their number.
    """
    if not columns:
        return []
    price, lost = costs.delta.double(), (~costs.adequate).double()
    safest = pareto_front(price[:, columns].mean(0), lost[:, columns].mean(0))[-1]
    paid = torch.where(costs.adequate, price, price[:, -1:])
    best, chosen = price[:, -1], set[int]()
    for _ in range(min(most, len(columns))):
        means = {i: float(torch.minimum(best, paid[:, i]).mean()) for i in columns if i not in chosen}
        found = min(means, key=lambda i: means[i])
        if means[found] >= float(best.mean()):
            break
        chosen.add(found)
        best = torch.minimum(best, paid[:, found])
    return sorted(chosen | {columns[safest]})


def has_own_steps(candidate: Integrator) -> bool:
    """Whether a candidate chooses step sizes for each draw."""
    return isinstance(inner(candidate), ErrorControlled)


FAMILIES: tuple[MakeFamily, ...] = (
    partial(selectors, "selector over tables", lambda candidate: not has_own_steps(candidate)),
    partial(selectors, "selector over own steps", has_own_steps),
    partial(selectors, "selector over both", lambda candidate: True),
)


def one_for_all(costs: Costs) -> Iterator[int]:
    """Indices of single candidates on the Pareto front of price and share of losses, the safest first."""
    lost = (~costs.adequate).double().mean(0)
    last = len(costs.candidates) - 1
    front = pareto_front(costs.delta.double().mean(0), lost)
    return (i for i in reversed(front) if i != last)


def mean_oracle(costs: Costs) -> Tensor:
    """Mean price if each draw got its cheapest adequate candidate; the reference, the last one, where there is none."""
    price = costs.delta.double()
    return torch.where(costs.adequate, price, price[:, -1:]).amin(1).mean()
