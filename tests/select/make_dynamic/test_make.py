"""From a trained model to a fast one. With other seeds a guarantee would fail in a part of at most δ."""

import math
import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dise import (
    RK4,
    RKC1,
    AdequacySelector,
    Cascade,
    Confidence,
    ConfidenceNetwork,
    Dopri5,
    Dynamic,
    Euler,
    Forecast,
    Midpoint,
    make_dynamic,
)
from dise.select import OutputDeviation, ProbabilityShift, Report, find_block, lost_accuracy, samples_needed
from dise.select.guarantee.calibrate import run_policy
from dise.select.make_dynamic import choice, timing
from dise.select.policies.confidence import confidence
from dise_experiments.mnist.model import odenet

REFERENCE = Dopri5(rtol=1e-4, atol=1e-4)
LOOSE = {"epsilon": 0.02, "delta": 0.05}


@torch.no_grad()
def run(model, x, integrator=None):
    """Output and NFE with the model's own integrator, or another."""
    block = find_block(model)
    with block.using(integrator or block.integrator), block.recording() as records:
        output = model(x)
    return output, records[0].solution.nfe


@pytest.fixture
def fresh(points):
    return torch.cat(points(5000, seed=9))


@pytest.fixture(scope="module")
def log():
    """What was said while `model` was made."""
    return []


@pytest.fixture(scope="module")
def model(classifier, points, log):
    """A classifier made dynamic, which tests leave as it is."""
    return make_dynamic(classifier(), points(2000), log=log.append, **LOOSE)


def test_the_model_is_faster_and_says_the_same(model, fresh):
    report = find_block(model).report
    output, nfe = run(model, fresh)
    expected, reference_nfe = run(model, fresh, REFERENCE)
    assert (output.argmax(1) != expected.argmax(1)).double().mean() <= 0.02
    assert nfe.double().mean() < 0.5 * reference_nfe.double().mean()
    assert report.policy is find_block(model).integrator
    assert report.nfe == pytest.approx(float(nfe.double().mean()), rel=0.1)
    assert report.reference_nfe == pytest.approx(float(reference_nfe.double().mean()), rel=0.1)
    assert (report.epsilon, report.delta, report.samples) == (0.02, 0.05, 1400)
    assert report.risk <= 0.02
    assert report.family in report.families
    assert report.families[report.family] == min(report.families.values())


@pytest.mark.host
def test_what_is_tried_and_told(model, log):
    names = set(find_block(model).report.families)
    assert {
        "one candidate for all",
        "embedded error of Bosh3",
        "selector on the head's confidence",
        "selector on the state's channels",
    } <= names
    assert sum(name.startswith("cascade Euler") for name in names) >= 2
    assert all(any(line.startswith(name) for line in log) for name in names)
    assert log[-1] == str(find_block(model).report)
    assert "at most 2.00% with confidence 0.95" in log[-1]


@pytest.mark.host
def test_the_best_policy_beats_the_best_single_candidate(model, fresh):
    expected = run(model, fresh, REFERENCE)[0].argmax(1)
    singles = [
        float(nfe.double().mean())
        for output, nfe in (run(model, fresh, c) for c in (Euler(1), Euler(2), Midpoint(1), RK4(1), RK4(2)))
        if (output.argmax(1) != expected).double().mean() <= 0.02
    ]
    assert run(model, fresh)[1].double().mean() < min(singles)


@pytest.mark.host
def test_a_result_depends_on_its_seed_alone(classifier, points, fresh):
    state = torch.get_rng_state()
    first, again = (make_dynamic(classifier(), points(1000), seed=3, **LOOSE) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first(fresh), again(fresh))


def test_given_settings_are_tested_and_nothing_else(classifier, points):
    model = classifier()
    settings = [Cascade((Euler(1), RK4(1)), Confidence(model[2], top)) for top in (0.99, 0.9)]
    assert make_dynamic(model, points(500), settings=settings, **LOOSE) is model
    report = find_block(model).report
    assert (report.family, report.families, report.samples) == ("as given", {}, 500)
    assert model[1].integrator in settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": "0.1"}, "epsilon: expected a number between 0 and 1, got '0.1'"),
        ({"delta": None}, "delta: expected a number between 0 and 1, got None"),
        ({"reference": "dopri5"}, "reference: expected an integrator such as"),
        ({"candidates": Euler(1)}, "candidates: expected a list of integrators"),
        ({"candidates": ["euler"]}, "candidates: expected a list of integrators"),
        ({"settings": Euler(1)}, "settings: expected a list of integrators"),
        ({"risk": "disagreement"}, "risk: expected a function"),
        ({"risk": OutputDeviation}, "risk: expected a function"),
        ({"risk": lambda output, reference, target: 0.0}, "risk: expected a tensor"),
        ({"head": 3}, "head: expected a module, got int"),
        ({"seed": None}, "seed: expected a whole number"),
        ({"log": None}, "log: expected a function, got NoneType"),
        ({"span": (0.0, 2.0)}, "span: expected None, since the block is a dise.NeuralODE"),
        ({"f": "net"}, "f: expected None, since the block is a dise.NeuralODE"),
    ],
)
def test_bad_arguments_are_named(classifier, points, options, message):
    model = classifier()
    before = model[1].integrator
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        make_dynamic(model, points(500), **(LOOSE | options))
    assert model[1].integrator == before


@pytest.mark.parametrize("model", [None, lambda x: x, nn.Linear], ids=["None", "function", "class"])
def test_a_model_is_a_module(model, points):
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module that contains a dise.NeuralODE"):
        make_dynamic(model, points(500), **LOOSE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learn_from": [], "settings": [Euler(1)]}, "learn_from: the settings are given, there is nothing to learn"),
        ({"learn_from": []}, r"learn_from: expected batches of inputs or \(inputs, target\), got none"),
    ],
)
def test_what_there_is_to_learn_from_is_checked(classifier, points, options, message):
    with pytest.raises(ValueError, match=message):
        make_dynamic(classifier(), points(500), **options, **LOOSE)


def test_nothing_is_certified_where_every_setting_loses(classifier, points):
    model = make_dynamic(classifier(), points(500), settings=[Euler(1)], **LOOSE)
    block = find_block(model)
    assert block.integrator == REFERENCE
    assert (block.report.family, block.report.risk) == ("reference", 0.0)
    assert "Nothing was certified: Euler, the safest setting, lost" in str(block.report)


@pytest.mark.parametrize("number", [40, pytest.param(3000, marks=pytest.mark.slow)])
def test_what_is_learnt_elsewhere_leaves_all_data_for_the_test(classifier, points, fresh, number):
    """Few samples to learn from may choose a dear policy, none that breaks the guarantee."""
    model = make_dynamic(classifier(), points(200), learn_from=points(number, seed=3), **LOOSE)
    report = find_block(model).report
    assert report.samples == 200
    output, nfe = run(model, fresh)
    expected, reference_nfe = run(model, fresh, REFERENCE)
    assert (output.argmax(1) != expected.argmax(1)).double().mean() <= 0.02
    assert nfe.double().mean() < reference_nfe.double().mean()
    assert report.families[report.family] == min(report.families.values())


@pytest.mark.slow
def test_a_family_is_judged_on_at_most_2000_samples_that_it_was_not_learnt_from(classifier, points, monkeypatch):
    seen = {}

    def counting(model, integrator, batches, **options):
        seen.setdefault(len(seen), sum(len(x) for x, _ in batches))
        return run_policy(model, integrator, batches, **options)

    monkeypatch.setattr(sys.modules["dise.select.make_dynamic.choice"], "run_policy", counting)
    make_dynamic(classifier(), points(200), learn_from=points(5000, seed=3), **LOOSE)
    assert set(seen.values()) == {2000}


# ---- risks


def test_labels_are_looked_at_by_a_labelled_risk(classifier, points, fresh):
    """Half of the labels are the reference's answers, the others wrong: only those can be lost."""
    model = classifier().eval()
    with torch.no_grad():
        batches = [(x, torch.where(x[:, 0] > 0, (y := model(x).argmax(1)), (y + 1) % 3)) for x in points(1500)]
    make_dynamic(model, batches, risk=lost_accuracy, **LOOSE)
    expected = run(model, fresh, REFERENCE)[0].argmax(1)
    lost = (run(model, fresh)[0].argmax(1) != expected) & (fresh[:, 0] > 0)
    assert lost.double().mean() <= 0.02


@pytest.mark.parametrize("classes", [1, 2])
def test_probabilities_that_move(classifier, points, fresh, classes):
    model = make_dynamic(classifier(classes=classes), points(2000), risk=ProbabilityShift(0.02), **LOOSE)
    (output, nfe), (expected, full) = run(model, fresh), run(model, fresh, REFERENCE)
    p, q = ((x.sigmoid() if classes == 1 else x.softmax(1))[:, 0] for x in (output, expected))
    assert ((p - q).abs() > 0.02).double().mean() <= 0.02
    assert nfe.double().mean() < full.double().mean()


def test_a_model_that_is_no_classifier(classifier, points, fresh):
    model = nn.Sequential(*classifier()[:2])
    make_dynamic(model, points(2000), risk=OutputDeviation(0.05), **LOOSE)
    report = find_block(model).report
    (output, nfe), (expected, full) = run(model, fresh), run(model, fresh, REFERENCE)
    assert ((output - expected).square().mean(1).sqrt() > 0.05).double().mean() <= 0.02
    assert nfe.double().mean() < full.double().mean()
    assert not any("confidence" in name or "cascade" in name for name in report.families)


def test_a_damped_candidate_where_euler_needs_small_steps(classifier, points, fresh):
    """A slow mode and one of eigenvalue −12: two damped steps need 6 evaluations, and Euler's 6 steps end far off."""
    model = classifier()[:2]
    model[1].f = Stiff()
    candidates = (*(Euler(steps) for steps in (1, 2, 3, 4, 5, 6, 16)), RKC1(2, 3))
    # too few points for selectors
    make_dynamic(model, points(600), risk=OutputDeviation(0.05), candidates=candidates, reference=REFERENCE, **LOOSE)
    assert model[1].integrator == RKC1(2, 3)
    (output, nfe), (expected, _) = run(model, fresh), run(model, fresh, REFERENCE)
    assert (nfe == 6).all()
    assert ((output - expected).square().mean(1).sqrt() > 0.05).double().mean() <= 0.02


class Stiff(nn.Module):
    """y₁' = cos(t) / 4, y₂' = 12 (sin(y₁) − y₂)."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(12.0))

    def forward(self, t, y):
        slow, fast = y.unbind(1)
        return torch.stack([t.squeeze(1).cos() / 4, self.rate * (slow.sin() - fast)], 1)


# ---- the head


class Free(nn.Module):
    """A model that does something of its own after the block."""

    def __init__(self, parts):
        super().__init__()
        self.stem, self.block, self.head = parts

    def forward(self, x):
        return F.softplus(self.head(self.block(self.stem(x))) - 1)


def test_without_a_head_there_is_a_note_and_no_cascade(classifier, points):
    report = find_block(make_dynamic(Free(classifier()), points(1000), **LOOSE)).report
    assert not any(name.startswith("cascade") for name in report.families)
    assert "no cascade on its confidence was tried: give head=" in str(report)


def test_a_head_may_be_given(classifier, points):
    model = Free(classifier())
    report = find_block(make_dynamic(model, points(1000), head=model.head, **LOOSE)).report
    assert any(name.startswith("cascade") for name in report.families)
    assert not report.notes


# ---- what a model goes through afterwards


def test_it_runs_in_inference_mode_and_training_does_not_touch_it(model, fresh):
    model = deepcopy(model)
    expected = run(model, fresh)[0]
    with torch.inference_mode():
        torch.testing.assert_close(model(fresh), expected)
    model(fresh).sum().backward()
    assert all(p.grad is not None for p in model[1].f.parameters())


@pytest.mark.host
@pytest.mark.parametrize("kind", ["cascade", "forecast", "selector"])
def test_it_runs_under_autocast(kind):
    """An ODE-Net, whose stem ends with a convolution, so that the block gets bfloat16."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = odenet().eval(), torch.rand(8, 1, 28, 28)
        network = ConfidenceNetwork(model.head, 2, classes=10)
    with torch.no_grad(), model.block.using(Euler(1)):
        logits = model(x)
        gaps = confidence(logits, "gap")
    policies = {
        "cascade": Cascade((Euler(1), RK4(1)), Confidence(model.head, float(gaps.median()), measure="gap")),
        "forecast": Cascade(
            (Euler(1), RK4(1)), [Forecast.fit(model.head, logits, logits, threshold=float(gaps.median()))]
        ),
        "selector": Dynamic((Euler(1), RK4(1)), AdequacySelector(network, candidates=2).eval()),
    }
    model.block.integrator = policies[kind]
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16), model.block.recording() as records:
            output = model(x)
    assert records[0].y0.dtype == torch.bfloat16
    # bfloat16 has 8 bits
    torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


def test_any_batch_gives_a_sample_the_same_answer(model, fresh):
    whole = run(model, fresh[:64])[0]
    parts = torch.cat([run(model, x)[0] for x in fresh[:64].split([1, 30, 33])])
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu(classifier, points, fresh):
    model = make_dynamic(classifier().cuda(), points(1000), **LOOSE)
    on_gpu = run(model, fresh.cuda())[0].cpu()
    torch.testing.assert_close(run(model.cpu(), fresh)[0], on_gpu, rtol=1e-3, atol=1e-3)


# ---- wrong arguments


def test_too_few_samples(classifier, points):
    with pytest.raises(ValueError, match=r"data: at least 4279 samples are needed, 2995 of them .* got 2000"):
        make_dynamic(classifier(), points(2000))
    assert math.ceil(samples_needed(0.001, 0.05) / 0.7) == 4279


@pytest.mark.host
def test_the_fewest_samples_that_are_enough(classifier, points):
    needed = math.ceil(samples_needed(0.05, 0.05) / 0.7)
    report = find_block(make_dynamic(classifier(), points(needed), epsilon=0.05)).report
    assert report.samples == samples_needed(0.05, 0.05)
    with pytest.raises(ValueError, match=f"at least {needed} samples"):
        make_dynamic(classifier(), points(needed - 1), epsilon=0.05)


@pytest.mark.host
def test_a_reference_that_chooses(model, points):
    model = deepcopy(model)
    assert model[1].integrator.chooses
    with pytest.raises(ValueError, match="reference: expected an integrator that is the same for each sample"):
        make_dynamic(model, points(1000), **LOOSE)
    make_dynamic(model, points(1000), reference=REFERENCE, **LOOSE)


def test_one_system_has_no_samples_to_choose_for(classifier, points):
    model = classifier()
    model[1].options = replace(model[1].options, batched=False)
    with pytest.raises(ValueError, match="got a block with batched=False"):
        make_dynamic(model, points(1000), **LOOSE)


def test_no_data(classifier):
    with pytest.raises(ValueError, match="data: expected batches of inputs or"):
        make_dynamic(classifier(), [], **LOOSE)


def test_a_model_without_a_block(points):
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"block: the model contains no dise.NeuralODE; give the name .* \['0'\]"):
        make_dynamic(model, points(1000), **LOOSE)
    with pytest.raises(ValueError, match=r"block: expected one of \['0'\], got '1'"):
        make_dynamic(model, points(1000), block="1", **LOOSE)


def test_reports_survive_json():
    report = Report(Euler(), "a", 1.0, 20.0, 0.01, 0.02, 0.05, 100, {"a": 1.0, "b": math.inf}, ("note",))
    values = report.to_json()
    assert values["families"] == {"a": 1.0, "b": None}
    assert Report.of_json(values, Euler()) == report


def test_the_kind_of_policy_may_be_chosen_by_the_time_of_small_batches(classifier, points, monkeypatch):
    sizes, served = [], []

    def side_by_side(calls, inputs, **options):
        sizes.append({len(x) for x in inputs})
        served.append(set(calls))
        # one candidate for all takes less time than policies that need fewer evaluations
        return {name: 1.0 if name == "one candidate for all" else 2.0 for name in calls}

    monkeypatch.setattr(timing, "time_side_by_side", side_by_side)
    lines = []
    made = make_dynamic(classifier(), points(2000), batch_size=3, log=lines.append, **LOOSE)
    report = find_block(made).report
    assert sizes == [{3}, {3}]  # to choose the kind, and for the report
    assert "one candidate for all" in served[0]
    assert len(served[0]) > 2
    assert report.family == "one candidate for all"
    assert report.timing.batch == 3
    assert any("by mean milliseconds per batch of 3" in note for note in report.notes)
    assert str(find_block(made).integrator) in lines[-1]


def test_kinds_are_timed_with_settings_that_the_test_will_certify(classifier, points, monkeypatch):
    tempting = []

    def runs(model, block, family, batches, expected, risk):
        # the last setting of each family is the cheapest; 21 of the test's 1,400 samples would be lost, of at most 19
        loss = 0.015 if len(family.settings) > 1 and family.name != "one candidate for all" else 0.0
        for index, setting in enumerate(family.settings):
            last = index + 1 == len(family.settings)
            tempting.extend([setting] if last and loss else [])
            yield choice._SettingRun(setting, 10.0 - index, loss if last else 0.0)

    def side_by_side(calls, inputs, **options):
        policies = {name: call.args[2] for name, call in calls.items()}
        assert not any(policy is setting for policy in policies.values() for setting in tempting)
        return {name: 2.0 if policy in (Euler(1), Midpoint(1), RK4(1)) else 3.0 for name, policy in policies.items()}

    monkeypatch.setattr(choice, "_runs", runs)
    monkeypatch.setattr(timing, "time_side_by_side", side_by_side)
    made = make_dynamic(classifier(), points(2000), batch_size=3, **LOOSE)
    report = find_block(made).report
    assert len(tempting) > 2
    assert report.policy in (Euler(1), Midpoint(1), RK4(1))
    assert report.family == "one candidate for all"
    assert min(report.families, key=report.families.get) != "one candidate for all"


@pytest.mark.parametrize(
    ("losses", "safe", "likely"),
    [
        ([0.0, 0.0, 0.0], 2, 2),
        ([0.0, 0.01, 0.0], 2, 0),
        ([0.01, 0.0], 1, None),
        ([0.0, 0.03, 0.0], 0, 0),
        ([0.03], None, None),
    ],
)
def test_settings_count_up_to_the_first_that_fails(losses, safe, likely):
    settings = [RK4(9 - index) for index in range(len(losses))]
    runs = (choice._SettingRun(s, float(s.steps), loss) for s, loss in zip(settings, losses, strict=True))
    found = choice._estimate(runs, 0.02, lambda loss: loss < 0.005)
    assert found.setting == (None if safe is None else settings[safe])
    assert found.nfe == (math.inf if safe is None else settings[safe].steps)
    assert found.likely == (None if likely is None else settings[likely])


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_batch_size_is_a_whole_number(classifier, points, size):
    with pytest.raises(ValueError, match="batch_size: expected a whole number of at least 1"):
        make_dynamic(classifier(), points(2000), batch_size=size, **LOOSE)
