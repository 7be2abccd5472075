"""Exported policies, served by the example, give what the model gives."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import (
    RK4,
    RK38,
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
    Midpoint,
    Multistep,
    NeuralODE,
    PooledNetwork,
    StepDoubling,
    export_policy,
    make_dynamic,
    solve,
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
    return Cascade((Euler(1), Heun(1), RK4(1)), rules)


def damped(model):
    return Cascade((Euler(1), RKC1(1, 3), RK4(1)), cascade(model).accept)


def forecasts(model):
    draw = torch.Generator().manual_seed(2)
    rules = [Forecast(model[2], threshold, classes=3, channels=2) for threshold in (1.0, 4.0)]
    for rule in rules:
        rule.weight.add_(0.2 * torch.randn(rule.weight.shape, generator=draw))
    return Cascade((Euler(1), Heun(1), RK4(1)), rules)


def dynamic(model):
    selector = AdequacySelector(ConfidenceNetwork(model[2], 3, classes=3), candidates=3, dial=100)
    with torch.no_grad():
        h0 = model[0](torch.randn(200, 4))
        logits = selector.network(h0, model[1].first_stage(h0))
        selector.slope.copy_(1 / logits.std(0))  # so that each candidate is the best for some
        selector.offset.copy_(-(logits * selector.slope).mean(0))
    return Dynamic((Euler(1), Heun(1), RK4(1)), selector.eval())


@pytest.mark.long
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


METHODS = (Euler(3), Midpoint(2), Heun(3), RK38(1), RKC1(2, 3), StepDoubling(RK4(1)), Multistep.adams(4, 3))


@pytest.mark.long
def test_graphs_make_the_very_steps_of_the_solver(tanh_field, tmp_path):
    """Bit for bit, also where t0 + (t1 - t0) misses t1 by a rounding: that ends at -0.6700000000000004."""
    t0, t1, head = 3.36, -0.67, nn.Identity()
    assert t0 + (t1 - t0) * 3 / 3 != t1
    block = NeuralODE(tanh_field(3, scale=1.5, seed=1, dtype=torch.float64), Euler(), t0=t0, t1=t1)
    block.integrator = Cascade(METHODS, Confidence(head, 0.9))
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    export_policy(nn.Sequential(block, head).eval(), x[:2], tmp_path)
    start, *candidates = (
        torch.export.load(tmp_path / f"{name}.pt2").module()
        for name in ("start", *(f"candidate-{index}" for index in range(len(METHODS))))
    )
    with torch.no_grad():
        h0, k1 = start(x)
        for method, candidate in zip(METHODS, candidates, strict=True):
            assert torch.equal(candidate(h0, k1)[0], solve(block.f, x, t0, t1, method).y), method


def test_a_single_integrator_is_one_graph(tanh_field, tmp_path, served):
    """Without a head, and whatever the block's options for training."""
    method = StepDoubling(Heun(3))

    class Free(nn.Module):
        def __init__(self):
            super().__init__()
            field = tanh_field(3, scale=1.5, seed=1, dtype=torch.float64)
            self.block = NeuralODE(field, method, t0=3.36, t1=-0.67, gradient="checkpoint", compile=True)

        def forward(self, x):
            return self.block(2 * x).exp() - x

    model = Free().eval()
    x = torch.randn(33, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    export_policy(model, x, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.pt2", "serve.json"]
    assert model.block.options.compile is True
    serve = served(tmp_path)
    model.block.options = replace(model.block.options, compile=False)
    with torch.no_grad():
        for part in (x, x[:2], x[:1]):
            assert torch.equal(serve(part), model(part))


def test_a_certified_single_integrator(classifier, points, tmp_path, served):
    model = make_dynamic(classifier(), points(500), epsilon=0.02, settings=[RK4(4)])
    assert model[1].integrator == RK4(4)
    x = torch.cat(points(50, seed=1))
    export_policy(model, x, tmp_path)
    with torch.no_grad():
        assert torch.equal(served(tmp_path)(x), model(x))


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


@pytest.mark.long
def test_what_make_dynamic_makes_with_a_reference_of_fixed_steps(classifier, points, tmp_path, served):
    model = make_dynamic(classifier(), points(1000), epsilon=0.02, reference=RK4(4))
    x = torch.cat(points(50, seed=1))
    export_policy(model, x, tmp_path)
    with torch.no_grad():
        assert_close(served(tmp_path)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.long
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
        (lambda head: Dopri5(), "integrator: only methods with a fixed number of steps can be graphs, got Dopri5;"),
        (lambda head: Dynamic((Cascade((Euler(),)),), nn.Identity()), r"can be graphs, got Cascade\(Euler\);"),
        (lambda head: Cascade((Euler(), RK4())), "integrator: expected a Cascade on Confidence"),
        (lambda head: Cascade((Euler(), Dopri5()), Confidence(head, 0.9)), r"reference=RK4\(4\)"),
        (
            lambda head: Dynamic((Euler(),), lambda h0, k1: h0),
            "a Dynamic whose selector is a module and decides for samples",
        ),
        (
            lambda head: Dynamic((Euler(),), nn.Identity(), granularity="batch"),
            "a Dynamic whose selector is a module and decides for samples",
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

    own_times = nn.Sequential(NeuralODE(decay(), Euler(), t1=torch.ones(3)), nn.Linear(2, 2))
    own_times[0].integrator = Cascade((Euler(), RK4()), Confidence(own_times[1], 0.9))
    with pytest.raises(ValueError, match="model: expected a block whose samples share t0 and t1"):
        export_policy(own_times, torch.rand(3, 2), tmp_path)

    odd = Odd()
    odd.block.integrator = Cascade((Euler(), RK4()), Confidence(odd.last, 0.9))
    with pytest.raises(ValueError, match="head: the model's answer is not made of h"):
        export_policy(odd, torch.rand(3, 2), tmp_path)


class Turned(nn.Module):
    """(x, speed) → logits of a point that turns with the speed of its sample."""

    def __init__(self):
        super().__init__()
        self.block, self.head = NeuralODE(Turn(), Euler()), nn.Linear(2, 3)

    def forward(self, x, speed):
        return self.head(self.block(torch.tanh(x), sample_args=(speed,)))


class Turn(nn.Module):
    def forward(self, t, y, speed):
        return speed * torch.stack([-y[:, 1], y[:, 0]], 1)


def unused(file):
    """The calculations of a graph whose results no output needs."""
    graph = torch.export.load(file).graph
    calculations = [node for node in graph.nodes if str(node.target).startswith("aten.")]
    assert calculations
    return [node for node in calculations if not node.users and "assert" not in str(node.target)]


def turned_selector(head):
    network = PooledNetwork(2, 3, condition_channels=1)
    return Dynamic((Euler(1), Heun(2), RK4(3)), AdequacySelector(network, candidates=3, dial=100).eval())


@pytest.mark.parametrize(
    "policy",
    [
        lambda head: RK4(2),
        lambda head: Cascade((Euler(1), RK4(3)), Confidence(head, 0.5)),
        turned_selector,
    ],
    ids=["single", "cascade", "dynamic"],
)
def test_graphs_of_a_model_of_several_inputs_take_them_by_position(tmp_path, served, policy):
    torch.manual_seed(2)
    model, x, speed = Turned().eval(), torch.randn(60, 2), 3 * torch.rand(60, 1)
    model.block.integrator = policy(model.head)
    with torch.no_grad():
        expected = model(x, speed)
    export_policy(model, (x[:5], speed[:5]), tmp_path)
    for file in tmp_path.glob("*.pt2"):
        assert unused(file) == []
    serve = served(tmp_path)
    for size in (60, 7, 1):
        parts = zip(x.split(size), speed.split(size), strict=True)
        assert_close(torch.cat([serve(*part) for part in parts]), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="x: expected a tensor or a tuple, in the order of the model's forward, got a"):
        export_policy(model, {"x": x, "speed": speed}, tmp_path)


def test_a_block_that_is_given_spans_is_not_exported_with_those_of_its_own(tmp_path):
    class Spans(Turned):
        def forward(self, x, speed):
            return self.head(self.block(x, t1=0.5, sample_args=(speed,)))

    model = Spans().eval()
    model.block.integrator = Cascade((Euler(1), RK4(3)), Confidence(model.head, 0.5))
    with pytest.raises(ValueError, match=r"a block that is called with a state and sample_args alone, got \['t1'\]"):
        export_policy(model, (torch.randn(4, 2), torch.rand(4, 1)), tmp_path)


class FixedBatch(nn.Module):
    """dy/dt = −y, with `len`, which is a plain number while a graph is traced."""

    def forward(self, t, y):
        return -y * t.expand(len(y), 1)


def test_code_that_fixes_the_number_of_samples_is_named(tmp_path):
    block = NeuralODE(FixedBatch(), Euler(2)).eval()
    folder = tmp_path / "new"
    with pytest.raises(ValueError, match=r"model: its code fixes the number of samples .* take x.shape\[0\] there"):
        export_policy(block, torch.randn(3, 2), folder)
    assert not folder.exists()
