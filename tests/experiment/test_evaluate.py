import pytest
import torch

from dise import RK4, Dopri5, Euler, solve
from dise.experiment.config import ExperimentError, RunConfig
from dise.experiment.evaluate import evaluate
from dise.experiment.rundir import claim_run, load_model, read_json, save_weights
from dise.experiment.select import load_dynamic, select
from dise.tasks.mnist.model import resnet
from dise.tasks.mnist.task import MnistTask

TASK = MnistTask()
ALONE = {
    "Euler": Euler(),
    "RK4": RK4(),
    "Dopri5": Dopri5(rtol=1e-3, atol=1e-3),
    "Dopri5(first_step=span)": Dopri5(rtol=1e-3, atol=1e-3, first_step="span"),
}


@pytest.fixture(scope="session")
def rows(finished):
    return {row["policy"]: row for row in read_json(finished["evaluated"] / "metrics.json")["policies"]}


@pytest.fixture(scope="session")
def metrics(finished):
    return read_json(finished["evaluated"] / "metrics.json")


@pytest.fixture
def model(finished):
    return load_model(finished["evaluated"], finished["config"])


def run(model, x, integrator):
    with torch.no_grad():
        solution = solve(model.block.f, model.stem(x), 0.0, 1.0, integrator)
        return solution, model.head(solution.y)


def test_policies(rows):
    assert list(rows) == [
        *ALONE,
        "oracle",
        "DISE (paper)",
        "random, mix of paper",
        "DISE (pooled)",
        "random, mix of pooled",
    ]


def test_multiply_adds(metrics):
    f = 2 * 65 * 64 * 9 * 36
    paper = 4 * 64 * 64 * 9 * 36 + 64 * 32 + 32 * 3
    pooled = 4 * 64 * 32 + 32 * 3
    assert metrics["macs"] == {"f": f, "paper": paper, "pooled": pooled}
    rows = {row["policy"]: row for row in metrics["policies"]}
    assert rows["DISE (pooled)"]["selector_macs"] == pytest.approx(pooled / f)
    assert metrics["samples"] == 40


@pytest.mark.parametrize("name", ALONE)
def test_single_candidates(rows, model, tiny, name):
    ((x, y),) = TASK.test_batches(tiny)
    solution, logits = run(model, x, ALONE[name])
    assert rows[name]["accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert rows[name]["nfe"] == pytest.approx(solution.nfe.double().mean().item())


@torch.no_grad()
def test_nfe_of_a_batch_is_that_of_one_system(rows, model, tiny):
    ((x, _),) = TASK.test_batches(tiny)
    solution = solve(model.block.f, model.stem(x), 0.0, 1.0, ALONE["Dopri5"], batched=False)
    assert rows["Dopri5"]["nfe_batch"] == int(solution.nfe)
    assert (rows["Euler"]["nfe_batch"], rows["RK4"]["nfe_batch"]) == (1, 4)


def test_oracle_is_right_where_any_candidate_is(rows, model, tiny):
    ((x, y),) = TASK.test_batches(tiny)
    right = torch.stack([run(model, x, c)[1].argmax(1) == y for c in TASK.candidates], 1)
    nfe = torch.stack([run(model, x, c)[0].nfe for c in TASK.candidates], 1)
    assert rows["oracle"]["accuracy"] == pytest.approx(right.any(1).double().mean().item())
    # candidates are in the order of their NFE: the first that is right, or the first of all
    first = right.int().argmax(1)
    assert rows["oracle"]["nfe"] == pytest.approx(nfe[torch.arange(40), first].double().mean().item())


@pytest.mark.parametrize("name", ["paper", "pooled"])
def test_routing_and_random_routing_at_its_mix(finished, rows, model, tiny, name):
    ((x, y),) = TASK.test_batches(tiny)
    solution, logits = run(model, x, load_dynamic(finished["evaluated"], name, TASK))
    row = rows[f"DISE ({name})"]
    shares = torch.bincount(solution.choice, minlength=3).double() / 40
    assert list(row["shares"]) == ["Euler", "RK4", "Dopri5"]
    assert list(row["shares"].values()) == pytest.approx(shares.tolist())
    assert row["accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert row["nfe"] == pytest.approx(solution.nfe.double().mean().item())
    assert row["nfe_batch"] == solution.calls
    alone = [rows[str(candidate)] for candidate in TASK.candidates]
    for key in ("accuracy", "nfe"):
        expected = sum(share * one[key] for share, one in zip(shares.tolist(), alone, strict=True))
        assert rows[f"random, mix of {name}"][key] == pytest.approx(expected, rel=1e-5)


def test_paired_tests_are_against_dopri(rows):
    assert rows["Dopri5"]["mcnemar"] == {"only_first": 0, "only_second": 0, "difference": 0, "p": 1}
    for name in ("Euler", "RK4", "oracle", "DISE (paper)"):
        difference = rows[name]["accuracy"] - rows["Dopri5"]["accuracy"]
        assert rows[name]["mcnemar"]["difference"] == pytest.approx(difference, abs=1e-6)


def test_timing(finished):
    there = read_json(finished["evaluated"] / "timing.json")
    policies = [*ALONE, "DISE (paper)", "DISE (pooled)"]
    assert list(there["ode_ms"]) == list(there["model_ms"]) == ["torchdiffeq dopri5", *policies]
    assert list(there["parts_ms"]) == ["f", "paper", "pooled"]
    assert all(ms > 0 for part in ("ode_ms", "model_ms", "parts_ms") for ms in there[part].values())
    assert (there["batch"], there["batches"], there["threads"]) == (40, 1, 1)


# ---- again, and partly


def test_an_evaluation_is_reused(stage, snapshot):
    path = stage("evaluated")
    before = snapshot(path)
    result = evaluate(path)
    assert result == read_json(path / "metrics.json") | {"timing": read_json(path / "timing.json")}
    assert snapshot(path) == before


def test_evaluating_again_gives_the_same(finished, stage):
    path = stage("selected")
    result = evaluate(path, timing=False)
    assert result == read_json(finished["evaluated"] / "metrics.json") | {"timing": None}
    assert not (path / "timing.json").exists()


def test_metrics_of_another_selection_are_not_passed_off_as_this_ones(stage):
    # what `select` says when it is asked for other settings: move it away to fit another selection
    path = stage("evaluated")
    (path / "selection.json").unlink()
    select(path, penalty=30)
    with pytest.raises(ExperimentError, match=r"metrics\.json"):
        evaluate(path, timing=False)


# ---- no ODE, no selectors, no model


def test_a_resnet(tmp_path, tiny):
    claim_run(tmp_path, RunConfig.of("mnist", "sample", model="resnet"))
    model = resnet().eval()
    save_weights(model, tmp_path / "model.safetensors")
    ((x, y),) = TASK.test_batches(tiny)
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == y).double().mean().item()
    assert evaluate(tmp_path) == {
        "samples": 40,
        "policies": [{"policy": "no ODE", "accuracy": pytest.approx(accuracy)}],
        "timing": None,
    }


def test_no_run(tmp_path):
    with pytest.raises(ExperimentError, match="is no run directory"):
        evaluate(tmp_path)


def test_no_selectors(stage):
    path = stage("trained")
    with pytest.raises(ExperimentError, match=r"has no selector 'paper' .*`dise select` makes it"):
        evaluate(path)
    assert not (path / "metrics.json").exists()


def test_no_model(stage):
    path = stage("selected")
    (path / "model.safetensors").unlink()
    with pytest.raises(ExperimentError, match="has no trained model"):
        evaluate(path)
