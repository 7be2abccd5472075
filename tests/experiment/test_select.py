import pytest
import torch

from dise import RK4, Dopri5, Dynamic, Euler, solve
from dise.experiment.config import ExperimentError, RunConfig
from dise.experiment.rundir import claim_run, load_model, read_json, save_weights
from dise.experiment.select import load_dynamic, select
from dise.select import CostSelector
from dise.tasks.mnist import task as mnist_task
from dise.tasks.mnist.model import resnet
from dise.tasks.mnist.task import MnistTask

TASK = MnistTask()
CANDIDATES = ["Euler", "RK4", "Dopri5"]


def selection(path):
    return read_json(path / "selection.json")


@pytest.fixture
def quick(monkeypatch):
    """Only the pooled network, which is fitted in no time."""
    monkeypatch.setattr(mnist_task.MnistTask, "selectors", {"pooled": MnistTask.selectors["pooled"]})


# ---- what a selection leaves


def test_files(finished):
    new = {file.name for file in finished["selected"].iterdir()} - {file.name for file in finished["trained"].iterdir()}
    assert new == {"selection.json", "selector-paper.safetensors", "selector-pooled.safetensors"}


def test_settings_and_fits(finished):
    there = selection(finished["selected"])
    assert (there["on"], there["alpha"], there["M"], there["samples"]) == ("held-out", 0.3, 1000, 40)
    assert list(there["candidates"]) == CANDIDATES
    assert list(there["selectors"]) == ["paper", "pooled"]
    for fit in there["selectors"].values():
        assert sum(fit["shares"]) == pytest.approx(1)
        assert fit["validation_loss"] <= fit["initial_loss"]
        assert fit["best_epoch"] < fit["epochs"]


@torch.no_grad()
def test_candidates_accuracy_and_nfe_are_those_of_running_them(finished, tiny):
    model = load_model(finished["selected"], finished["config"])
    ((x, y),) = TASK.selection_batches(tiny, on="held-out")
    for candidate in (Euler(), RK4(), Dopri5(rtol=1e-3, atol=1e-3)):
        solution = solve(model.block.f, model.stem(x), 0.0, 1.0, candidate)
        accuracy = (model.head(solution.y).argmax(1) == y).double().mean()
        there = selection(finished["selected"])["candidates"][str(candidate)]
        assert there["nfe"] == pytest.approx(solution.nfe.double().mean().item())
        assert there["accuracy"] == pytest.approx(accuracy.item())


@pytest.mark.parametrize("name", ["paper", "pooled"])
@torch.no_grad()
def test_a_saved_selector_routes_as_it_did_when_it_was_fitted(finished, tiny, name):
    model = load_model(finished["selected"], finished["config"])
    dynamic = load_dynamic(finished["selected"], name, TASK)
    ((x, _),) = TASK.selection_batches(tiny, on="held-out")
    solution = solve(model.block.f, model.stem(x), 0.0, 1.0, dynamic)
    shares = torch.bincount(solution.choice, minlength=3) / 40
    assert shares.tolist() == pytest.approx(selection(finished["selected"])["selectors"][name]["shares"])


def test_the_run_itself_is_left_alone(finished):
    for name in ("config.json", "model.safetensors", "training.json"):
        assert (finished["trained"] / name).read_bytes() == (finished["selected"] / name).read_bytes()


def test_a_selection_depends_on_the_runs_seed_alone(finished, stage, quick):
    path = stage("trained")
    torch.manual_seed(12345)
    select(path)
    name = "selector-pooled.safetensors"
    assert (path / name).read_bytes() == (finished["selected"] / name).read_bytes()


def test_settings_are_passed_on(stage, quick):
    result = select(stage("trained"), on="train", alpha=0.1, penalty=50)
    assert (result["on"], result["alpha"], result["M"], result["samples"]) == ("train", 0.1, 50, 40)


def test_collapse_is_told(stage, quick, monkeypatch):
    monkeypatch.setattr("dise.experiment.select.diagnose", lambda choice, costs: f"{len(choice)} of {len(costs)}")
    lines = []
    result = select(stage("trained"), log=lines.append)
    assert result["selectors"]["pooled"]["warning"] == "40 of 40"
    assert "warning: selector 'pooled': 40 of 40" in lines


# ---- again


@pytest.mark.parametrize("options", [{}, {"on": "held-out", "alpha": 0.3, "penalty": 1000}], ids=["default", "same"])
def test_a_selection_is_reused(stage, snapshot, options):
    path = stage("selected")
    before = snapshot(path)
    assert select(path, **options) == selection(path)
    assert snapshot(path) == before


@pytest.mark.parametrize("options", [{"alpha": 0.2}, {"penalty": 500}, {"on": "train"}])
def test_a_selection_with_other_settings_is_refused(stage, snapshot, options):
    path = stage("selected")
    before = snapshot(path)
    with pytest.raises(ExperimentError, match="move it away to fit another selection") as caught:
        select(path, **options)
    assert "\n" not in str(caught.value)
    assert snapshot(path) == before


def test_an_interrupted_selection_is_made_again(finished, stage, quick):
    path = stage("selected")
    (path / "selection.json").unlink()
    (path / "selector-pooled.safetensors").write_bytes(b"half")
    select(path)
    name = "selector-pooled.safetensors"
    assert (path / name).read_bytes() == (finished["selected"] / name).read_bytes()


# ---- errors


def test_no_run(tmp_path):
    with pytest.raises(ExperimentError, match="is no run directory"):
        select(tmp_path / "none")


def test_no_model(stage):
    path = stage("trained")
    (path / "model.safetensors").unlink()
    with pytest.raises(ExperimentError, match="has no trained model"):
        select(path)


def test_no_ode(tmp_path, tiny):
    claim_run(tmp_path, RunConfig.of("mnist", "sample", model="resnet"))
    save_weights(resnet(), tmp_path / "model.safetensors")
    with pytest.raises(ExperimentError, match="model 'resnet' has no ODE"):
        select(tmp_path)


def test_a_damaged_selection(stage):
    path = stage("selected")
    text = (path / "selection.json").read_text()
    (path / "selection.json").write_text(text[:30])
    with pytest.raises(ExperimentError, match="not JSON"):
        select(path)


def test_load_dynamic(finished):
    dynamic = load_dynamic(finished["selected"], "pooled", TASK)
    assert isinstance(dynamic, Dynamic)
    assert tuple(dynamic.candidates) == TASK.candidates
    assert not dynamic.selector.training


def test_a_selector_that_is_not_fitted(stage):
    path = stage("selected")
    (path / "selector-paper.safetensors").unlink()
    with pytest.raises(ExperimentError, match=r"has no selector 'paper' \(selector-paper.safetensors is missing\)"):
        load_dynamic(path, "paper", TASK)


def test_a_selector_of_another_network(stage):
    path = stage("selected")
    other = CostSelector(TASK.selectors["pooled"](2), candidates=2)
    save_weights(other, path / "selector-pooled.safetensors")
    with pytest.raises(ExperimentError, match="does not hold the weights of CostSelector"):
        load_dynamic(path, "pooled", TASK)
