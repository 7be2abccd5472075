"""Exported policies, served by the example, give what the model gives."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

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
    Heun,
    NeuralODE,
    export_policy,
    make_dynamic,
)
from dise_experiments.mnist.model import odenet

SERVE = Path(__file__).parents[3] / "examples" / "serve.py"


@pytest.fixture(scope="module")
def served():
    """served(folder): the example's way of running an exported model."""
    spec = importlib.util.spec_from_file_location("serve", SERVE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Served


def cascade(model):
    rules = [Confidence(model[2], 4.0, measure="gap"), Confidence(model[2], 0.9)]
    return Cascade((Euler(1), Heun(2), RK4(3)), rules)


def damped(model):
    return Cascade((Euler(1), RKC1(2, 3), RK4(3)), cascade(model).accept)


def forecasts(model):
    draw = torch.Generator().manual_seed(2)
    rules = [Forecast(model[2], threshold, classes=3, channels=2) for threshold in (1.0, 4.0)]
    for rule in rules:
        rule.weight.add_(0.2 * torch.randn(rule.weight.shape, generator=draw))
    return Cascade((Euler(1), Heun(2), RK4(3)), rules)


def dynamic(model):
    selector = AdequacySelector(ConfidenceNetwork(model[2], 3, classes=3), candidates=3, dial=100)
    with torch.no_grad():
        h0 = model[0](torch.randn(200, 4))
        logits = selector.network(h0, model[1].first_stage(h0))
        selector.slope.copy_(1 / logits.std(0))  # so that each candidate is the best for some
        selector.offset.copy_(-(logits * selector.slope).mean(0))
    return Dynamic((Euler(1), Heun(2), RK4(3)), selector.eval())


@pytest.mark.parametrize("policy", [cascade, damped, forecasts, dynamic])
def test_an_exported_model_gives_the_same_for_batches_of_any_size(classifier, points, tmp_path, served, policy):
    model, x = classifier().eval(), torch.cat(points(100))
    torch.manual_seed(1)
    model[1].integrator = policy(model)
    with torch.no_grad(), model[1].recording() as records:
        expected = model(x)
    assert records[0].solution.choice.unique().tolist() == [0, 1, 2]
    export_policy(model, x[:7], tmp_path)
    serve = served(tmp_path)
    for size in (100, 33, 2, 1):
        got = torch.cat([serve(part) for part in x.split(size)])
        assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_an_odenet_with_a_span_of_its_own(tmp_path, served):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = odenet().eval(), torch.rand(6, 1, 28, 28)
    model.block.t0, model.block.t1 = 0.25, 1.5
    with torch.no_grad(), model.block.using(Euler(1)):
        logits = model(x)
        gaps = logits.topk(2, 1).values
        middle = float((gaps[:, 0] - gaps[:, 1]).median())
    model.block.integrator = Cascade((Euler(1), RK4(2)), Confidence(model.head, middle, measure="gap"))
    with torch.no_grad(), model.block.recording() as records:
        expected = model(x)
    assert records[0].solution.choice.unique().tolist() == [0, 1]
    export_policy(model, x, tmp_path)
    assert_close(served(tmp_path)(x), expected, rtol=1e-3, atol=1e-4)


def test_what_make_dynamic_makes_with_a_reference_of_fixed_steps(classifier, points, tmp_path, served):
    model = make_dynamic(classifier(), points(1000), epsilon=0.02, reference=RK4(4))
    x = torch.cat(points(50, seed=1))
    export_policy(model, x, tmp_path)
    with torch.no_grad():
        assert_close(served(tmp_path)(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_example_runs_from_the_command_line_without_dise(classifier, points, tmp_path):
    model, x = classifier().eval(), torch.cat(points(10))
    model[1].integrator = cascade(model)
    export_policy(model, x, tmp_path / "model")
    torch.save(x, tmp_path / "x.pt")
    # -I: an isolated interpreter sees no PYTHONPATH
    code = "import sys; sys.modules['dise'] = None; import runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [sys.executable, "-c", code, SERVE, tmp_path / "model", tmp_path / "x.pt", tmp_path / "y.pt"]
    subprocess.run(list(map(str, command)), check=True, timeout=300)
    with torch.no_grad():
        assert_close(torch.load(tmp_path / "y.pt"), model(x), rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "model" / "serve.json").read_text())["thresholds"] == [4.0, 0.9]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda head: RK4(), "integrator: expected a Cascade on Confidence or Forecast, or a Dynamic, got RK4"),
        (lambda head: Cascade((Euler(), RK4())), "integrator: expected a Cascade on Confidence"),
        (lambda head: Cascade((Euler(), Dopri5()), Confidence(head, 0.9)), r"reference=RK4\(4\)"),
        (lambda head: Dynamic((Euler(),), lambda h0, k1: h0), "a selector that is a module, for samples"),
        (
            lambda head: Dynamic((Euler(),), nn.Identity(), granularity="batch"),
            "a selector that is a module, for samples",
        ),
    ],
)
def test_policies_that_cannot_be_graphs(classifier, points, tmp_path, policy, message):
    model = classifier().eval()
    model[1].integrator = policy(model[2])
    with pytest.raises(ValueError, match=message):
        export_policy(model, points(5)[0], tmp_path)


def test_inputs_and_heads_that_do_not_do(classifier, points, tmp_path, decay):
    model = classifier().eval()
    model[1].integrator = cascade(model)
    with pytest.raises(ValueError, match="x: expected at least 2 inputs"):
        export_policy(model, points(1)[0], tmp_path)

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.last = NeuralODE(decay(), Euler()), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(self.block(x)) ** 2

    odd = Odd()
    odd.block.integrator = Cascade((Euler(), RK4()), Confidence(odd.last, 0.9))
    with pytest.raises(ValueError, match="head: the model's answer is not made of h"):
        export_policy(odd, torch.rand(3, 2), tmp_path)
