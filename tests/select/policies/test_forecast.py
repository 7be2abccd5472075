import copy
from itertools import combinations_with_replacement

import pytest
import torch
from scipy.linalg import lstsq
from torch import nn
from torch.testing import assert_close

from dise import RK4, Cascade, Dopri5, Euler, Forecast, Midpoint, NeuralODE
from dise.select import Costs, Outcomes, RiskCost, channel_means, run_candidates
from dise.select.make_dynamic.families import FACTORS, families, forecast_cascades
from dise.select.policies.forecast_fit import fit_forecast, logit_margin


def logits(number=300, classes=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(number, classes, generator=draw)


def biased(reference, seed=3):
    """Logits of a candidate that favours some classes: a linear map of the reference's, and a little noise."""
    draw = torch.Generator().manual_seed(seed)
    classes = reference.shape[1]
    mixing, offset = torch.randn(classes, classes, generator=draw), torch.randn(classes, generator=draw)
    noise = torch.randn(reference.shape, generator=draw)
    return reference @ (torch.eye(classes) + 0.2 * mixing) + offset + 0.01 * noise


def features(logits, means=None):
    """The logits, their products in pairs, and the means."""
    pairs = combinations_with_replacement(range(logits.shape[1]), 2)
    products = torch.stack([logits[:, i] * logits[:, j] for i, j in pairs], 1)
    return torch.cat([logits, products] + ([] if means is None else [means]), 1).double()


def everything(logits, means=None):
    """The logits, the products of each with each, and the means."""
    products = torch.einsum("ni,nj->nij", logits, logits).reshape(len(logits), -1)
    return torch.cat([logits, products] + ([] if means is None else [means]), 1).double()


def closeness(logits):
    """How much a sample counts: half as much as the closest if its gap is twice that of the tenth with the smallest."""
    two = logits.double().topk(2, dim=1).values
    gap = two[:, 0] - two[:, 1]
    w = 1 / (1 + (gap / (2 * gap.quantile(0.1))) ** 2)
    return w / w.mean()


def ridge(x, y, w, penalty):
    """Weighted ridge regression with an intercept, as least squares with a row more for each feature: x → y."""
    rows = penalty**0.5 * torch.eye(x.shape[1], dtype=x.dtype)
    a = torch.cat([torch.cat([x, torch.ones(len(x), 1)], 1), torch.cat([rows, torch.zeros(len(rows), 1)], 1)])
    b = torch.cat([y, torch.zeros(len(rows), y.shape[1])])
    root = torch.cat([w.sqrt(), torch.ones(len(rows))])[:, None]
    found = torch.from_numpy(lstsq((root * a).numpy(), (root * b).numpy())[0])
    return lambda new: new @ found[:-1] + found[-1]


def channels(number, seed=5):
    return torch.randn(number, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("means", [None, channels(300)])
@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_the_map_is_ridge_regressions(penalty, means):
    reference = logits()
    candidate = biased(reference)
    found = fit_forecast(candidate, reference, means, penalties=[penalty])
    x = features(candidate, means)
    scaled = x / x.std(0)
    theirs = ridge(scaled, reference.double(), closeness(candidate), penalty * len(x))
    expected = everything(candidate, means) @ found.weight.double() + found.bias.double()
    assert_close(expected, theirs(scaled), rtol=1e-4, atol=1e-4)


def test_samples_left_out_are_expected_from_the_others():
    reference = logits(30)
    candidate = biased(reference)
    found = fit_forecast(candidate, reference, penalties=[0.01])
    x, w = features(candidate), closeness(candidate)
    x = x / x.std(0)
    for i in range(3):
        others = [j for j in range(30) if j != i]
        theirs = ridge(x[others], reference[others].double(), w[others], 0.01 * 30)
        assert_close(found.leave_one_out[i].double(), theirs(x[i]), rtol=1e-4, atol=1e-4)


def test_a_rule_expects_what_was_learnt():
    """The score is the lead in the map of the features of a state."""
    reference, states = logits(), channels(300)[:, :, None, None] * torch.ones(2, 2)
    candidate = biased(reference)
    head = Lookup(states, candidate)
    rule = Forecast.fit(head, candidate, reference, means=channel_means(states))
    learnt = fit_forecast(candidate, reference, channels(300))
    expected = everything(candidate, channels(300)).float() @ learnt.weight + learnt.bias
    assert_close(rule.score(states), logit_margin(expected, candidate.argmax(1)), rtol=1e-4, atol=1e-4)


class Lookup(nn.Module):
    """A head that knows its answers, and changes its input in place."""

    def __init__(self, states, answers):
        super().__init__()
        self.states, self.answers = states.clone(), answers

    def forward(self, h):
        assert torch.equal(h, self.states)
        h.zero_()
        return self.answers


def test_products_of_logits_see_what_sums_cannot():
    """The candidate swaps two classes where two others agree in sign."""
    reference, new = logits(2000), logits(1000, seed=1)

    def candidate(x):
        return torch.where((x[:, 2] * x[:, 3] > 0)[:, None], x + torch.tensor([1.0, -1.0, 0, 0]), x)

    rule = Forecast.fit(nn.Identity(), candidate(reference), reference)
    blind = Forecast.fit(nn.Identity(), candidate(reference), reference)
    blind.weight[4:].zero_()
    same = candidate(new).argmax(1) == new.argmax(1)
    right, wrong = ((r(candidate(new)) == same).double().mean() for r in (rule, blind))
    assert right > wrong + 0.03


def test_the_states_channels_tell_what_logits_cannot():
    """A channel's mean says which way the candidate's logits are off."""
    reference, means = logits(2000), channels(2000)
    off = means[:, :1] * torch.tensor([2.0, -2.0, 0.0, 0.0])
    same = (reference + off).argmax(1) == reference.argmax(1)
    half = slice(1000, None)
    scores = []
    for seen in (means, None):
        learnt = fit_forecast((reference + off)[:1000], reference[:1000], None if seen is None else seen[:1000])
        x = everything((reference + off)[half], None if seen is None else seen[half]).float()
        scores.append(logit_margin(x @ learnt.weight + learnt.bias, (reference + off)[half].argmax(1)) >= 0)
    right, wrong = ((score == same[half]).double().mean() for score in scores)
    assert right > 0.98 > 0.9 > wrong


def test_many_channels_are_not_looked_at(decay):
    head = nn.Linear(257, 3)
    model = nn.Sequential(NeuralODE(decay(), Euler()), head)
    data = [(torch.randn(20, 257, generator=torch.Generator().manual_seed(0)), torch.zeros(20))]
    made = run_candidates(model, data, (Euler(1), RK4(1)))
    assert made.means.shape == (20, 2, 0)
    (rule,) = forecast_cascades(made, head, torch.device("cpu")).settings[0].accept
    assert rule.channels == 0
    assert rule.weight.shape == (3 + 9, 3)


def test_of_many_classes_only_squares_are_looked_at():
    reference = logits(200, classes=33)
    assert fit_forecast(biased(reference), reference).weight.shape == (66, 33)
    assert Forecast(nn.Identity(), 0.0, classes=33).weight.shape == (66, 33)


def test_the_penalty_is_chosen_by_the_samples_left_out():
    """Where nothing can be expected, a large penalty is better than any fit; where all can, a small one."""
    reference = logits(25)
    errors = {
        p: float((fit_forecast(logits(25, seed=9), reference, penalties=[p]).leave_one_out - reference).norm())
        for p in (1e-6, 1.0)
    }
    assert errors[1.0] < errors[1e-6]
    assert_close(
        fit_forecast(logits(25, seed=9), reference, penalties=[1e-6, 1.0]).weight,
        fit_forecast(logits(25, seed=9), reference, penalties=[1.0]).weight,
    )
    assert_close(
        fit_forecast(biased(reference), reference, penalties=[1e-6, 1.0]).weight,
        fit_forecast(biased(reference), reference, penalties=[1e-6]).weight,
    )


def test_the_lead_of_an_answer():
    table = torch.tensor([[1.0, 3.0, 2.5], [1.0, 3.0, 2.5]])
    assert_close(logit_margin(table, torch.tensor([1, 0])), torch.tensor([0.5, -2.0]))


def test_answers_are_accepted_that_the_reference_would_give():
    """A candidate's systematic error is seen through, which its own confidence cannot do."""
    reference, new = logits(), logits(1000, seed=1)
    rule = Forecast.fit(nn.Identity(), biased(reference), reference)
    states = biased(new)
    same = states.argmax(1) == new.argmax(1)
    assert 0.05 < (~same).double().mean() < 0.5
    assert (rule(states) == same).double().mean() > 0.99
    sure = states.topk(2, dim=1).values.diff(dim=1).neg()[:, 0]
    threshold = sure.quantile((~rule(states)).double().mean().float())
    assert ((sure >= threshold) == same).double().mean() < 0.95


def test_untrained_the_score_is_the_candidates_own_gap():
    x = logits(5)
    two = x.topk(2, dim=1).values
    assert_close(Forecast(nn.Identity(), 0.0, classes=4).score(x), two[:, 0] - two[:, 1])


def test_one_logit_a_sample_is_a_yes_or_no():
    yes = torch.linspace(-3, 3, 41)
    rule = Forecast.fit(nn.Identity(), yes[:, None] + 1.0, yes[:, None])  # the candidate says yes too often
    x = torch.tensor([[-2.0], [0.5], [3.0]])
    assert rule(x).tolist() == [True, False, True]
    assert_close(rule.score(x), torch.tensor([3.0, -0.5, 2.0]), rtol=1e-3, atol=1e-3)


def test_autocast_leaves_it_its_precision():
    reference = logits()
    rule = Forecast.fit(nn.Identity(), 10 * biased(reference), reference)
    x = 10 * biased(logits(50, seed=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = rule.score(x)
    assert torch.equal(score, rule.score(x))


def test_nan_is_not_accepted():
    assert Forecast(nn.Identity(), -1e9, classes=2)(torch.tensor([[torch.nan, 1.0], [0.0, 1.0]])).tolist() == [
        False,
        True,
    ]


def test_thresholds_share_what_was_learnt():
    rule = Forecast.fit(nn.Identity(), biased(logits()), logits())
    other = rule.with_threshold(2.0)
    assert (rule.threshold, other.threshold) == (0.0, 2.0)
    assert other.weight is rule.weight


def test_it_is_part_of_the_block_and_its_head_is_not():
    head = nn.Linear(2, 3)
    rule = Forecast(head, 0.5, classes=3)
    model = nn.Sequential(NeuralODE(nn.Linear(2, 2), Cascade((Euler(), RK4()), [rule])), head)
    names = {name for name in model.state_dict() if "policy" in name}
    assert names == {"0.policy.accept.0.weight", "0.policy.accept.0.bias"}
    twin = copy.deepcopy(model)
    assert twin[0].integrator.accept[0].head is twin[1]
    twin.double()
    assert twin[0].integrator.accept[0].weight.dtype == torch.float64


def test_a_cascade_goes_on_where_the_forecast_says_no(decay):
    head = nn.Identity()
    rule = Forecast(head, 0.3, classes=2)
    block = NeuralODE(decay(), Cascade((Midpoint(), RK4()), rule))
    with torch.no_grad(), block.recording() as records:
        block(torch.tensor([[1.0, 0.0], [0.1, 0.0]]))  # after the midpoint rule: half of it
    assert records[0].solution.choice.tolist() == [0, 1]
    assert records[0].solution.nfe.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Forecast(nn.Identity(), 0.0, classes=1), "classes: expected at least 2, got 1"),
        (lambda: Forecast(nn.Identity(), float("nan"), classes=2), "threshold: expected a number, got nan"),
        (lambda: Forecast(nn.Identity(), 0.0, classes=2).with_threshold(float("nan")), "threshold: expected a number"),
        (lambda: Forecast(nn.Identity(), 0.0, classes=2, channels=-1), "channels: expected at least 0, got -1"),
        (lambda: fit_forecast(torch.zeros(1, 2), torch.zeros(1, 2)), "two or more samples"),
        (
            lambda: fit_forecast(*torch.zeros(2, 5, 2), torch.zeros(4, 2)),
            r"means: expected shape \(5, D\), got \(4, 2\)",
        ),
        (lambda: fit_forecast(torch.zeros(5, 2), torch.zeros(5, 3)), r"\(5, 2\) and \(5, 3\)"),
    ],
)
def test_what_makes_no_rule_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def outcomes(candidates, off):
    """A candidate's logits are a map of the reference's, off[k] times as far from it as `biased` is."""
    reference = logits()
    table = torch.stack([reference + scale * (biased(reference) - reference) for scale in off], 1)
    nfe = torch.tensor([1, 2, 14][-len(off) :]).expand(300, len(off))
    h0 = torch.randn(300, 3, generator=torch.Generator().manual_seed(4))
    return Outcomes(candidates, h0, -h0, nfe, table, torch.zeros(300))


def test_the_family_of_a_model_falls_in_its_thresholds():
    made = outcomes((Euler(1), Midpoint(1), Dopri5()), [1.0, 0.5, 0.0])
    family = forecast_cascades(made, nn.Identity(), torch.device("cpu"))
    assert family.name == "forecast Euler → Midpoint → Dopri5"
    assert family.learnt
    thresholds = torch.tensor([[rule.threshold for rule in setting.accept] for setting in family.settings])
    assert_close(thresholds / thresholds[:, :1].clone(), thresholds[:1].expand_as(thresholds) / thresholds[0, 0])
    assert_close(thresholds[:, 0] / thresholds[0, 0], torch.tensor(FACTORS) / FACTORS[0])
    found = families(
        Costs.of(made, RiskCost()),
        made,
        nn.Identity(),
        classifies=True,
        epsilon=0.01,
        span=1.0,
        device=torch.device("cpu"),
    )
    assert family.name in {other.name for other in found}
