"""Samples that cannot be integrated or have no finite output: lost by the candidate, left out of fits, reported."""

import pytest
import torch
from torch import nn

from dise import (
    RK4,
    AdequacySelector,
    CostSelector,
    Dopri5,
    Dynamic,
    Euler,
    NeuralODE,
    PooledNetwork,
    calibrate,
    make_dynamic,
    profile_candidates,
    run_candidates,
    solve,
)
from dise.select import Costs, OutputDeviation, RiskCost, disagreement, find_block, lost_accuracy
from dise.select.policies.dynamic import without_nan
from dise.select.policies.forecast_fit import fit_forecast

NAN, INF = float("nan"), float("inf")
REFERENCE = Dopri5()
CANDIDATES = (Euler(1), RK4(1))


class Quintic(nn.Module):
    """y' = −y⁵: one coarse step throws large states to infinity."""

    def forward(self, t, y):
        return -(y**5)


class Turn(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, t, y):
        return 3 * torch.tanh(self.layer(y))


class Head(nn.Module):
    """Logits of three classes; `change` makes some of them not finite."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, h):
        return self.change(h, torch.cat([h, 0.3 * h[:, :1]], 1))


HEADS = {
    "rare NaN": lambda h, z: torch.where(h[:, :1] > 4.0, NAN, z),
    "one class masked": lambda h, z: z.index_fill(1, torch.tensor([2]), -INF),
    "all but one class masked for some": lambda h, z: torch.cat(
        [z[:, :1], torch.where(h[:, :1] > 2, -INF, z[:, 1:])], 1
    ),
    "all have one class": lambda h, z: z.index_fill(1, torch.tensor([1, 2]), -INF),
    "infinite": lambda h, z: torch.where(h[:, :1] > 3.0, INF, z),
}


def points(number=1000, scale=1.0):
    return scale * torch.randn(number, 2, generator=torch.Generator().manual_seed(0))


def model(head=None, f=None, reference=REFERENCE):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(NeuralODE(f or Turn(), reference), Head(HEADS[head]) if head else nn.Linear(2, 3)).eval()


@pytest.mark.parametrize(
    ("head", "risk"),
    [*((head, disagreement) for head in HEADS), ("rare NaN", OutputDeviation(0.1))],
    ids=[*HEADS, "rare NaN, OutputDeviation"],
)
def test_logits_that_are_not_finite(head, risk):
    """No error, and fresh outputs that differ on at most ε of the samples."""
    changed = model(head, reference=RK4(4))
    fresh = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
    number = 1500 if head == "rare NaN" else 800  # enough for selectors, too
    with torch.no_grad():
        expected = changed(fresh)
        make_dynamic(changed, points(number), epsilon=0.03, risk=risk, candidates=CANDIDATES)
        output = changed(fresh)
    assert (output.isnan() != expected.isnan()).any(1).double().mean() <= 0.03
    finite = ~expected.isnan().any(1)
    assert (output.argmax(1) != expected.argmax(1))[finite].double().mean() <= 0.03 or risk is not disagreement


def test_candidates_that_diverge_lose_samples_and_the_report_says_so():
    changed, x = model(f=Quintic()), points(500, scale=3)
    with torch.no_grad():
        expected = changed(x)
        make_dynamic(changed, x, epsilon=0.05, candidates=(Euler(4), RK4(4)))
        report = changed[0].report
        assert (changed(x).argmax(1) != expected.argmax(1)).double().mean() <= 0.05
    (note,) = [note for note in report.notes if "fits leave them out" in note]
    assert "RK4(steps=4): " in note
    assert note in str(report)


def test_a_setting_that_fails_on_some_samples():
    """Euler's ten steps of y' = −y⁵ throw large states to infinity; the reference's never do."""
    x = torch.cat([points(990, 0.1), points(10, 8.0)])
    setting = Euler(10)
    alone = [solve(Quintic(), row[None], 0.0, 1.0, setting, throw=False).status.item() for row in x]
    failing = sum(status != 0 for status in alone)
    assert 3 <= failing <= 10
    found = calibrate(model(f=Quintic()), [setting], x, reference=REFERENCE, epsilon=0.05, risk=OutputDeviation(1e6))
    (test,) = found.tests
    assert (test.failures, test.risk, test.certified) == (failing, failing / 1000, True)
    changed = make_dynamic(model(f=Quintic()), x, settings=[setting], epsilon=0.05, risk=OutputDeviation(1e6))
    assert f"The policy fails on {failing} of the 1000 samples" in str(changed[0].report)


class Pole(nn.Module):
    """y' = y² from y₀ > 1 has no solution up to t = 1."""

    def forward(self, t, y):
        return y**2


def test_a_reference_that_fails():
    some = torch.cat([torch.linspace(-1, 0.5, 990)[:, None], torch.full((10, 1), 3.0)])
    block = nn.Sequential(NeuralODE(Pole(), REFERENCE), nn.Linear(1, 3))
    found = calibrate(block, [RK4(8)], some, reference=REFERENCE, epsilon=0.05)
    assert (found.reference_failures, found.reference_nan) == (10, 10)
    assert found.tests[0].risk <= 0.01 + 1e-9
    report = make_dynamic(block, some, settings=[RK4(8)], epsilon=0.05)[0].report
    assert "The reference fails on 10 of the 1000 samples." in report.notes
    with pytest.raises(ValueError, match="reference: Dopri5 fails on all 100 samples, so there is nothing to compare"):
        calibrate(block, [RK4(8)], torch.full((100, 1), 3.0), reference=REFERENCE, epsilon=0.05)


def test_a_sample_that_only_the_candidate_fails_on_is_lost_whatever_the_outputs_say():
    """The head ignores the state, so all outputs are equal."""

    class Blind(nn.Module):
        def forward(self, h):
            return torch.stack([torch.ones(len(h)), torch.zeros(len(h))], 1)

    x = torch.cat([points(90, 0.1), torch.full((10, 2), 20.0)])
    blind = nn.Sequential(NeuralODE(Quintic(), REFERENCE), Blind())
    found = calibrate(blind, [Euler(10)], x, reference=REFERENCE, epsilon=0.2, risk=lambda o, r, y: torch.zeros(len(o)))
    assert found.tests[0].risk == pytest.approx(0.1)
    outcomes = run_candidates(blind, x, [Euler(10), REFERENCE])
    assert outcomes.failed.sum(0).tolist() == [10, 0]
    assert outcomes.output[outcomes.failed].isnan().all()
    assert Costs.of(outcomes, RiskCost()).adequate.sum(0).tolist() == [90, 100]


def test_whole_numbers_as_outputs_have_no_nan():
    class Rounded(nn.Module):
        def forward(self, h):
            return h.long()

    x = torch.cat([points(90, 0.1), torch.full((10, 2), 20.0)])
    outcomes = run_candidates(nn.Sequential(NeuralODE(Quintic(), REFERENCE), Rounded()), x, [Euler(10), REFERENCE])
    assert outcomes.output[:, 0].isnan().all(1).sum() == 10


def test_a_failing_candidate_can_be_timed():
    x = torch.full((4, 2), 20.0)
    profile = profile_candidates(model(f=Quintic()), [x], [Euler(10), REFERENCE], batches=(2,), repeats=2)
    assert profile.milliseconds.shape == (1, 2)


# ---- fits


@pytest.mark.parametrize("kind", [CostSelector, AdequacySelector], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_selector_is_fitted_without_samples_whose_features_are_not_finite(make_costs, kind, value):
    """The others are those of a fit without them, so the weights are the same."""
    h0 = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    adequate = torch.stack([h0[:, 0] > 0, torch.ones(200, dtype=torch.bool)], 1)
    broken = torch.cat([h0[:120], torch.tensor([[value, 0.0]] * 30), h0[120:]])
    rows = torch.cat([adequate[:120], adequate[:30], adequate[120:]])
    fits = []
    for states, table in ((h0, adequate), (broken, rows)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = PooledNetwork(2, 2)
        fits.append(kind.fit(network, make_costs([1, 4], table, h0=states), max_epochs=3))
    assert [fit.history.left_out for fit in fits] == [0, 30]
    name, weights = "network.layers.0.weight", [fit.state_dict() for fit in fits]
    assert torch.equal(weights[0][name], weights[1][name])


def test_a_fit_with_nothing_left():
    nothing = torch.full((50, 2), NAN)
    with pytest.raises(ValueError, match="two or more samples with finite features and logits, got 0 of 50"):
        fit_forecast(nothing, nothing)


def test_a_selector_with_nothing_left(make_costs):
    costs = make_costs([1, 4], [[True, True]] * 50, h0=torch.full((50, 2), NAN))
    with pytest.raises(ValueError, match="costs: expected enough samples to set 20% apart, got 0 with finite features"):
        CostSelector.fit(PooledNetwork(2, 2), costs)


def test_a_forecast_is_that_of_the_finite_samples():
    draw = torch.Generator().manual_seed(0)
    logits, noise = (torch.randn(60, 3, generator=draw) for _ in "12")
    reference = logits + 0.1 * noise
    bad = torch.tensor([[0.0, NAN, 1.0], [0.0, -INF, 1.0], [INF, 0.0, 0.0]])
    clean = fit_forecast(logits, reference)
    fit = fit_forecast(torch.cat([bad, logits]), torch.cat([bad, reference]))
    assert torch.equal(fit.weight, clean.weight)
    assert torch.equal(fit.leave_one_out[3:], clean.leave_one_out)
    assert fit.leave_one_out[:3].isnan().all()


def test_scores_that_are_all_nan_choose_the_last_candidate():
    scores = torch.tensor([[NAN, NAN, NAN], [NAN, 2.0, 1.0], [1.0, NAN, NAN], [NAN, INF, NAN]])
    assert without_nan(scores).argmin(1).tolist() == [2, 2, 0, 1]
    dynamic = Dynamic((Euler(1), RK4(1)), lambda h0, k1: torch.full((len(h0), 2), NAN))
    assert solve(lambda t, y: -y, points(5), 0.0, 1.0, dynamic).choice.tolist() == [1] * 5


def test_nothing_is_cheaper_than_the_reference():
    changed = model()
    with pytest.raises(ValueError, match="candidates: expected one that needs fewer evaluations of f than Euler"):
        make_dynamic(changed, points(), epsilon=0.03, reference=Euler(1), candidates=(RK4(1),))


def test_nan_of_the_reference_by_hand():
    """NaN is no class: an answer where the reference has none differs from it, and loses no accuracy."""
    none, first = torch.tensor([[NAN, 0.0]]), torch.tensor([[1.0, 0.0]])
    label = torch.tensor([0])
    assert disagreement(first, none, None).item() == 1
    assert disagreement(none, none, None).item() == 0
    assert lost_accuracy(first, none, label).item() == 0
    assert lost_accuracy(none, first, label).item() == 1


def test_classes_masked_by_the_reference_too_are_not_told():
    """−∞ of the reference, too, is no sample lost."""
    changed = make_dynamic(model("one class masked", reference=RK4(4)), points(300), epsilon=0.05)
    assert "cannot be integrated or have outputs that are not finite" not in str(find_block(changed).report)
