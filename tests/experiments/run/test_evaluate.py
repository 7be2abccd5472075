import pytest
import torch

from dise_experiments.mnist.model import resnet, rknet
from dise_experiments.mnist.task import MnistTask
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.evaluate import evaluate_run
from dise_experiments.run.rundir import claim_run, load_model, read_json, save_weights
from dise_experiments.run.select import load_dynamic, select_run

TASK = MnistTask()
ALONE = [str(integrator) for integrator in (*TASK.candidates, *TASK.baselines)]
# multiply–adds of an image
F = 2 * 65 * 64 * 9 * 36
PAPER = 4 * 64 * 64 * 9 * 36 + 64 * 32 + 32 * 3
MEMBERS = 6
POOLED = MEMBERS * (4 * 64 * 32 + 32 * 3)
CONFIDENCE = 64 * 10 + MEMBERS * (4 * 16 + 16 * 3)  # the head is evaluated once
MACS = {"paper": PAPER, "pooled": POOLED, "confidence": CONFIDENCE}


@pytest.fixture(scope="session")
def metrics(finished):
    return read_json(finished["evaluated"] / "metrics.json")


# ---- what an evaluation leaves


def test_files(finished):
    names = [{file.name for file in finished[stage].iterdir()} for stage in ("selected", "evaluated")]
    assert names[1] - names[0] == {"metrics.json", "timing.json", "samples.json", "chosen.png"}


def test_what_the_metrics_are_of(metrics):
    assert metrics["selection"] == {"on": "held-out", "alpha": 0.3, "M": None}
    assert metrics["samples"] == 40


def test_multiply_adds(metrics):
    assert metrics["macs"] == {"sample": {"f": F} | MACS}
    rows = {row["policy"]: row for row in metrics["policies"]}
    for name, macs in MACS.items():
        assert rows[f"DISE ({name})"]["selector_macs"] == pytest.approx(macs / F)


def test_the_rest_is_what_the_task_measures(finished, tiny, metrics):
    path = finished["evaluated"]
    model = load_model(path, finished["config"])
    dynamics = {name: load_dynamic(path, name, TASK, model) for name in MACS}
    measured = TASK.metrics(model, dynamics, {name: macs / F for name, macs in MACS.items()}, tiny)
    assert {name: metrics[name] for name in measured} == measured
    assert set(metrics) - set(measured) == {"selection", "macs"}


@torch.no_grad()
def test_wrong_images_are_the_trained_models(finished, tiny, metrics):
    model = load_model(finished["evaluated"], finished["config"])
    ((x, labels),) = TASK._test_batches(tiny)
    assert metrics["wrong"] == (model(x).argmax(1) != labels).nonzero().flatten().tolist()
    (own,) = [row for row in metrics["policies"] if row["policy"] == "Dopri5"]
    assert own["accuracy"] == pytest.approx(1 - len(metrics["wrong"]) / 40)


def test_timing(finished):
    there = read_json(finished["evaluated"] / "timing.json")
    policies = [*ALONE, *(f"DISE ({name})" for name in MACS)]
    assert list(there["ode_ms"]) == list(there["model_ms"]) == ["torchdiffeq dopri5", *policies]
    assert list(there["parts_ms"]) == ["f", *MACS]
    assert all(ms > 0 for part in ("ode_ms", "model_ms", "parts_ms") for ms in there[part].values())
    assert (there["batch"], there["batches"], there["threads"]) == (40, 1, 1)


# ---- again, and partly


def test_an_evaluation_is_reused(stage, snapshot):
    path = stage("evaluated")
    before = snapshot(path)
    result = evaluate_run(path)
    assert result == read_json(path / "metrics.json") | {"timing": read_json(path / "timing.json")}
    assert snapshot(path) == before


def test_evaluating_again_gives_the_same(finished, stage):
    path = stage("selected")
    result = evaluate_run(path, timing=False)
    assert result == read_json(finished["evaluated"] / "metrics.json") | {"timing": None}
    assert not (path / "timing.json").exists()


def test_metrics_of_another_selection_are_not_passed_off_as_this_ones(stage):
    # what `select` says when it is asked for other settings: move it away to fit another selection
    path = stage("evaluated")
    (path / "selection.json").unlink()
    select_run(path, penalty=30)
    with pytest.raises(ExperimentError, match=r"metrics\.json .*'M': None.*'M': 30.*move") as caught:
        evaluate_run(path, timing=False)
    assert "\n" not in str(caught.value)


# ---- no ODE, no selectors, no model


def test_a_resnet(tmp_path, tiny):
    claim_run(tmp_path, RunConfig.of("mnist", "sample", model="resnet"))
    model = resnet().eval()
    save_weights(model, tmp_path / "model.safetensors")
    ((x, y),) = TASK._test_batches(tiny)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    assert evaluate_run(tmp_path) == {
        "samples": 40,
        "wrong": (~right).nonzero().flatten().tolist(),
        "policies": [{"policy": "no ODE", "accuracy": pytest.approx(right.double().mean().item())}],
        "timing": None,
    }
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "metrics.json", "model.safetensors"]


@pytest.mark.long
def test_an_rknets_wrong_images_are_those_of_rk4(tmp_path, tiny):
    claim_run(tmp_path, RunConfig.of("mnist", "sample", model="rknet"))
    torch.manual_seed(0)
    model = rknet().eval()
    save_weights(model, tmp_path / "model.safetensors")
    select_run(tmp_path, penalty=1000)
    result = evaluate_run(tmp_path, timing=False)
    ((x, labels),) = TASK._test_batches(tiny)
    with torch.no_grad():
        assert result["wrong"] == (model(x).argmax(1) != labels).nonzero().flatten().tolist()


def test_no_run(tmp_path):
    with pytest.raises(ExperimentError, match="is not a run directory"):
        evaluate_run(tmp_path)


def test_no_selectors(stage):
    path = stage("selected")
    (path / "selector-paper.safetensors").unlink()
    with pytest.raises(ExperimentError, match=r"has no selector 'paper' .*`dise select` fits it"):
        evaluate_run(path)
    assert not (path / "metrics.json").exists()


@pytest.mark.parametrize("name", ["selected", "evaluated"])
def test_selectors_without_their_selection(stage, name):
    path = stage(name)
    (path / "selection.json").unlink()
    with pytest.raises(ExperimentError, match=r"has no selection \(selection.json is missing\); `dise select` fits it"):
        evaluate_run(path)


def test_no_model(stage):
    path = stage("selected")
    (path / "model.safetensors").unlink()
    with pytest.raises(ExperimentError, match="has no trained model"):
        evaluate_run(path)
