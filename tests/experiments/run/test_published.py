"""The paper's selector as published: fitted, evaluated and reported in a folder of its own."""

import pytest
import torch
from typer.testing import CliRunner

from dise import RK4, Dopri5, Euler, solve
from dise.select import Costs, run_candidates
from dise_experiments import cli
from dise_experiments.circles.model import hypernetwork_flow
from dise_experiments.circles.points import FreshBatches, sets
from dise_experiments.circles.presets import PRESETS, Preset
from dise_experiments.circles.published import PublishedCircles, mean_nll, training_sets
from dise_experiments.circles.task import CirclesTask
from dise_experiments.common.task import AsPublished
from dise_experiments.mnist.published import PublishedMnist
from dise_experiments.physionet.published import PublishedPhysionet
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.evaluate import evaluate_run
from dise_experiments.run.published import find_beta
from dise_experiments.run.report import read_run
from dise_experiments.run.rundir import claim_run, load_model, read_json, save_weights, write_json
from dise_experiments.run.select import load_dynamic, select_as_published, select_run

SMALL = Preset(epochs=2, iterations=2, batch_size=70, selection_sets=4, test_sets=2)
ONE = AsPublished()


# ---- names


@pytest.mark.parametrize(
    ("about", "folder", "label"),
    [
        (ONE, "published", "as published"),
        (AsPublished(50, 5), "published-euler50-rk4x5", "as published, Euler × 50, RK4 × 5"),
        (AsPublished(limit=2000), "published-limit2000", "as published, 2,000 training samples"),
    ],
)
def test_folders_and_labels_tell_what_the_paper_leaves_open(about, folder, label):
    assert (about.folder, about.label) == (folder, label)


# ---- candidates and costs


@pytest.mark.parametrize("kind", [PublishedMnist, PublishedPhysionet])
def test_three_candidates_and_eq_4(kind):
    task = kind(AsPublished(2, 3))
    assert task.candidates == (Euler(2), RK4(3), task.reference)
    assert {spec.equation for spec in task.selectors.values()} == {4}
    assert all(spec.candidates is None and spec.tolerance is None for spec in task.selectors.values())
    assert task.default_selector in task.selectors


def test_both_dropouts_are_published():
    task = PublishedPhysionet(ONE)
    networks = [spec.network(None, 3) for spec in task.selectors.values()]
    assert [network.layers[-2].p for network in networks] == [0, 0.25]


def test_eq_5_as_printed():
    """c = (Δ·Γ)^α where Γ ≤ β, M^α elsewhere: Γ is the likelihood that a candidate reports, without a lower limit."""
    task = PublishedCircles(ONE, seed=0, beta=0.9)
    log_p = -torch.tensor([[[0.8, 1.0], [0.2, 0.4], [0.85, 0.85]], [[5.0, 5.0], [0.9, 0.9], [0.0, 0.0]]])
    nfe = torch.tensor([[1, 4, 100], [1, 4, 100]])
    rule = task.rule(None, None, 5)
    error = rule.error(log_p, torch.zeros(2, 2))
    # (Δ·Γ)^α, whether Γ is truly the model's or not
    expected = [[0.9**0.03, 1.2**0.03, 85**0.03], [1000**0.03, 3.6**0.03, 0.0]]
    cost = rule(nfe, error).tolist()
    assert cost[0] == pytest.approx(expected[0])
    assert cost[1][:2] == pytest.approx(expected[1][:2])
    assert cost[1][2] < 0.6  # towards 0, as Γ goes to 0


def test_costs_are_collected_on_all_training_points():
    points = training_sets(SMALL, 3)
    assert points.shape == (2 * 2 * 2, 32, 2)  # of the 70 points of an iteration the whole sets
    batch = next(iter(FreshBatches(SMALL, 3, 1)))[0]
    assert torch.equal(points[4:6].reshape(-1, 2), batch[:64])
    task = PublishedCircles(ONE, seed=3, beta=0.9)
    x = torch.cat([x for x, _ in task.selection_batches(hypernetwork_flow(), SMALL, on="train", unit="set")])
    assert torch.equal(x, points)
    some = PublishedCircles(AsPublished(limit=3), seed=3, beta=0.9)
    x = torch.cat([x for x, _ in some.selection_batches(hypernetwork_flow(), SMALL, on="train", unit="set")])
    assert torch.equal(x, points[:3])


def test_beta_is_the_mean_of_what_dopri_reports(linear):
    x = sets("circles", 4, "here")
    outcomes = run_candidates(linear, [((x,), x[..., 0])], [CirclesTask.reference])
    rule = PublishedCircles(ONE, seed=0, beta=1.0).rule(None, None, 5)
    expected = Costs.of(outcomes, rule).error.mean().item()
    assert mean_nll(CirclesTask(), linear, x.split(2)) == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def linear():
    """An untrained flow."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hypernetwork_flow()


# ---- a run on MNIST


def test_it_is_fitted_to_the_training_images(stage, tiny):
    path = stage("trained")
    result = select_as_published(path, ONE)
    assert (result["on"], result["alpha"], result["M"], result["beta"]) == ("train", 0.3, 1000, None)
    assert result["units"]["sample, Eq. 4"]["samples"] == len(tiny.train) == 64
    assert list(result["units"]["sample, Eq. 4"]["candidates"]) == ["Euler", "RK4", "Dopri5"]
    assert not (path / "selection.json").exists()
    assert read_json(path / "published" / "selection.json") == result
    assert select_as_published(path, ONE) == result


def test_steps_and_limits_are_other_selections(stage):
    path = stage("trained")
    few = select_as_published(path, AsPublished(2, 3, 40))
    assert few["units"]["sample, Eq. 4"]["samples"] == 40
    assert list(few["units"]["sample, Eq. 4"]["candidates"])[:2] == ["Euler(steps=2)", "RK4(steps=3)"]
    assert (path / "published-euler2-rk4x3-limit40").is_dir()
    assert not (path / "published").exists()


def test_other_settings_are_refused(stage):
    path = stage("trained")
    select_as_published(path, ONE)
    with pytest.raises(ExperimentError, match=r"fitted with {'M': 1000.0}"):
        select_as_published(path, ONE, penalty=50)


def test_rows_stand_beside_those_of_the_runs_own_selectors(stage, tiny):
    path = stage("evaluated")
    before = read_json(path / "metrics.json")
    select_as_published(path, ONE)
    evaluate_run(path, published=ONE)
    assert read_json(path / "metrics.json") == before
    names = [row["policy"] for row in read_run(path).policies("DISE")]
    assert names == ["DISE (paper)", "DISE (pooled)", "DISE (confidence)", "DISE (as published)"]
    policies = [row["policy"] for row in read_run(path).policies()]
    assert len(set(policies)) == len(policies)
    row = read_run(path).policies("DISE (as published)")[0]
    config = RunConfig.model_validate(read_json(path / "config.json"))
    model = load_model(path, config)
    dynamic = load_dynamic(path / "published", "as published", PublishedMnist(ONE), model)
    x = tiny.test.images[:, None].float() / 255 if tiny.test.images.ndim == 3 else tiny.test.images
    with torch.no_grad():
        nfe = solve(model.block.f, model.stem(x), 0.0, 1.0, dynamic).nfe
    assert row["nfe"] == pytest.approx(nfe.double().mean().item())


@pytest.mark.long
def test_a_run_with_the_published_selector_alone_has_a_report(stage):
    path = stage("trained")
    with pytest.raises(ExperimentError, match="has no published selection"):
        evaluate_run(path, published=ONE)
    select_as_published(path, ONE)
    evaluate_run(path, published=ONE)
    assert [row["policy"] for row in read_run(path).policies("DISE")] == ["DISE (as published)"]
    result = CliRunner().invoke(cli.app, ["report", str(path)])
    assert result.exit_code == 0, result.output
    assert "as published" in result.output


def test_a_stored_selection_of_other_selectors_is_told(stage):
    path = stage("selected")
    stored = read_json(path / "selection.json")
    stored["selectors"]["old"] = stored["selectors"].pop("paper")
    write_json(path / "selection.json", stored)
    with pytest.raises(ExperimentError, match=r"is of selectors .*old, and lacks paper; move it away"):
        select_run(path)


def test_eq_4_has_no_beta(stage):
    with pytest.raises(ExperimentError, match=r"beta: .* omit it"):
        select_as_published(stage("trained"), ONE, beta=0.9)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_beta_is_positive(flows, beta):
    with pytest.raises(ExperimentError, match="beta, resolution: expected 0 <"):
        select_as_published(flows["none"], ONE, beta=beta)


def test_the_baselines_have_no_published_selector(tmp_path):
    config = RunConfig.of("mnist", "sample", model="rknet")
    claim_run(tmp_path / "run", config)
    save_weights(config.found[0].models["rknet"](), tmp_path / "run" / "model.safetensors")
    with pytest.raises(ExperimentError, match="the published selector is the ODE-Net's, got 'rknet'"):
        select_as_published(tmp_path / "run", ONE)


def test_its_options_need_it():
    result = CliRunner().invoke(cli.app, ["select", "nowhere", "--rk4-steps", "5"])
    assert result.exit_code != 0
    assert "options of --selector published" in str(result.exception)


# ---- β


@pytest.fixture
def flows(tmp_path, monkeypatch, linear):
    """Runs of an untrained flow, with and without the error regularizer, by regularizer."""
    monkeypatch.setitem(PRESETS, "sample", SMALL)
    paths = {}
    for reg in ("none", "error"):
        config = RunConfig.of("circles", "sample", reg=reg)
        paths[reg] = config.directory(tmp_path)
        claim_run(paths[reg], config)
        save_weights(linear, paths[reg] / "model.safetensors")
    return paths


def test_beta_is_of_the_flow_with_the_error_regularizer(flows, linear):
    expected = mean_nll(CirclesTask(), linear, [training_sets(SMALL, 0)])
    for path in flows.values():
        beta, source = find_beta(path, RunConfig.model_validate(read_json(path / "config.json")), ONE)
        assert (beta, source) == (pytest.approx(expected, rel=1e-5), "flow-error-seed0")
    (flows["error"] / "model.safetensors").unlink()
    with pytest.raises(ExperimentError, match="or give --beta"):
        select_as_published(flows["none"], ONE)


def test_a_flow_from_selection_to_metrics(flows):
    about = AsPublished(5, 2)
    result = select_as_published(flows["none"], about, beta=3.0)
    assert (result["on"], result["beta"], result["beta_of"], result["M"]) == ("train", 3.0, None, 1000)
    assert result["units"]["set, Eq. 5"]["samples"] == 8
    metrics = evaluate_run(flows["none"], published=about)
    policies = [row["policy"] for row in metrics["policies"]]
    assert policies[:3] == ["Euler(steps=5)", "RK4(steps=2)", str(Dopri5(rtol=1e-5, atol=1e-5))]
    assert f"DISE ({about.label})" in policies
    assert metrics["selection"]["beta"] == 3.0
    with pytest.raises(ExperimentError, match="beta"):
        select_as_published(flows["none"], about, beta=2.0)
