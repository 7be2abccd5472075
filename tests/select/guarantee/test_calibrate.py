import math

import pytest
import torch
from scipy.stats import binom
from torch import nn

from dise import RK4, Euler, NeuralODE
from dise.select import ProbabilityShift, calibrate, disagreement, exact_binomial, hoeffding_bentkus, samples_needed


@pytest.mark.parametrize(("epsilon", "delta", "number"), [(0.001, 0.05, 2995), (0.01, 0.05, 299), (0.1, 0.1, 22)])
def test_samples_needed_is_where_no_loss_begins_to_certify(epsilon, delta, number):
    assert samples_needed(epsilon, delta) == number
    assert hoeffding_bentkus(0.0, number, epsilon) <= delta < hoeffding_bentkus(0.0, number - 1, epsilon)


@pytest.mark.parametrize("losses", [0, 1, 5, 40, 100, 500, 1000])
@pytest.mark.parametrize("epsilon", [0.005, 0.05, 0.5])
def test_p_value_by_scipy(losses, epsilon):
    n, a = 1000, min(losses / 1000, epsilon)
    kl = (a * math.log(a / epsilon) if a else 0) + ((1 - a) * math.log((1 - a) / (1 - epsilon)) if a < 1 else 0)
    expected = min(math.exp(-n * kl), math.e * binom.cdf(losses, n, epsilon), 1)
    assert hoeffding_bentkus(losses / n, n, epsilon) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "risk"), [(300, 0.05), (1000, 0.01)])
def test_the_p_value_is_valid(n, risk):
    """Of true risk ε, P[p ≤ δ] ≤ δ, exactly summed over all outcomes."""
    outcomes = torch.arange(n + 1)
    p = torch.tensor([hoeffding_bentkus(k / n, n, risk) for k in outcomes.tolist()])
    chance = torch.from_numpy(binom.pmf(outcomes.numpy(), n, risk))
    for delta in (0.01, 0.05, 0.1, 0.3):
        assert chance[p <= delta].sum() <= delta


@pytest.mark.parametrize("losses", [0, 1, 5, 40, 1000])
def test_the_exact_p_value_by_scipy(losses):
    assert exact_binomial(losses / 1000, 1000, 0.01) == pytest.approx(binom.cdf(losses, 1000, 0.01), rel=1e-9)


@pytest.mark.parametrize(("n", "risk"), [(300, 0.05), (1000, 0.01)])
def test_the_exact_p_value_is_valid_and_smaller(n, risk):
    p = torch.tensor([exact_binomial(k / n, n, risk) for k in range(n + 1)])
    chance = torch.from_numpy(binom.pmf(range(n + 1), n, risk))
    for delta in (0.01, 0.05, 0.1, 0.3):
        assert chance[p <= delta].sum() <= delta
    rounding = 1 + 1e-9
    assert all(exact_binomial(k / n, n, risk) <= rounding * hoeffding_bentkus(k / n, n, risk) for k in range(n + 1))


class LogOdds(nn.Module):
    """log h(1) of "yes": NaN where h(1) < 0, as one Euler step on y' = −3y gives it."""

    def __init__(self):
        super().__init__()
        self.block = NeuralODE(Shrink(), RK4(8))

    def forward(self, x):
        return self.block(x).log()


class Shrink(nn.Module):
    def forward(self, t, y):
        return -3 * y


@pytest.mark.parametrize("risk", [ProbabilityShift(0.1), disagreement], ids=["ProbabilityShift", "disagreement"])
def test_a_policy_whose_outputs_are_nan_is_not_certified(risk):
    x = [(torch.linspace(30, 60, 500)[:, None], torch.zeros(500))]  # the answer is yes
    found = calibrate(LogOdds(), [RK4(7), Euler(1)], x, reference=RK4(8), epsilon=0.01, risk=risk)
    assert [(test.integrator, test.risk, test.certified) for test in found.tests] == [
        (RK4(7), 0.0, True),
        (Euler(1), 1.0, False),
    ]
    assert found.integrator == RK4(7)


# ---- a model whose predictions can be set: Euler(k) is wrong on known samples


class Table(nn.Module):
    """h(1) is h(0); the head looks up whether the sample's number is below the limit of the integrator in use."""

    def __init__(self, limits):
        super().__init__()
        self.block = NeuralODE(Zero(), RK4())
        self.limits = limits

    def forward(self, x):
        self.block(x)
        wrong = x[:, 0] < self.limits.get(str(self.block.integrator), 0)
        return torch.stack([wrong.float(), (~wrong).float()], 1)


class Zero(nn.Module):
    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, t, y):
        return self.nothing * y


def numbers(n):
    x = torch.arange(n, dtype=torch.float64)[:, None]
    return [(part, torch.ones(len(part), dtype=torch.int64)) for part in x.split(400)]


SETTINGS = [Euler(3), Euler(2), Euler(1)]


def run(limits, *, n=1000, **options):
    options = {"reference": RK4(1), "epsilon": 0.02, "delta": 0.1} | options
    return calibrate(Table(dict(zip(map(str, SETTINGS), limits, strict=True))), SETTINGS, numbers(n), **options)


@pytest.mark.parametrize(
    ("limits", "certified", "best"),
    [
        ([0, 2, 5], [True, True, True], Euler(1)),
        ([0, 2, 15], [True, True, False], Euler(2)),  # P[Binomial(1000, 0.02) ≤ 15] = 0.15
        ([0, 30, 0], [True, False], Euler(3)),  # testing ends at the first failure
        ([30, 0, 0], [False], RK4(1)),
    ],
)
def test_the_cheapest_certified_setting(limits, certified, best):
    found = run(limits)
    assert [t.certified for t in found.tests] == certified
    assert found.integrator == best
    assert [t.risk for t in found.tests] == [limit / 1000 for limit in limits][: len(certified)]
    assert [t.nfe for t in found.tests] == [3, 2, 1][: len(certified)]
    assert (found.reference_nfe, found.samples) == (4, 1000)


def test_a_certified_setting_that_saves_nothing_is_not_taken():
    assert run([0, 0, 0], reference=Euler(1)).integrator == Euler(1)
    assert calibrate(Table({}), [Euler(5)], numbers(1000), reference=RK4(1), epsilon=0.02).integrator == RK4(1)


def test_the_exact_p_value_certifies_more_losses():
    """P[Binomial(1000, 0.02) ≤ 13] = 0.066; Bentkus's bound is e times that."""
    limits = [0, 0, 13]
    assert [t.certified for t in run(limits).tests] == [True, True, False]
    exact = run(limits, p_value=exact_binomial)
    assert [t.certified for t in exact.tests] == [True, True, True]
    assert exact.tests[2].p == pytest.approx(binom.cdf(13, 1000, 0.02))


def test_the_exact_p_value_is_for_losses_of_0_or_1():
    with pytest.raises(ValueError, match="risk: exact_binomial needs losses that are 0 or 1"):
        run([0, 0, 0], risk=lambda o, r, y: 0.5 * torch.ones(len(o)), p_value=exact_binomial)


@pytest.mark.parametrize("p_value", [hoeffding_bentkus, exact_binomial])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5.0, 100, 0.1), "mean: expected a mean loss from 0 to 1, got 5.0"),  # in percent
        ((math.nan, 100, 0.1), "mean: expected a mean loss from 0 to 1, got nan"),
        ((0.05, 0, 0.1), "number: expected a whole number of at least 1, got 0"),
        ((0.05, 100, 5.0), "epsilon: expected a number between 0 and 1, got 5.0"),
    ],
)
def test_p_values_of_what_is_no_test(p_value, arguments, message):
    with pytest.raises(ValueError, match=message):
        p_value(*arguments)


def test_too_few_samples():
    with pytest.raises(ValueError, match=r"at least 114 samples are needed to certify epsilon=0.02 .* got 100"):
        run([0, 0, 0], n=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon: expected a number between 0 and 1"),
        ({"delta": 1.0}, "delta: expected a number between 0 and 1"),
        ({"risk": lambda o, r, y: 2 * torch.ones(len(o))}, "risk: expected a loss in"),
        ({"risk": lambda o, r, y: torch.ones(())[None]}, "risk: expected a loss in"),
        ({"risk": lambda o, r, y: 0.0}, "risk: expected a tensor with a loss in"),
        ({"risk": 3}, "risk: expected a function"),
        ({"delta": None}, "delta: expected a number between 0 and 1, got None"),
        ({"reference": "rk4"}, "reference: expected an integrator such as"),
        ({"p_value": 3}, "p_value: expected a function such as"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        run([0, 0, 0], **options)
    for settings in (Euler(1), "euler", ["euler"]):
        with pytest.raises(TypeError, match="settings: expected a list of integrators"):
            calibrate(Table({}), settings, numbers(1000), reference=RK4(1), epsilon=0.02)
    with pytest.raises(ValueError, match="settings: expected at least one"):
        calibrate(Table({}), [], numbers(1000), reference=RK4(1), epsilon=0.02)


def test_the_guarantee_holds_over_resplits():
    """A population of known risks: in 300 calibrations the chosen setting's true risk exceeds ε in at most δ."""
    draw = torch.Generator().manual_seed(0)
    population = torch.randperm(20_000, generator=draw)
    true_risk = {Euler(3): 0.01, Euler(2): 0.019, Euler(1): 0.024}
    model = Table({str(s): r * 20_000 for s, r in true_risk.items()})
    violations = 0
    for _ in range(300):
        x = population[torch.randperm(20_000, generator=draw)[:1000], None].double()
        found = calibrate(model, SETTINGS, [x], reference=RK4(1), epsilon=0.02, delta=0.1)
        violations += true_risk.get(found.integrator, 0.0) > 0.02
    assert violations <= 0.1 * 300


# ---- several sequences


def test_each_sequence_has_its_part_of_delta_and_fails_alone():
    model = Table({str(Euler(3)): 100, str(Euler(2)): 8})
    sequences = [[Euler(3), Euler(1)], [Euler(2), Euler(1)]]
    found = calibrate(model, sequences, numbers(1000), reference=RK4(1), epsilon=0.02, delta=0.1)
    assert [(test.integrator, test.certified) for test in found.tests] == [
        (Euler(3), False),
        (Euler(2), True),
        (Euler(1), True),
    ]
    assert found.integrator == Euler(1)


def test_a_p_value_between_the_part_and_all_of_delta_is_not_enough_for_one_of_two_sequences():
    delta = 1.5 * hoeffding_bentkus(0.008, 1000, 0.02)
    model = Table({str(Euler(1)): 8})
    common = {"reference": RK4(1), "epsilon": 0.02, "delta": delta}
    assert calibrate(model, [Euler(1)], numbers(1000), **common).tests[0].certified
    assert not calibrate(model, [[Euler(1)], [Euler(2)]], numbers(1000), **common).tests[0].certified


@pytest.mark.parametrize("settings", [[3], [Euler(1), 3], [[Euler(1)], 3], [[Euler(1)], None]])
def test_no_setting_is_left_out_without_a_word(settings):
    with pytest.raises(TypeError, match=r"settings: expected integrators, or sequences of them, got (3|None)"):
        calibrate(Table({}), settings, numbers(1000), reference=RK4(1), epsilon=0.02)


@pytest.mark.parametrize("settings", [[], [[]], [[Euler(1)], []], [Euler(1), [Euler(2)]]])
def test_sequences_without_settings_are_refused(settings):
    with pytest.raises(ValueError, match="settings: expected at least one integrator"):
        calibrate(Table({}), settings, numbers(1000), reference=RK4(1), epsilon=0.02)
