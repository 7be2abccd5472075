"""Calibration: the cheapest setting of a policy whose risk is small with high confidence.

Source: Angelopoulos, Bates, Candès, Jordan, Lei, Learn then Test, 2021 (fixed-sequence testing
from several starts; p-values of Hoeffding and Bentkus of Bates et al., Distribution-free, risk-controlling prediction
sets, 2021).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.integrate.argument_types import checked_arguments
from dise.integrate.integrator import as_integrators, check_integrator
from dise.integrate.value import check_above, check_callable, check_whole
from dise.nn import BlockSolve, NeuralODE
from dise.select.guarantee.kind import is_state, score_of, suitable_risk
from dise.select.guarantee.risk import (
    OutputDeviation,
    ProbabilityShift,
    Risk,
    disagreement,
    losses,
    lost_accuracy,
)
from dise.select.model.block import device_of, find_block
from dise.select.model.data import Batch, Data, as_batches
from dise.select.model.finite import has_nan
from dise.select.model.rows import check_rows
from dise.select.model.run import run_model
from dise.select.policies.overhead import nfe_with_overhead

PValue = Callable[[float, int, float], float]  # (mean loss, number of samples, ε) → p


@dataclass(frozen=True)
class SettingTest:
    """Test of one setting on the calibration data.

    Attributes:
        integrator: the setting.
        risk: mean loss.
        nfe: mean NFE with the overhead of the policy's decisions (see `dise.select.nfe_with_overhead`).
        p: p-value of the hypothesis that the risk is above ε.
        certified: whether p ≤ δ, divided by the number of sequences; so is the p-value of every setting before it in
            its sequence.
        overhead: part of `nfe` that the policy's decisions are.
        failures: number of samples that the setting could not integrate; each is lost unless the reference fails, too.
        score: of its outputs by the targets, as `Calibration.score`.
    """

    integrator: Integrator
    risk: float
    nfe: float
    p: float
    certified: bool
    failures: int = 0
    score: float | None = None
    overhead: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """Result of `calibrate`.

    Attributes:
        integrator: the cheapest certified setting, or the reference if none is certified and cheaper than it.
        tests: tests of the settings in the given order, of each sequence up to the first that is not certified.
        reference_nfe: mean NFE of the reference.
        epsilon, delta: the guarantee: a risk of at most ε with confidence 1 − δ.
        samples: number of calibration samples.
        risk: the loss per sample.
        reference_failures, reference_nan: number of samples that the reference could not integrate; and of those for
            which its output has a NaN, these included.
        score_name, reference_score: accuracy or root mean square error of the reference by the targets of the data;
            None without targets.
    """

    integrator: Integrator
    tests: tuple[SettingTest, ...]
    reference_nfe: float
    epsilon: float
    delta: float
    samples: int
    risk: Risk
    reference_failures: int = 0
    reference_nan: int = 0
    score_name: str | None = None
    reference_score: float | None = None


class PolicyRun(NamedTuple):
    """Outputs of a model with one policy on all batches."""

    outputs: list[Tensor]  # of each batch, on the data's device; NaN for samples that failed
    nfe: float  # mean, with the overhead of the policy's decisions
    failed: list[Tensor]  # [n] bool of each batch, whether the sample could not be integrated
    first: BlockSolve  # of the first batch
    overhead: float = 0.0  # part of `nfe` that the policy's decisions are

    def take(self, batches: slice) -> "PolicyRun":
        """The outputs of some of the batches; the NFE is that of all."""
        return self._replace(outputs=self.outputs[batches], failed=self.failed[batches])


def calibrate(
    model: nn.Module,
    settings: Sequence[Integrator] | Sequence[Sequence[Integrator]],
    data: Data,
    *,
    reference: Integrator,
    epsilon: float,
    delta: float = 0.05,
    risk: Risk | None = None,
    p_value: PValue | None = None,
    block: NeuralODE | str | None = None,
) -> Calibration:
    """The cheapest setting whose risk against the reference is at most ε, with confidence 1 − δ.

    The guarantee holds for any model and any settings, if the data are independent draws of the model's future inputs
    and were used neither for training nor for fitting a selector. Settings are tested in their order until one fails,
    so put the safest first; their order must not depend on these data. A setting that cannot integrate a sample loses
    it.

    Args:
        model: contains a NeuralODE; it is put in evaluation mode.
        settings: integrators, the safest first, e.g. `Cascade`s with falling thresholds; or several such sequences,
            each of which is tested with its part of δ, so that one that fails early does not stop the others.
        data: batches of inputs or (inputs, target), of one input or several (see `dise.select.model.data.as_batches`);
            the target may be anything if `risk` does not use it.
        reference: integrator that the settings are compared with.
        epsilon: ε, in (0, 1).
        delta: δ, in (0, 1).
        risk: (output, reference's output, target) → [n] losses in [0, 1]; the target is None without targets. Default:
            `disagreement` of the predicted classes, if outputs and targets are those of a classifier.
        p_value: (mean loss, number of samples, ε) → p-value of "the risk is above ε": `hoeffding_bentkus` (default) for
            any losses in [0, 1], or `exact_binomial`, which is smaller, for losses that are 0 or 1.
        block: the NeuralODE or its name; default: the model's only one.

    Raises:
        ValueError: no settings, ε or δ not in (0, 1), losses not in [0, 1] (for `exact_binomial`: not 0 or 1), a risk
            that does not suit the outputs or needs targets, an f that mixes samples, a reference that fails on all
            samples, or too few samples to certify anything (the message says how many are needed).
    """
    check_levels(epsilon, delta)
    check_integrator(reference, "reference")
    check_callable("p_value", p_value, "a function such as dise.select.exact_binomial", optional=True)
    sequences = _sequences(settings)
    level = delta / len(sequences)
    own = find_block(model, block)
    batches = list(as_batches("data", data, model))
    number = sum(len(inputs) for inputs, _ in batches)
    _check_number(number, epsilon, level)
    check_rows(model.eval(), own, batches[0][0].to(device_of(model)))
    run = run_policy(model, reference, batches, block=own)
    failures = _count(run.failed)
    if failures == number:
        raise ValueError(f"reference: {reference} fails on all {number} samples, so there is nothing to compare with")
    expected, targets = torch.cat(run.outputs), _all_targets(batches)
    risk = suitable_risk(risk, expected, targets, is_state=is_state(run.outputs[0], run.first))
    test = partial(_test, model, own, batches, run, risk, p_value or hoeffding_bentkus, epsilon=epsilon, delta=level)
    tests = [result for sequence in sequences for result in _test_in_order(test, sequence)]
    cheaper = [result for result in tests if result.certified and result.nfe < run.nfe]
    score_name, score = score_of(expected, targets) or (None, None)
    return Calibration(
        integrator=min(cheaper, key=lambda result: result.nfe).integrator if cheaper else reference,
        tests=tuple(tests),
        reference_nfe=run.nfe,
        epsilon=epsilon,
        delta=delta,
        samples=number,
        risk=risk,
        reference_failures=failures,
        reference_nan=int(has_nan(expected).sum()),
        score_name=score_name,
        reference_score=score,
    )


def _check_number(number: int, epsilon: float, delta: float) -> None:
    """Raise a ValueError if a number of samples cannot certify ε with δ."""
    needed = samples_needed(epsilon, delta)
    if number < needed:
        raise ValueError(
            f"data: at least {needed} samples are needed to certify epsilon={epsilon:g} with delta={delta:g}, "
            f"even without a single loss; got {number}"
        )


def _sequences(settings: Sequence[Integrator] | Sequence[Sequence[Integrator]]) -> list[list[Integrator]]:
    """The sequences of settings."""
    if not isinstance(settings, Sequence) or isinstance(settings, str):
        raise TypeError(f"settings: expected a list of integrators, got {settings!r}")
    parts = list(settings)
    for part in parts:
        if not isinstance(part, Integrator | Sequence):
            raise TypeError(f"settings: expected integrators, or sequences of them, got {part!r}")
    alone = [part for part in parts if isinstance(part, Integrator)]
    several = [list(part) for part in parts if isinstance(part, Sequence)]
    sequences = [list(as_integrators("settings", part)) for part in ([alone] if alone else several)]
    if not sequences or not all(sequences) or (alone and len(alone) < len(parts)):
        got = "both" if alone else "none"
        raise ValueError(f"settings: expected at least one integrator, or sequences of at least one each, got {got}")
    return sequences


def _test_in_order(test: Callable[[Integrator], SettingTest], sequence: list[Integrator]) -> Iterator[SettingTest]:
    """The tests of a sequence, up to the first setting that is not certified."""
    for setting in sequence:
        result = test(setting)
        yield result
        if not result.certified:
            return


def _test(
    model: nn.Module,
    block: NeuralODE,
    batches: list[Batch],
    reference: PolicyRun,
    risk: Risk,
    p_value: PValue,
    setting: Integrator,
    *,
    epsilon: float,
    delta: float,
) -> SettingTest:
    """Test of one setting."""
    run = run_policy(model, setting, batches, block=block)
    lost = policy_losses(risk, run, reference, batches)
    if p_value is exact_binomial and not ((lost == 0) | (lost == 1)).all():
        raise ValueError("risk: exact_binomial needs losses that are 0 or 1; take p_value=hoeffding_bentkus")
    mean, score = float(lost.mean()), score_of(torch.cat(run.outputs), _all_targets(batches))
    p = p_value(mean, len(lost), epsilon)
    return SettingTest(
        integrator=setting,
        risk=mean,
        nfe=run.nfe,
        p=p,
        certified=p <= delta,
        failures=_count(run.failed),
        score=None if score is None else score[1],
        overhead=run.overhead,
    )


def policy_losses(risk: Risk, run: PolicyRun, reference: PolicyRun, batches: Sequence[Batch]) -> Tensor:
    """[N] losses of a policy's run against the reference's; 1 for samples that the policy alone could not integrate."""
    lost = []
    for i, (_, target) in enumerate(batches):
        values = losses(risk, run.outputs[i], reference.outputs[i], target)
        lost.append(values.double().masked_fill(run.failed[i] & ~reference.failed[i], 1))
    return torch.cat(lost)


def run_policy(
    model: nn.Module,
    integrator: Integrator,
    batches: Sequence[Batch],
    *,
    block: NeuralODE | str | None = None,
) -> PolicyRun:
    """Run a model with one policy on all batches; samples that it cannot integrate do not stop the run."""
    own, device = find_block(model, block), device_of(model)
    outputs, failed, solves = [], [], []
    for inputs, _ in batches:
        run = run_model(model, own, integrator, inputs.to(device))
        outputs.append(run.output.to(inputs.device))
        failed.append(run.failed.to(inputs.device))
        solves += run.solves
    with own.using(integrator):
        nfe = float(nfe_with_overhead(own, integrator, solves).mean())
    evaluations = torch.cat([torch.atleast_1d(solve.solution.nfe) for solve in solves])
    return PolicyRun(outputs, nfe, failed, solves[0], nfe - float(evaluations.double().mean()))


def _count(failed: list[Tensor]) -> int:
    return sum(int(part.sum()) for part in failed)


def _all_targets(batches: Sequence[Batch]) -> Tensor | None:
    """The targets of all batches, if they are tensors that can be one."""
    targets = [target for _, target in batches]
    if not all(isinstance(target, Tensor) for target in targets) or len({t.shape[1:] for t in targets}) > 1:
        return None
    return torch.cat(targets)


def check_levels(epsilon: float, delta: float) -> None:
    """Raise a ValueError unless ε and δ are in (0, 1)."""
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        check_above(name, value, 0, 1)


def samples_needed(epsilon: float, delta: float) -> int:
    """Smallest number of samples that can certify a risk of at most ε with confidence 1 − δ: ⌈log δ / log(1 − ε)⌉.

    Raises:
        ValueError: ε or δ not in (0, 1).
    """
    check_levels(epsilon, delta)
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


@checked_arguments
def hoeffding_bentkus(mean: float, number: int, epsilon: float) -> float:
    """p-value of "the risk is above ε", valid for losses in [0, 1].

    Args:
        mean: mean loss of the samples.
        number: number of samples, n.
        epsilon: ε.

    Returns:
        min(exp(−n·KL(min(mean, ε) ‖ ε)), e·P[Binomial(n, ε) ≤ ⌈n·mean⌉]), at most 1.

    Raises:
        ValueError: a mean not in [0, 1], no samples, or ε not in (0, 1).
    """
    _check_test(mean, number, epsilon)
    a = min(mean, epsilon)
    divergence = sum(p * math.log(p / q) for p, q in ((a, epsilon), (1 - a, 1 - epsilon)) if p > 0)
    return min(math.exp(-number * divergence), math.e * _binomial_cdf(_loss_count(mean, number), number, epsilon), 1.0)


@checked_arguments
def exact_binomial(mean: float, number: int, epsilon: float) -> float:
    """p-value of "the risk is above ε", valid for losses that are 0 or 1: P[Binomial(n, ε) ≤ n·mean].

    It is up to e times smaller than that of `hoeffding_bentkus`, which is valid for all losses in [0, 1].

    Args:
        mean: mean loss of the samples.
        number: number of samples, n.
        epsilon: ε.

    Raises:
        ValueError: as for `hoeffding_bentkus`.

    Source: Clopper, Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial, 1934.
    """
    _check_test(mean, number, epsilon)
    return min(_binomial_cdf(_loss_count(mean, number), number, epsilon), 1.0)


def _check_test(mean: float, number: int, epsilon: float) -> None:
    if not 0 <= mean <= 1:
        raise ValueError(f"mean: expected a mean loss from 0 to 1, got {mean!r}")
    check_whole("number", number)
    check_above("epsilon", epsilon, 0, 1)


def suitable_p_value(risk: Risk) -> PValue:
    """The exact test for losses that are known to be 0 or 1, else one for any losses in [0, 1]."""
    binary = isinstance(risk, ProbabilityShift | OutputDeviation) or risk in (disagreement, lost_accuracy)
    return exact_binomial if binary else hoeffding_bentkus


def _loss_count(mean: float, number: int) -> int:
    """⌈n·mean⌉, with tolerance for rounding of the mean."""
    return math.ceil(number * mean - 1e-9 * number)


def _binomial_cdf(count: int, number: int, p: float) -> float:
    """P[Binomial(number, p) ≤ count]."""
    k = torch.arange(min(count, number) + 1, dtype=torch.float64)
    n = torch.tensor(float(number), dtype=torch.float64)
    log_choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return float(torch.logsumexp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p), 0).exp())
