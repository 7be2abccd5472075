"""Calibration: the cheapest setting of a policy whose risk is small with high confidence.

Source: Angelopoulos, Bates, Candès, Jordan, Lei, Learn then Test, 2021 (fixed-sequence testing, Hoeffding–Bentkus
p-values of Bates et al., Distribution-free, risk-controlling prediction sets, 2021).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.select.guarantee.risk import Risk, disagreement, losses
from dise.select.model.block import device_of, find_block
from dise.select.model.outcomes import Input
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
        certified: whether p ≤ δ; so is the p-value of every setting before it.
    """

    integrator: Integrator
    risk: float
    nfe: float
    p: float
    certified: bool


@dataclass(frozen=True)
class Calibration:
    """Result of `calibrate`.

    Attributes:
        integrator: the cheapest certified setting, or the reference if none is certified and cheaper than it.
        tests: tests of the settings in the given order, up to the first that is not certified.
        reference_nfe: mean NFE of the reference.
        epsilon, delta: the guarantee: a risk of at most ε with confidence 1 − δ.
        samples: number of calibration samples.
    """

    integrator: Integrator
    tests: tuple[SettingTest, ...]
    reference_nfe: float
    epsilon: float
    delta: float
    samples: int


def calibrate(
    model: nn.Module,
    settings: Sequence[Integrator],
    data: Iterable[tuple[Input, Tensor]],
    *,
    reference: Integrator,
    epsilon: float,
    delta: float = 0.05,
    risk: Risk = disagreement,
    p_value: PValue | None = None,
) -> Calibration:
    """The cheapest setting whose risk against the reference is at most ε, with confidence 1 − δ.

    The guarantee holds for any model and any settings, if the data are independent draws of the model's future inputs
    and were used neither for training nor for fitting a selector. Settings are tested in their order until one fails,
    so put the safest first; their order must not depend on these data.

    Args:
        model: contains one NeuralODE; put it in evaluation mode first.
        settings: integrators, the safest first, e.g. `Cascade`s with falling thresholds.
        data: batches (x, target); the target may be anything if `risk` does not use it.
        reference: integrator that the settings are compared with.
        epsilon: ε, in (0, 1).
        delta: δ, in (0, 1).
        risk: (output, reference's output, target) → [n] losses in [0, 1]; default: the predicted classes differ.
        p_value: (mean loss, number of samples, ε) → p-value of "the risk is above ε": `hoeffding_bentkus` (default) for
            any losses in [0, 1], or `exact_binomial`, which is smaller, for losses that are 0 or 1.

    Raises:
        ValueError: no settings, ε or δ not in (0, 1), losses not in [0, 1] (for `exact_binomial`: not 0 or 1), or too
            few samples to certify anything (the message says how many are needed).
    """
    p_value = p_value or hoeffding_bentkus
    if not settings:
        raise ValueError("settings: expected at least one integrator, got none")
    needed = samples_needed(epsilon, delta)
    batches = list(data)
    number = sum(len(x) for x, _ in batches)
    if number < needed:
        raise ValueError(
            f"data: at least {needed} samples are needed to certify epsilon={epsilon:g} with delta={delta:g}, "
            f"even without a single loss; got {number}"
        )
    expected, reference_nfe = run_policy(model, reference, batches)
    tests: list[SettingTest] = []
    for setting in settings:
        outputs, nfe = run_policy(model, setting, batches)
        parts = zip(outputs, expected, batches, strict=True)
        lost = torch.cat([losses(risk, output, reference, y) for output, reference, (_, y) in parts])
        if p_value is exact_binomial and not ((lost == 0) | (lost == 1)).all():
            raise ValueError("risk: exact_binomial needs losses that are 0 or 1; take p_value=hoeffding_bentkus")
        mean = float(lost.double().mean())
        p = p_value(mean, number, epsilon)
        tests.append(SettingTest(setting, mean, nfe, p, p <= delta))
        if p > delta:
            break
    certified = [test for test in tests if test.certified and test.nfe < reference_nfe]
    best = min(certified, key=lambda test: test.nfe).integrator if certified else reference
    return Calibration(best, tuple(tests), reference_nfe, epsilon, delta, number)


@torch.no_grad()
def run_policy(
    model: nn.Module, integrator: Integrator, batches: Sequence[tuple[Input, Tensor]]
) -> tuple[list[Tensor], float]:
    """Outputs of each batch, on the data's device, and the mean NFE with the overhead of the policy's decisions."""
    block, device = find_block(model), device_of(model)
    with block.using(integrator), block.recording() as records:
        outputs = [model(x.to(device)).to(x.device) for x, _ in batches]
    return outputs, float(nfe_with_overhead(block, integrator, records).mean())


def samples_needed(epsilon: float, delta: float) -> int:
    """Smallest number of samples that can certify a risk of at most ε with confidence 1 − δ: ⌈log δ / log(1 − ε)⌉.

    Raises:
        ValueError: ε or δ not in (0, 1).
    """
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name}: expected a number between 0 and 1, got {value!r}")
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


def hoeffding_bentkus(mean: float, number: int, epsilon: float) -> float:
    """p-value of "the risk is above ε", valid for losses in [0, 1].

    Args:
        mean: mean loss of the samples.
        number: number of samples, n.
        epsilon: ε.

    Returns:
        min(exp(−n·KL(min(mean, ε) ‖ ε)), e·P[Binomial(n, ε) ≤ ⌈n·mean⌉]), at most 1.
    """
    a = min(mean, epsilon)
    divergence = sum(p * math.log(p / q) for p, q in ((a, epsilon), (1 - a, 1 - epsilon)) if p > 0)
    return min(math.exp(-number * divergence), math.e * _binomial_cdf(_loss_count(mean, number), number, epsilon), 1.0)


def exact_binomial(mean: float, number: int, epsilon: float) -> float:
    """p-value of "the risk is above ε", valid for losses that are 0 or 1: P[Binomial(n, ε) ≤ n·mean].

    It is up to e times smaller than that of `hoeffding_bentkus`, which is valid for all losses in [0, 1].

    Args:
        mean: mean loss of the samples.
        number: number of samples, n.
        epsilon: ε.

    Source: Clopper, Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial, 1934.
    """
    return min(_binomial_cdf(_loss_count(mean, number), number, epsilon), 1.0)


def _loss_count(mean: float, number: int) -> int:
    """⌈n·mean⌉, with tolerance for rounding of the mean."""
    return math.ceil(number * mean - 1e-9 * number)


def _binomial_cdf(count: int, number: int, p: float) -> float:
    """P[Binomial(number, p) ≤ count]."""
    k = torch.arange(min(count, number) + 1, dtype=torch.float64)
    n = torch.tensor(float(number), dtype=torch.float64)
    log_choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return float(torch.logsumexp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p), 0).exp())
