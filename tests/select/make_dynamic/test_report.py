"""The report names the risk, has accuracy and milliseconds, and says where the policy is slower."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from dise import RK4, Cascade, Euler, NeuralODE, make_dynamic
from dise.select import OutputDeviation, Report, lost_accuracy
from dise.select.make_dynamic.report import Score
from dise.select.make_dynamic.timing import Timing, time_policy
from dise.select.model.inputs import Inputs


class Turn(nn.Module):
    def forward(self, t, y):
        return torch.tanh(y.flip(1)) - y


def made(**options):
    draw = torch.Generator().manual_seed(0)
    x, label = torch.randn(600, 2, generator=draw), torch.randint(2, (600,), generator=draw)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(NeuralODE(Turn(), RK4(8)), nn.Linear(2, 2))
    make_dynamic(model, list(zip(x.split(60), label.split(60), strict=True)), epsilon=0.1, **options)
    return model, x, label


def test_the_report_has_the_risk_the_accuracy_and_the_times():
    model, x, label = made(risk=lost_accuracy, settings=[RK4(1)])
    report = model[0].report
    assert report.risk_name == "lost_accuracy (the label is no longer predicted)"
    with torch.no_grad():
        accuracy = float((model(x).argmax(1) == label).double().mean())
        with model[0].using(RK4(8)):
            reference = float((model(x).argmax(1) == label).double().mean())
    assert report.score == Score("accuracy", pytest.approx(accuracy), pytest.approx(reference))
    assert (report.timing.batch, report.timing.single) == (60, None)
    assert min(report.timing.policy, report.timing.reference) > 0
    text = str(report)
    assert f"accuracy {accuracy:.4f}, {reference:.4f} with the reference" in text
    assert "milliseconds per batch of 60" in text
    assert "the risk is lost_accuracy" in text


def test_a_policy_that_chooses_is_timed_beside_the_best_single_candidate():
    model, x, _ = made(settings=[RK4(1)])
    options = {"reference": RK4(8), "single": RK4(1), "batches": Inputs.of(x).split(7)}
    assert time_policy(model, model[0], model[0].integrator, **options).candidate is None  # it is the policy itself
    model[0].integrator = Cascade((Euler(1), RK4(1)))
    timing = time_policy(model, model[0], model[0].integrator, **options)
    assert (timing.batch, timing.candidate) == (7, "RK4")
    assert timing.single > 0
    assert model[0].integrator.chooses


def test_nothing_is_timed_if_the_reference_stays():
    report = made(settings=[RK4(8)], reference=RK4(8))[0][0].report
    assert report.family == "reference"
    assert report.timing is None


def test_a_certified_setting_that_saves_nothing_is_not_called_uncertified():
    note = made(settings=[RK4(9), RK4(8)], reference=RK4(8))[0][0].report.notes[-1]
    assert "No certified setting is cheaper than the reference: RK4(steps=8) takes 32.00 evaluations" in note
    note = made(settings=[RK4(9), Euler(1)], reference=RK4(8), risk=OutputDeviation(1e-3))[0][0].report.notes[-1]
    assert "RK4(steps=9) takes 36.00 evaluations" in note
    note = made(settings=[Euler(1)], reference=RK4(8), risk=OutputDeviation(1e-3))[0][0].report.notes[-1]
    assert "Nothing was certified: Euler, the safest setting, lost" in note


@pytest.mark.parametrize(
    ("timing", "slower"),
    [
        (Timing(100, 1.0, 2.0), None),
        (Timing(100, 5.94, 4.05), "slower than the reference, on"),
        (Timing(100, 2.0, 4.0, "RK4", 1.0), "slower than RK4 for all samples, on"),
        (Timing(100, 5.0, 4.0, "RK4", 1.0), "slower than the reference and RK4 for all samples, on"),
        (Timing(100, 4.1, 4.0, "RK4", 4.0), None),  # alike
    ],
)
def test_a_policy_that_is_slower_is_called_so(timing, slower):
    text = str(timing)
    assert text.startswith(f"{timing.policy:.2f} milliseconds per batch of 100, {timing.reference:.2f} with the")
    assert ("At this batch size the policy is " + slower in text) if slower else "slower" not in text


def test_a_report_survives_json_with_its_parts():
    report = made(settings=[RK4(1)])[0][0].report
    report = replace(report, timing=Timing(60, 1.0, 2.0, "RK4", 1.5))
    assert Report.of_json(json.loads(json.dumps(report.to_json())), report.policy, report.reference) == report
    old = {name: x for name, x in report.to_json().items() if name not in ("risk_name", "score", "timing")}
    assert Report.of_json(old, report.policy).timing is None
