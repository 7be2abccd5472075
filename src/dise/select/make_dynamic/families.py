"""Families of policies for a model: what `make_dynamic` chooses from."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dise.integrate import Adaptive, Bosh3, HeunEuler, Integrator
from dise.integrate.exact import inner
from dise.integrate.integrators import ErrorControlled
from dise.select.judging.costs import Costs
from dise.select.judging.front import pareto_front, prune
from dise.select.learning.adequacy import AdequacySelector
from dise.select.learning.fit import FitData
from dise.select.learning.networks import ConfidenceNetwork, PooledNetwork
from dise.select.model.finite import difference
from dise.select.model.logits import class_logits, predicted_class
from dise.select.model.outcomes import MAX_CHANNELS, Outcomes
from dise.select.model.states import by_channel
from dise.select.policies.cascade import Cascade
from dise.select.policies.confidence import Confidence, confidence
from dise.select.policies.dynamic import Dynamic
from dise.select.policies.forecast import Forecast
from dise.select.policies.forecast_fit import fit_forecast, logit_margin

# κ: the sufficient gap between the two largest logits, in units of the change of that gap by a candidate
FACTORS = (4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.35, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
DIALS = (3e4, 1e4, 3e3, 1e3, 300.0, 100.0, 30.0, 10.0, 3.0)  # μ, in units of the cheapest candidate's price
FEWEST = 200  # samples to fit a selector to
FEWEST_FORECASTS = 100  # samples to fit a forecast to, which has fewer parameters
ONE_FOR_ALL = "one candidate for all"
TOLERANCES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # for the error estimate of one step over the whole span


@dataclass(frozen=True)
class Family:
    """Policies that differ in one setting.

    Attributes:
        name: of their kind.
        settings: the safest, which are the most expensive, first.
        learnt: whether they were fitted to the samples, which then cannot judge them.
    """

    name: str
    settings: tuple[Integrator, ...]
    learnt: bool = False


def families(
    costs: Costs,
    outcomes: Outcomes,
    head: nn.Module | None,
    *,
    classifies: bool,
    epsilon: float,
    span: float,
    device: torch.device,
    seed: int = 0,
) -> list[Family]:
    """Single candidates; cascades on the head's confidence, on forecasts, on the embedded error; selectors with a dial.

    Samples whose features or logits are not finite are left out of the fits, and a family without enough others is not
    among them. Candidates lose samples for which their outputs are not finite.

    Args:
        costs: of the candidates, the cheapest first and the reference last, on N samples that selectors are fitted to.
        outcomes: of the same candidates on the same samples.
        head: what the model does with h(t1), if it is known.
        classifies: whether the outputs are logits.
        epsilon: a candidate counts as safe if it loses at most this part of the samples.
        span: t1 − t0.
        device: where the model is.
        seed: of the selectors' fits.
    """
    front = prune(costs)
    candidates = front.candidates
    reference = candidates[-1]
    lost = (~front.adequate).double().mean(0).tolist()
    safe = next((i for i, share in enumerate(lost) if share <= epsilon), len(lost) - 1)
    found = [one_for_all(costs, outcomes.output)]
    if classifies and head is not None:
        last = len(candidates) - 1
        for chain in sorted({tuple(range(last + 1)), tuple(sorted({0, safe, last})), tuple(sorted({0, last}))}):
            if len(chain) > 1:
                some = outcomes.take_candidates([costs.candidates.index(candidates[i]) for i in chain])
                found.append(gap_cascades(some, head))
                if int(_has_finite_logits(some).sum()) >= FEWEST_FORECASTS:
                    found.append(forecast_cascades(some, head, device))
    if isinstance(inner(reference), ErrorControlled):
        found += [
            Family(f"embedded error of {method.__name__}", tuple(_probes(method, reference)))
            for method in (HeunEuler, Bosh3)
        ]
    if len(front) >= FEWEST and len(candidates) > 1:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of the networks' first weights
            networks = _networks(front, outcomes, head if classifies else None, span)
        found += [_selectors(name, network, front, device, seed) for name, network in networks.items()]
    return [family for family in found if family.settings]


def one_for_all(costs: Costs, output: Tensor) -> Family:
    """Single candidates on the Pareto front of price and output distance from the reference.

    Distances, of outputs [N, K, ...], also rank candidates that lose none of the few samples.
    """
    distance = difference(output, output[:, -1:]).abs().double().reshape(*output.shape[:2], -1).square().mean(2)
    known = distance[distance.isfinite()]
    # an output that is not finite counts as far off as the farthest one that is
    worst = known.max() if known.numel() else 1.0
    distance = torch.where(distance.isfinite(), distance, worst).mean(0)
    front = pareto_front(costs.delta.double().mean(0), distance)
    last = len(costs.candidates) - 1
    return Family(ONE_FOR_ALL, tuple(costs.candidates[i] for i in reversed(front) if i != last))


def gap_cascades(outcomes: Outcomes, head: nn.Module) -> Family:
    """Cascades that differ in the gap between the two largest logits that suffices to accept an answer.

    A candidate's answer is accepted where its gap is at least κ times the 0.95 quantile of the distance between its gap
    and the reference's, over the hard samples: the tenth with the smallest gaps, since only those can change their
    prediction. The one setting κ thus suits candidates of any accuracy. The cascade ends with the reference, which few
    samples reach, so a large κ is safe.

    Args:
        outcomes: of K ≥ 2 candidates, the cheapest first and the reference last, whose outputs are logits. They give
            the quantiles, without labels.
        head: h(t1) [n, ...] → logits [n, C], or one logit per sample.
    """
    gaps = torch.stack([confidence(column, "gap") for column in outcomes.output.unbind(1)], 1).double()
    usable = gaps.isfinite().all(1)
    if not usable.any():
        return Family(_chain("cascade", outcomes), ())
    gaps = gaps[usable]
    off = (gaps - gaps[:, -1:])[_hard(gaps[:, -1])].abs().quantile(0.95, dim=0).tolist()[:-1]
    settings = (
        Cascade(outcomes.candidates, tuple(Confidence(head, factor * scale, measure="gap") for scale in off))
        for factor in FACTORS
    )
    return Family(_chain("cascade", outcomes), tuple(settings))


def forecast_cascades(outcomes: Outcomes, head: nn.Module, device: torch.device) -> Family:
    """Cascades that forecast the reference's logits, and differ in the lead of the answer that suffices to accept it.

    A candidate's answer is accepted where its lead in the forecast logits is at least κ times the 0.95 quantile of the
    lead's forecast error, over the hard samples as in `gap_cascades`. Errors are those of leave-one-out forecasts.

    Args:
        outcomes, head: see `gap_cascades`.
        device: where the model is.
    """
    usable = _has_finite_logits(outcomes)
    *columns, reference = outcomes.output[usable].unbind(1)
    means = [None] * len(columns) if outcomes.means is None else outcomes.means[usable].unbind(1)
    hard = _hard(confidence(reference, "gap").double())
    rules, off = [], []
    for column, mean in zip(columns, means, strict=False):  # zip leaves out the means of the reference
        answer, learnt = predicted_class(column), fit_forecast(column, reference, mean)
        wrong = logit_margin(learnt.leave_one_out, answer) - logit_margin(class_logits(reference), answer)
        off.append(float(wrong[hard].abs().double().quantile(0.95)))
        rules.append(Forecast.from_fit(head, learnt, 0.0).to(device))
    settings = (
        Cascade(outcomes.candidates, tuple(r.with_threshold(factor * s) for r, s in zip(rules, off, strict=True)))
        for factor in FACTORS
    )
    return Family(_chain("forecast", outcomes), tuple(settings), learnt=True)


def _has_finite_logits(outcomes: Outcomes) -> Tensor:
    """[N] whether all candidates have finite logits and channel means: what forecasts can be fitted to."""
    parts = [x.reshape(len(outcomes), -1) for x in (outcomes.output, outcomes.means) if x is not None]
    return torch.cat([x.isfinite() for x in parts], 1).all(1)


def _chain(kind: str, outcomes: Outcomes) -> str:
    return f"{kind} " + " → ".join(map(str, outcomes.candidates))


def _hard(gap: Tensor) -> Tensor:
    """[N] whether a sample is in the tenth with the smallest gaps [N] between the reference's two largest logits."""
    return gap <= gap.quantile(0.1)


def _probes(method: type[Adaptive], reference: Integrator) -> Iterator[Integrator]:
    """Cascades of one step over the whole span and the reference, which is used where the error estimate is large."""
    for tolerance in TOLERANCES:
        first = method(rtol=tolerance, atol=tolerance, first_step="span", max_steps=1)
        yield Cascade((first, reference))


def _networks(costs: Costs, outcomes: Outcomes, head: nn.Module | None, span: float) -> dict[str, nn.Module]:
    """Networks for selectors, by what they are given."""
    number, channels = len(costs.candidates), by_channel(costs.h0).shape[1]
    networks: dict[str, nn.Module] = {"the state's channels": PooledNetwork(channels, number)}
    given = sum(by_channel(condition).shape[1] for condition in costs.conditions)
    if 0 < given <= MAX_CHANNELS:
        networks["the state's channels and the condition"] = PooledNetwork(channels, number, condition_channels=given)
    if head is not None:
        classes = class_logits(outcomes.output[:, 0]).shape[1]
        networks["the head's confidence"] = ConfidenceNetwork(head, number, classes=classes, span=span)
    return networks


def _selectors(name: str, network: nn.Module, costs: Costs, device: torch.device, seed: int) -> Family:
    """One selector at several dials."""
    network = network.to(costs.h0.device)  # where outcomes are kept; a copy of the head is part of it
    if int(FitData.of(network, costs, costs.adequate).finite().sum()) < FEWEST:
        return Family(f"selector on {name}", ())
    selector = AdequacySelector.fit(network, costs, max_epochs=80, patience=8, seed=seed).to(device)
    price = float(selector.price.min())
    settings = tuple(Dynamic(costs.candidates, selector.with_dial(price * dial)) for dial in DIALS)
    return Family(f"selector on {name}", settings, learnt=True)
