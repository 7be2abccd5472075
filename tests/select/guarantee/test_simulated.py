"""300 simulated calibrations of settings that give NaN for a known share of the inputs: false certifications ≤ δ."""

import pytest
import torch
from scipy.stats import binom
from torch import nn

from dise import RK4, Euler, NeuralODE, calibrate
from dise.select import OutputDeviation, ProbabilityShift, disagreement, exact_binomial, hoeffding_bentkus

EPSILON, DELTA, RUNS, NUMBER = 0.0495, 0.1, 300, 400
REFERENCE = RK4(8)
SETTINGS = [Euler(steps) for steps in (64, 16, 12, 11, 10)]  # Euler(11) is just above ε


class Decay(nn.Module):
    """y' = −y: Euler's n steps end at (1 − 1/n)ⁿ y₀, below e⁻¹ y₀."""

    def forward(self, t, y):
        return -y


class LogOdds(nn.Module):
    """Two logits, NaN for states below the limit; the class is always 1."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, h):
        return torch.cat([-1 - h, 0 * (h - self.limit).sqrt()], 1)


def factor(integrator):
    """h(1) / h(0)."""
    return NeuralODE(Decay(), integrator)(torch.ones(1, 1, dtype=torch.float64)).item()


@pytest.mark.slow
@pytest.mark.parametrize("p_value", [exact_binomial, hoeffding_bentkus], ids=["exact", "Hoeffding–Bentkus"])
@pytest.mark.parametrize(
    "risk", [disagreement, ProbabilityShift(0.2), OutputDeviation(0.5)], ids=["disagreement", "shift", "deviation"]
)
def test_false_certifications(risk, p_value):
    """Inputs are uniform on [1, 2]; the reference is finite for all of them, a setting is not for the smallest."""
    limit = factor(REFERENCE)
    model = nn.Sequential(NeuralODE(Decay(), REFERENCE), LogOdds(limit))
    share = {setting: limit / factor(setting) - 1 for setting in SETTINGS}  # of inputs below limit / factor
    assert min(share.values()) < EPSILON < max(share.values())
    draw = torch.Generator().manual_seed(0)
    false = 0
    for _ in range(RUNS):
        x = 1 + 1e-9 + torch.rand(NUMBER, 1, dtype=torch.float64, generator=draw)
        found = calibrate(
            model, SETTINGS, x, reference=REFERENCE, epsilon=EPSILON, delta=DELTA, risk=risk, p_value=p_value
        )
        false += share.get(found.integrator, 0.0) > EPSILON
    # 27 with the exact test, 8 with Hoeffding and Bentkus's, whatever the risk; δ allows 30
    assert false <= binom.ppf(0.999, RUNS, DELTA), f"{false} of {RUNS} calibrations were false; shares of NaN: {share}"
