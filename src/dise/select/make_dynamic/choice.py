"""The choice of a family: the one with the cheapest setting that seems safe."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import nn

from dise.integrate import Integrator
from dise.nn import NeuralODE
from dise.select.guarantee.calibrate import PolicyRun, policy_losses, run_policy
from dise.select.guarantee.risk import ProbabilityShift, Risk, RiskCost, disagreement, lost_accuracy
from dise.select.judging.costs import Costs
from dise.select.make_dynamic.families import ONE_FOR_ALL, Family, families
from dise.select.make_dynamic.timing import served_batches, time_served
from dise.select.model.block import device_of
from dise.select.model.data import Batch
from dise.select.model.finite import non_finite_loss
from dise.select.model.inputs import Inputs
from dise.select.model.outcomes import Outcomes, run_candidates

MOST_JUDGED = 2000  # samples to choose the family on


class Choice(NamedTuple):
    """The choice of a family."""

    family: Family
    estimates: dict[str, float]  # of each family, the mean NFE that is expected of its cheapest safe setting
    single: Integrator | None = None  # the best single candidate
    notes: tuple[str, ...] = ()


class _Estimate(NamedTuple):
    """What is expected of a family."""

    nfe: float = math.inf  # mean, of the cheapest safe setting
    setting: Integrator | None = None  # that one; None: there is none
    likely: Integrator | None = None  # the cheapest setting that the test is expected to certify


class _SettingRun(NamedTuple):
    setting: Integrator
    nfe: float  # mean
    loss: float  # mean


def choose_family(
    model: nn.Module,
    block: NeuralODE,
    head: nn.Module | None,
    batches: list[Batch],
    candidates: tuple[Integrator, ...],
    *,
    risk: Risk,
    epsilon: float,
    seed: int,
    log: Callable[[str], None],
    passes: Callable[[float], bool],
    batch_size: int | None = None,
) -> Choice:
    """Fit all families, and choose the one that is expected to need the fewest evaluations of f.

    With a batch size choose the one that takes the fewest milliseconds per batch of that size, with the setting that
    the test is expected to certify: one that passes the test if its mean loss there is the same.

    At most the last MOST_JUDGED samples judge the families. A family that is fitted to samples is judged on at most the
    last half of the batches, to which it is not fitted.

    Args:
        model: contains the block.
        block: the model's.
        head: what the model does with h(t1), if it is known.
        batches: to fit and judge on.
        candidates: integrators, the reference last.
        risk, epsilon, seed, log, batch_size: see `make_dynamic`.
        passes: whether the test certifies a setting of a mean loss.

    Raises:
        ValueError: no candidate is cheaper than the reference.
    """
    most = math.ceil(MOST_JUDGED / len(batches[0].inputs))
    unseen = min(len(batches) // 2, most)
    learn, judged = batches[: len(batches) - unseen], batches[-most:]
    log(f"running {len(candidates)} candidates on {sum(len(inputs) for inputs, _ in learn)} samples")
    outcomes = _by_price(run_candidates(model, learn, candidates, block=block))
    tried = families(
        Costs.of(outcomes, RiskCost(risk=risk)),
        outcomes,
        head,
        classifies=risk in (disagreement, lost_accuracy) or isinstance(risk, ProbabilityShift),
        epsilon=epsilon,
        span=float(torch.as_tensor(block.t1).mean() - torch.as_tensor(block.t0).mean()),
        device=device_of(model),
        seed=seed,
    )
    if not tried:
        raise ValueError(f"candidates: expected one that needs fewer evaluations of f than {candidates[-1]}, got none")
    expected = run_policy(model, candidates[-1], judged, block=block)
    found: dict[str, _Estimate] = {}
    for family in tried:
        some = slice(len(judged) - unseen if family.learnt and unseen else 0, None)
        runs = _runs(model, block, family, judged[some], expected.take(some), risk)
        found[family.name] = _estimate(runs, epsilon, passes)
        log(f"{family.name}: {found[family.name].nfe:.2f} evaluations")
    times, notes = dict[str, float](), _lost_samples(outcomes)
    if batch_size is not None:
        times = _times(model, block, found, served_batches([batch.inputs for batch in judged], batch_size))
        notes = (*notes, _by_time(times, batch_size))
        log(notes[-1])
    best = min(tried, key=lambda family: (times.get(family.name, math.inf), found[family.name].nfe))
    single = found.get(ONE_FOR_ALL, _Estimate()).setting
    return Choice(best, {name: estimate.nfe for name, estimate in found.items()}, single, notes)


def _times(model: nn.Module, block: NeuralODE, found: dict[str, _Estimate], served: list[Inputs]) -> dict[str, float]:
    """Mean milliseconds per batch of the families with a setting that the test is expected to certify."""
    policies = {name: estimate.likely for name, estimate in found.items() if estimate.likely is not None}
    return time_served(model, block, policies, served) if policies else {}


def _by_time(times: dict[str, float], size: int) -> str:
    """The families in order of their times."""
    listed = ", ".join(f"{name} {ms:.2f}" for name, ms in sorted(times.items(), key=lambda item: item[1]))
    return (
        f"The kind of policy was chosen by mean milliseconds per batch of {size} on this machine, each kind with the "
        f"cheapest setting that the test was expected to certify: {listed or 'there is none'}."
    )


def _lost_samples(outcomes: Outcomes) -> tuple[str, ...]:
    """A note on the samples that candidates lose because they fail or their outputs are not finite; () if none."""
    output, failed = outcomes.output, outcomes.failed
    lost = non_finite_loss(output, output[:, -1:], leading=2) | output.isnan().reshape(*output.shape[:2], -1).any(2)
    if failed is not None:
        lost |= failed
    counts = [f"{c}: {n}" for c, n in zip(outcomes.candidates, lost.sum(0).tolist(), strict=True) if n]
    if not counts:
        return ()
    return (
        f"Of the {len(outcomes)} samples for fitting, some cannot be integrated or have outputs that are not finite "
        f"({', '.join(counts)}). Where the reference has an answer they count against the candidate; fits leave them "
        "out.",
    )


def _by_price(outcomes: Outcomes) -> Outcomes:
    """The candidates in order of their mean NFE, the reference last; without those that need more than it does."""
    price = outcomes.nfe.double().mean(0).tolist()
    last = len(price) - 1
    order = sorted((i for i in range(last) if price[i] < price[last]), key=lambda i: price[i])
    return outcomes.take_candidates([*order, last])


def _runs(
    model: nn.Module, block: NeuralODE, family: Family, batches: list[Batch], expected: PolicyRun, risk: Risk
) -> Iterator[_SettingRun]:
    """The family's settings in order, on some batches."""
    for setting in family.settings:
        run = run_policy(model, setting, batches, block=block)
        yield _SettingRun(setting, run.nfe, float(policy_losses(risk, run, expected, batches).mean()))


def _estimate(runs: Iterable[_SettingRun], epsilon: float, passes: Callable[[float], bool]) -> _Estimate:
    """The cheapest setting before the first whose mean loss is above ε, and before the first that would not pass."""
    safe = list(takewhile(lambda run: run.loss <= epsilon, runs))
    likely = list(takewhile(lambda run: passes(run.loss), safe))
    if not safe:
        return _Estimate()
    cheapest = min(safe, key=lambda run: run.nfe)
    return _Estimate(cheapest.nfe, cheapest.setting, min(likely, key=lambda run: run.nfe).setting if likely else None)
