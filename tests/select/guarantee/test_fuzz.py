"""Calibrations against solves of single samples, with SciPy's binomial distribution."""

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import nn

from dise import RK4, Cascade, Confidence, Dopri5, Euler, HeunEuler, Midpoint, NeuralODE, calibrate, solve
from dise.select import OutputDeviation, disagreement, exact_binomial, lost_accuracy

REFERENCE = Dopri5(rtol=1e-2, atol=1e-2, max_steps=60)


class Wild(nn.Module):
    """A turning field with a cubic part, which coarse steps throw to infinity, and NaN for some states."""

    def __init__(self, cubic, hole):
        super().__init__()
        self.cubic, self.hole = cubic, hole

    def forward(self, t, y):
        slope = torch.stack([-y[:, 1], y[:, 0]], 1) - self.cubic * y**3
        return torch.where(y[:, :1] > self.hole, torch.nan, slope)


class Head(nn.Module):
    """Three logits; NaN or −∞ beyond a limit."""

    def __init__(self, limit, value):
        super().__init__()
        self.limit, self.value = limit, value

    def forward(self, h):
        logits = torch.stack([h[:, 0], h[:, 1], -h.sum(1)], 1)
        masked = torch.where(h[:, :1] > self.limit, self.value, logits[:, 1:])
        return torch.cat([logits[:, :1], masked], 1)


def own_losses(name, output, reference, label):
    """Loss of one sample by hand; outputs are lists of three logits, None for a sample that failed."""
    if output is None and reference is not None:
        return 1.0
    output, reference = ([float("nan")] * 3 if x is None else x for x in (output, reference))
    nan = [any(v != v for v in x) for x in (output, reference)]
    answers = [None if n else max(range(3), key=x.__getitem__) for n, x in zip(nan, (output, reference), strict=True)]
    bad = any(abs(r) < float("inf") and not abs(o) < float("inf") for o, r in zip(output, reference, strict=True))
    if bad:
        return 1.0
    if name == "disagreement":
        return float(answers[0] != answers[1])
    if name == "lost_accuracy":
        return float(answers[1] == label and answers[0] != label)
    squares = [0.0 if o == r or (o != o and r != r) else (o - r) ** 2 for o, r in zip(output, reference, strict=True)]
    return float(not (sum(squares) / 3) ** 0.5 <= 0.3)


RISKS = {"disagreement": disagreement, "lost_accuracy": lost_accuracy, "OutputDeviation": OutputDeviation(0.3)}
limits = st.sampled_from([0.5, 1.5, 3.0, float("inf")])


@pytest.mark.fuzz
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(15, 22),  # 15 are the fewest that can certify 0.15
    batch=st.integers(1, 30),
    scale=st.sampled_from([0.5, 1.5, 4.0]),
    field=st.builds(Wild, st.sampled_from([0.0, 0.3, 3.0]), limits),
    head=st.builds(Head, limits, st.sampled_from([float("nan"), -float("inf")])),
    name=st.sampled_from(list(RISKS)),
    threshold=st.sampled_from([0.0, 0.5, 2.0]),
    epsilon=st.sampled_from([0.15, 0.3, 0.5]),
)
def test_a_calibration_is_that_of_single_solves(seed, size, batch, scale, field, head, name, threshold, epsilon):
    draw = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(size, 2, dtype=torch.float64, generator=draw)
    label = torch.randint(3, (size,), generator=draw)
    model = nn.Sequential(NeuralODE(field, REFERENCE), head)
    settings = [
        RK4(2),
        Cascade((Euler(1), Midpoint(2)), Confidence(head, threshold, measure="gap")),
        Cascade((HeunEuler(rtol=0.3, atol=0.3, first_step="span", max_steps=1), RK4(1))),
        Euler(2),
    ]

    def alone(integrator):
        """Outputs, None for samples that fail, and the mean NFE."""
        solved = [solve(field, row[None], 0.0, 1.0, integrator, throw=False) for row in x]
        outputs = [head(s.y)[0].tolist() if s.status.item() == 0 else None for s in solved]
        return outputs, sum(int(s.nfe) for s in solved) / size

    expected, full = alone(REFERENCE)
    arguments = {"reference": REFERENCE, "epsilon": epsilon, "delta": 0.1, "risk": RISKS[name]}
    arguments |= {"p_value": exact_binomial}
    data = list(zip(x.split(batch), label.split(batch), strict=True))
    if all(output is None for output in expected):
        with pytest.raises(ValueError, match=r"reference: .* fails on all"):
            calibrate(model, settings, data, **arguments)
        return
    found = calibrate(model, settings, data, **arguments)
    assert found.reference_failures == sum(output is None for output in expected)
    assert found.reference_nfe == pytest.approx(full)
    best, cheapest = REFERENCE, full
    for test, setting in zip(found.tests, settings, strict=False):
        outputs, nfe = alone(setting)
        pairs = zip(outputs, expected, label.tolist(), strict=True)
        lost = sum(own_losses(name, output, reference, y) for output, reference, y in pairs)
        assert test.integrator is setting
        assert test.failures == sum(output is None for output in outputs)
        assert test.risk == pytest.approx(lost / size, abs=1e-12)
        assert test.p == pytest.approx(binom.cdf(lost, size, epsilon), rel=1e-6)
        assert test.certified == (test.p <= 0.1)
        assert test.nfe == pytest.approx(nfe)
        if test.certified and nfe < cheapest:
            best, cheapest = setting, nfe
    event(f"certified: {sum(test.certified for test in found.tests)}")
    event(f"failures: {any(test.failures for test in found.tests)}")
    assert all(test.certified for test in found.tests[:-1])
    assert found.tests[-1].certified == (len(found.tests) == len(settings) and found.tests[-1].p <= 0.1)
    assert found.integrator is best
