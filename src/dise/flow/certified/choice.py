"""The choice of a family and of the settings that are worth a test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dise.flow.certified.families import MakeFamily, Material, mean_oracle, one_for_all
from dise.integrate import Integrator
from dise.nn import NeuralODE
from dise.select.guarantee.calibrate import PolicyRun, policy_losses, run_policy
from dise.select.guarantee.risk import Risk, RiskCost
from dise.select.judging.costs import Costs, concatenate_costs
from dise.select.make_dynamic.families import ONE_FOR_ALL, Family
from dise.select.model.block import device_of
from dise.select.model.data import Batch
from dise.select.model.outcomes import run_candidates
from dise.select.policies.dynamic import Dynamic, cheapest_candidate

SAFE, LOST = 1 / 3, 1.5  # of ε: settings with a smaller risk need no test but one, those with a larger one would fail


class Trial(NamedTuple):
    """A setting on the draws to choose on."""

    setting: Integrator
    nfe: float  # mean, with the overhead of decisions
    risk: float


@dataclass(frozen=True)
class Choice:
    """What is to be tested.

    Attributes:
        singles: single candidates, the safest first.
        family: the best family.
        policies: its settings, the safest first; none if it is not cheaper than the best single candidate.
        estimates: for each family the mean NFE of its cheapest setting with a risk of at most ε; infinite if none.
        oracle: see `Comparison`.
    """

    singles: tuple[Integrator, ...]
    family: str
    policies: tuple[Integrator, ...]
    estimates: dict[str, float]
    oracle: float

    @property
    def sequences(self) -> list[tuple[Integrator, ...]]:
        """What is tested, each sequence with its part of δ."""
        return [sequence for sequence in (self.singles, self.policies) if sequence]


def run_all(
    model: nn.Module, block: NeuralODE, batches: Sequence[Batch], candidates: Sequence[Integrator], risk: Risk
) -> Costs:
    """Costs of the candidates that are cheaper than the reference, by rising price, and of the reference."""
    parts = [
        Costs.of(run_candidates(model, [batch], candidates, block=block), RiskCost(risk=risk)) for batch in batches
    ]
    costs = concatenate_costs(parts)
    price = costs.delta.double().mean(0).tolist()
    last = len(price) - 1
    order = sorted((i for i in range(last) if price[i] < price[last]), key=lambda i: price[i])
    if not order:
        raise ValueError(f"candidates: expected one that needs fewer evaluations of f than {candidates[-1]}, got none")
    return costs.take_candidates([*order, last])


def choose(
    model: nn.Module,
    block: NeuralODE,
    costs: Costs,
    batches: Sequence[Batch],
    *,
    families: Sequence[MakeFamily],
    risk: Risk,
    epsilon: float,
    seed: int,
    log: Callable[[str], None],
) -> Choice:
    """Make all families on the first draws, judge them on the last ones, and choose one.

    Args:
        model: contains the block.
        block: the flow's.
        costs: of all candidates, on all draws.
        batches: the last draws, to judge on; families do not see them.
        families, risk, epsilon, seed, log: see `make_sampler`.
    """
    unseen = sum(len(batch.inputs) for batch in batches)
    learn, judged = costs.take(slice(len(costs) - unseen)), costs.take(slice(len(costs) - unseen, None))
    judge = _Judge(model, block, judged, batches, risk)
    lost = (~costs.adequate).double().mean(0).tolist()
    price = costs.delta.double().mean(0).tolist()
    singles = [_alone(Trial(costs.candidates[i], price[i], lost[i])) for i in one_for_all(costs)]
    trials = {ONE_FOR_ALL: singles}
    for make in families:
        family = make(Material(learn, block, seed))
        if family is not None:
            trials[family.name] = judge.trials(family, epsilon)
            log(f"{family.name}: {cheapest(trials[family.name], epsilon):.2f} evaluations")
    estimates = {name: cheapest(found, epsilon) for name, found in trials.items()}
    best = min(estimates, key=lambda name: estimates[name])
    return Choice(
        singles=worth_testing(singles, epsilon),
        family=best,
        policies=() if best == ONE_FOR_ALL else worth_testing(trials[best], epsilon),
        estimates=estimates,
        oracle=float(mean_oracle(costs)),
    )


def _alone(trial: Trial) -> Trial:
    """The trial of a candidate outside of a policy, which evaluates f at the start for all of them."""
    return trial if trial.setting.uses_first_stage else trial._replace(nfe=trial.nfe - 1)


def cheapest(trials: Sequence[Trial], epsilon: float) -> float:
    """The smallest mean NFE of a trial with a risk of at most ε."""
    return min((trial.nfe for trial in trials if trial.risk <= epsilon), default=float("inf"))


def worth_testing(trials: Sequence[Trial], epsilon: float) -> tuple[Integrator, ...]:
    """The settings from the last that is safe by far to the first that is lost by far; trials with the safest first."""
    start = max((i for i, trial in enumerate(trials) if trial.risk <= SAFE * epsilon), default=0)
    end = next((i for i, trial in enumerate(trials) if i > start and trial.risk > LOST * epsilon), len(trials))
    return tuple(trial.setting for trial in trials[start:end])


@dataclass
class _Judge:
    """Risk and NFE of policies on some draws."""

    model: nn.Module
    block: NeuralODE
    costs: Costs  # of all candidates on the draws
    batches: Sequence[Batch]  # the same draws
    risk: Risk
    reference: PolicyRun | None = None

    def trials(self, family: Family, epsilon: float) -> list[Trial]:
        """Trials of a family's settings, up to the first whose risk is far above ε."""
        found: list[Trial] = []
        overhead = self._overhead(family.settings[0])
        for setting in family.settings:
            known = self._known(setting)
            found.append(self._run(setting) if known is None else Trial(setting, known[0] + overhead, known[1]))
            if found[-1].risk > 2 * LOST * epsilon:
                break
        return found

    def _known(self, setting: Integrator) -> tuple[float, float] | None:
        """Mean NFE and risk by what is known of each candidate; None if it is not a choice among them."""
        columns = {candidate: i for i, candidate in enumerate(self.costs.candidates)}
        if not isinstance(setting, Dynamic) or not all(candidate in columns for candidate in setting.candidates):
            return None
        of_setting = torch.tensor([columns[candidate] for candidate in setting.candidates])
        choice = of_setting[self._choice(setting)].unsqueeze(1)
        nfe, lost = self.costs.nfe.double(), (~self.costs.adequate).double()
        return float(nfe.gather(1, choice).mean()), float(lost.gather(1, choice).mean())

    @torch.no_grad()
    def _choice(self, setting: Dynamic) -> Tensor:
        """[N] index of each draw's candidate."""
        device = device_of(self.block)
        batches = self.costs.input_batches(setting.selector, 4096)
        scores = [setting.selector(*(x.to(device) for x in part)).cpu() for part in batches]
        return cheapest_candidate(torch.cat(scores))

    def _overhead(self, setting: Integrator) -> float:
        """Overhead of a policy's decisions per draw."""
        return run_policy(self.model, setting, self.batches[:1], block=self.block).overhead

    def _run(self, setting: Integrator) -> Trial:
        """The trial of any policy."""
        if self.reference is None:
            self.reference = run_policy(self.model, self.costs.candidates[-1], self.batches, block=self.block)
        run = run_policy(self.model, setting, self.batches, block=self.block)
        lost = policy_losses(self.risk, run, self.reference, self.batches)
        return Trial(setting, run.nfe, float(lost.mean()))
