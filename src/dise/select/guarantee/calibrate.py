"""A setting with a guarantee: the cheapest one whose risk is certainly small.

Source: Angelopoulos, Bates, Candès, Jordan, Lei, Learn then Test, 2021 (fixed-sequence testing, Hoeffding–Bentkus
p-values of Bates et al., Distribution-free, risk-controlling prediction sets, 2021).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.select.guarantee.risk import Risk, disagreement
from dise.select.model.block import device_of, find_block
from dise.select.model.outcomes import Input
from dise.select.policies.overhead import spent

PValue = Callable[[float, int, float], float]  # of the mean loss, the number of samples, and ε


@dataclass(frozen=True)
class Tested:
    """A setting on the calibration data: its mean loss, mean NFE, and the p-value of a risk above ε.

    NFE are with what the policy looks at, in evaluations of f (see `dise.select.spent`).

    `certified` says whether the p-value is at most δ; that of every setting before it is.
    """

    integrator: Integrator
    risk: float
    nfe: float
    p: float
    certified: bool


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        integrator: the cheapest certified setting; the reference if none is.
        tested: the settings in the order given, up to the first that is not certified.
        reference_nfe: mean NFE of the reference.
        epsilon, delta, samples: the guarantee: a risk of at most ε with confidence 1 − δ, from this many samples.
    """

    integrator: Integrator
    tested: tuple[Tested, ...]
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

    The guarantee holds whatever the model and the settings are, if the data are independent draws of what the model
    will see and were used neither for training nor for fitting a selector. Settings are tested in their order until
    one fails, so the safest comes first; the order must not depend on these data.

    Args:
        model: contains one NeuralODE; put it in evaluation mode before.
        settings: integrators, the safest first, e.g. `Cascade`s of falling thresholds.
        data: batches (x, target); the target may be anything if `risk` does not look at it.
        reference: integrator to compare with.
        epsilon: ε, in (0, 1).
        delta: δ, in (0, 1).
        risk: (output, reference's output, target) → [n] losses in [0, 1]; default: the predictions disagree.
        p_value: of "the risk is above ε", given the mean loss, the number of samples and ε: `hoeffding_bentkus`, for
            any losses in [0, 1] (default), or `exact_binomial`, which is smaller, for losses that are 0 or 1.

    Raises:
        ValueError: no settings, ε or δ not in (0, 1), losses not in [0, 1] (0 or 1 for `exact_binomial`), or too few
            samples to certify anything (the message says how many are needed).
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
    expected, reference_nfe = evaluate(model, reference, batches)
    tested: list[Tested] = []
    for setting in settings:
        outputs, nfe = evaluate(model, setting, batches)
        losses = torch.cat([risk(o, e, y) for o, e, (_, y) in zip(outputs, expected, batches, strict=True)])
        _check_losses(losses, number, binary=p_value is exact_binomial)
        mean = float(losses.double().mean())
        p = p_value(mean, number, epsilon)
        tested.append(Tested(setting, mean, nfe, p, p <= delta))
        if p > delta:
            break
    certain = [t for t in tested if t.certified and t.nfe < reference_nfe]
    best = min(certain, key=lambda t: t.nfe).integrator if certain else reference
    return Calibration(best, tuple(tested), reference_nfe, epsilon, delta, number)


@torch.no_grad()
def evaluate(
    model: nn.Module, integrator: Integrator, batches: Sequence[tuple[Input, Tensor]]
) -> tuple[list[Tensor], float]:
    """The model's outputs, a batch each, on the data's device, and its mean NFE, what the policy looks at included."""
    block, device = find_block(model), device_of(model)
    with block.using(integrator), block.recording() as records:
        outputs = [model(x.to(device)).to(x.device) for x, _ in batches]
    return outputs, float(spent(block, integrator, records).mean())


def _check_losses(losses: Tensor, number: int, *, binary: bool) -> None:
    if losses.shape != (number,) or not ((losses >= 0) & (losses <= 1)).all():
        raise ValueError(f"risk: expected a loss in [0, 1] a sample, got {tuple(losses.shape)} values for {number}")
    if binary and not ((losses == 0) | (losses == 1)).all():
        raise ValueError("risk: exact_binomial needs losses that are 0 or 1; take p_value=hoeffding_bentkus")


def samples_needed(epsilon: float, delta: float) -> int:
    """Number of samples from which a risk of at most ε can be certified with confidence 1 − δ: log δ / log(1 − ε).

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
        number: of samples, n.
        epsilon: ε.

    Returns:
        min(exp(−n·KL(min(mean, ε) ‖ ε)), e·P[Binomial(n, ε) ≤ ⌈n·mean⌉]), at most 1.
    """
    a = min(mean, epsilon)
    divergence = sum(p * math.log(p / q) for p, q in ((a, epsilon), (1 - a, 1 - epsilon)) if p > 0)
    return min(math.exp(-number * divergence), math.e * _binomial_cdf(_count(mean, number), number, epsilon), 1.0)


def exact_binomial(mean: float, number: int, epsilon: float) -> float:
    """p-value of "the risk is above ε", valid for losses that are 0 or 1: P[Binomial(n, ε) ≤ n·mean].

    It is up to e times smaller than Bentkus's, which holds for all losses in [0, 1].

    Args:
        mean: mean loss of the samples.
        number: of samples, n.
        epsilon: ε.

    Source: Clopper, Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial, 1934.
    """
    return min(_binomial_cdf(_count(mean, number), number, epsilon), 1.0)


def _count(mean: float, number: int) -> int:
    """⌈n·mean⌉; a mean of losses is a multiple of 1/n only up to rounding."""
    return math.ceil(number * mean - 1e-9 * number)


def _binomial_cdf(count: int, number: int, p: float) -> float:
    """P[Binomial(number, p) ≤ count]."""
    k = torch.arange(min(count, number) + 1, dtype=torch.float64)
    n = torch.tensor(float(number), dtype=torch.float64)
    log_choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return float(torch.logsumexp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p), 0).exp())
