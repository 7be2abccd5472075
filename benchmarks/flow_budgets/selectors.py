"""Selectors of tables on draws: fitted, certified by Learn then Test, and judged on fresh draws."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from flow_bars.fields import Draws
from torch import Tensor

from dise.flow.certified.families import DIALS, most_useful
from dise.select import Costs
from dise.select.guarantee.calibrate import exact_binomial
from dise.select.guarantee.risk import RiskCost
from dise.select.learning.adequacy import AdequacySelector
from dise.select.learning.networks import StateNetwork
from dise.select.policies.overhead import count_macs
from flow_budgets.outcomes import Outcomes

EPSILON, DELTA = 0.01, 0.05
MOST = 12  # tables of a selector
PRUNED = 4000  # draws on which they are chosen


@dataclass(frozen=True)
class Split:
    """Numbers of draws: to learn from, to certify on, and fresh ones; in this order."""

    learn: int
    certify: int
    fresh: int

    @property
    def total(self) -> int:
        """All draws."""
        return self.learn + self.certify + self.fresh

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows to certify on, and fresh ones."""
        end = self.learn + self.certify
        return x[self.learn : end], x[end : end + self.fresh]


@dataclass(frozen=True)
class Field:
    """Draws of a field, f at their start k1 [N, D], the reference's NFE [N], and how the draws are split."""

    draws: Draws
    k1: Tensor
    tight: Tensor
    split: Split

    def rows(self, rows: slice, split: Split) -> "Field":
        """Some of the draws, with a split of their own."""
        return Field(self.draws.rows(rows), self.k1[rows], self.tight[rows], split)

    def seeing(self, values: Sequence[Tensor]) -> "Field":
        """The draws with more [N, D] that a selector sees."""
        return replace(self, draws=replace(self.draws, conditions=(*self.draws.conditions, *values)))


def best_single(found: Outcomes, tau: float, split: Split) -> dict[str, object] | None:
    """The cheapest candidate with a risk of at most ε on the draws to certify on, tested on its own."""
    lost, nfe = split.parts((found.error > tau).double()), split.parts(found.nfe.double())
    certified = [
        i for i, risk in enumerate(lost[0].mean(0).tolist()) if exact_binomial(risk, split.certify, EPSILON) <= DELTA
    ]
    if not certified:
        return None
    best = min(certified, key=lambda i: float(nfe[0][:, i].mean()))
    return {
        "candidate": str(found.candidates[best]),
        "nfe": float(nfe[1][:, best].mean()),
        "risk": float(lost[1][:, best].mean()),
    }


def oracle(found: Outcomes, tight: Tensor, tau: float, split: Split) -> float:
    """Mean NFE on fresh draws if each had its cheapest adequate candidate, or else the reference, of NFE `tight`."""
    costs = _costs(found, tight, tau).take(slice(split.total - split.fresh, split.total))
    return float(torch.where(costs.adequate, costs.nfe.double(), torch.inf).amin(1).mean())


def policy(field: Field, found: Outcomes, tau: float, *, hidden: int = 64) -> dict[str, float] | None:
    """A selector's NFE and risk on fresh draws at the cheapest dial that is certified; None if none is.

    Args:
        field: the draws.
        found: outcomes of the tables on them.
        tau: largest distance of an adequate end.
        hidden: width of the network's two layers.
    """
    split, costs = field.split, _costs(found, field.tight, tau, field)
    few = slice(min(PRUNED, split.learn))
    pruned = most_useful(costs.take(few), list(range(len(found.candidates))), MOST)
    costs = costs.take_candidates([*pruned, len(found.candidates)])
    torch.manual_seed(0)
    network = StateNetwork.like(costs.h0, costs.conditions, len(costs.candidates), hidden=hidden)
    selector = AdequacySelector.fit(
        network, costs.take(slice(split.learn)), max_epochs=60, patience=10, batch_size=512, learning_rate=3e-3
    )
    with torch.no_grad():
        lost_share = 1 - torch.cat([selector.probability(*part) for part in costs.input_batches(selector, 4096)])
    lost, nfe = split.parts((~costs.adequate).double()), split.parts(costs.nfe.double())
    share = split.parts(lost_share)
    best: dict[str, float] | None = None
    for dial in DIALS:  # the safest first; the first that fails ends the test
        scores = [selector.price + float(selector.price.min()) * dial * part for part in share]
        certify, fresh = (part.argmin(1, keepdim=True) for part in scores)
        if exact_binomial(float(lost[0].gather(1, certify).mean()), split.certify, EPSILON) > DELTA:
            break
        best = {
            "nfe": float(nfe[1].gather(1, fresh).mean()),
            "risk": float(lost[1].gather(1, fresh).mean()),
            "macs": count_macs(lambda: selector(*(x[:1] for x in costs.inputs(selector)))),
        }
    return best


def _costs(found: Outcomes, tight: Tensor, tau: float, field: Field | None = None) -> Costs:
    """Costs of the candidates, and of the reference as the last one, with what a selector sees of a field's draws."""
    number = len(tight)
    nothing = torch.zeros(number, 0)
    return Costs(
        candidates=(*found.candidates, found.candidates[-1]),
        h0=nothing if field is None else field.draws.noise,
        k1=nothing if field is None else field.k1,
        nfe=torch.cat([found.nfe, tight[:, None]], 1),
        error=torch.cat([(found.error > tau).float(), torch.zeros(number, 1)], 1),
        rule=RiskCost(),
        conditions=() if field is None else field.draws.conditions,
    )
