"""The benchmarks of policies run, on a few of the samples that come with dise, and say what they should."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from dise.select.make_dynamic.families import FACTORS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    """script(name): a benchmark as a module; it finds the modules beside it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def run_on_sample(tmp_path):
    """run_on_sample(path, **settings): a committed run whose data are the sample's."""

    def copied(path, **settings):
        target = tmp_path / "run"
        target.mkdir()
        shutil.copy(ROOT / "results" / path / "model.safetensors", target)
        config = json.loads((ROOT / "results" / path / "config.json").read_text())
        config["settings"] |= {"data": "sample"} | settings
        (target / "config.json").write_text(json.dumps(config))
        return target

    return copied


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """call(module, *arguments): what it prints, and the JSON that it writes."""

    def run(module, *arguments):
        out = tmp_path / "out.json"
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments), "--out", str(out)])
        module.main()
        return capsys.readouterr().out, json.loads(out.read_text())

    return run


@pytest.mark.long
def test_pareto(script, run_on_sample, call, tmp_path):
    plot = tmp_path / "plot.png"
    module = script("pareto")
    run = run_on_sample("mnist-cpu/odenet-none-seed0")
    printed, found = call(module, run, "--images", 60, "--brief", "--plot", plot)
    rows = {row["policy"]: row for row in found["rows"]}
    assert {"Dopri5 1e-03", "Euler", "Midpoint", "RK4", "oracle", "random, mix of the best", module.LABELLED} <= set(
        rows
    )
    assert rows["Euler"]["nfe"] == 1
    assert rows["RK4"]["nfe"] == 4
    assert rows["Dopri5 1e-03"]["differs"] == 0
    assert rows["oracle"]["accuracy"] >= rows["Euler"]["accuracy"]
    assert plot.stat().st_size > 0
    assert "against DOPRI, points" in printed
    # rows of an earlier run are taken as they are
    rows["Euler"]["accuracy"] = 0.125
    (tmp_path / "rows.json").write_text(json.dumps(found))
    again = call(module, run, "--images", 60, "--brief", "--rows", tmp_path / "rows.json")[1]
    assert again["rows"][1]["policy"] == "Euler"
    assert again["rows"][1]["accuracy"] == 0.125


@pytest.mark.long
def test_paretos_other_policies(script, run_on_sample):
    """Every family, the paper's selector and DOPRI's tolerances are drawn."""
    module = script("pareto")
    trained = module.load(run_on_sample("mnist-cpu/odenet-none-seed0"), None, 240)
    found = [(group, name) for group, name, _ in module.policies(trained, brief=False)]
    groups = {group for group, _ in found}
    assert {"single candidates", "the paper's selector", "DOPRI, first step the span"} <= groups
    assert {"cascade Euler → Dopri5", "forecast Euler → Dopri5", "selector on the head's confidence"} <= groups
    assert {"embedded error of HeunEuler", "embedded error of Bosh3", "selector on the state's channels"} <= groups
    dopri = [name for group, name in found if group == "DOPRI, heuristic first step"]
    assert sorted(dopri) == [f"Dopri5 1e-0{i}" for i in range(1, 7)]


def test_pareto_takes_the_cheapest_cascade_before_the_first_that_loses(script, run_on_sample, monkeypatch):
    module = script("pareto")
    trained = module.load(run_on_sample("mnist-cpu/odenet-none-seed0"), None, 40)
    bounds = iter([0.0, 0.0005, 0.002, 0.0])
    monkeypatch.setattr(module, "loss_bound", lambda reference, policy: next(bounds))
    second = module.not_inferior(trained).accept[0].threshold
    assert next(bounds) == 0.0  # nothing was tested after the first that failed
    monkeypatch.setattr(module, "loss_bound", lambda reference, policy: 0.0)
    last = module.not_inferior(trained).accept[0].threshold
    assert second / last == pytest.approx(FACTORS[1] / FACTORS[-1])


def test_resplits_of_losses_that_can_be_counted(script):
    """A setting of no loss at 4 evaluations, one of a loss in a hundred at 2, one of certain loss at 1."""
    losses = torch.zeros(3, 1000)
    losses[1, ::100] = 1
    losses[2] = 1
    nfe = torch.tensor([4.0, 2.0, 1.0])[:, None].expand(3, 1000)
    module = script("guarantee")
    options = {"calibration": 500, "splits": 20, "delta": 0.05, "full": 20.0, "p_value": module.exact_binomial}
    strict = module.resplit(losses, nfe, epsilon=0.006, **options)
    assert (strict["violations"], strict["NFE"]) == (0.0, 4.0)  # 500 without a loss are enough: 0.994^500 = 0.049
    loose = module.resplit(losses, nfe, epsilon=0.1, **options)
    assert (loose["NFE"], loose["NFE with hindsight"], loose["excess"]) == (2.0, 2.0, 0.0)
    assert loose["mean risk"] == pytest.approx(0.01, abs=0.005)
    impossible = module.resplit(losses[2:], nfe[2:], epsilon=0.1, **options)
    assert (impossible["NFE"], impossible["NFE with hindsight"]) == (20.0, 20.0)


def test_guarantee(script, run_on_sample, call):
    run = run_on_sample("mnist-cpu/odenet-error-seed0")
    arguments = ("--images", 60, "--splits", 5, "--epsilon", 0.1)
    printed, found = call(script("guarantee"), run, *arguments)
    assert (found["images"], found["splits"]) == (120, 5)
    assert len(found["settings"]) == 18
    assert [row["calibration"] for row in found["rows"]] == [30, 40, 60] * 2
    assert "5 splits of 120 images" in printed


def test_physionet_policy(script, run_on_sample, call):
    run = run_on_sample("physionet-cpu/z_end-error-seed0", held_out=80)
    printed, found = call(script("physionet_policy"), run, "--epsilon", 0.1)
    (result,) = found["runs"]
    assert result["report"]["epsilon"] == 0.1
    for part in ("test", "set b"):
        got = result[part]
        assert got["nfe"] <= got["reference_nfe"]
        assert got["interval"][0] <= got["difference"] <= got["interval"][1]
        assert 0 <= got["moved"] <= 1
    assert "95 %, paired" in printed


@pytest.mark.long
def test_shift(script, run_on_sample, call):
    run = run_on_sample("mnist-cpu/odenet-none-seed0")
    printed, found = call(script("shift"), run, "--images", 40, "--held-out", 60, "--epsilon", 0.1)
    assert [row["angle"] for row in found["rows"]] == [0, 10, 20, 30, 45, 60, 90]
    assert found["rows"][0]["accuracy of DOPRI"] > 0.9
    assert found["rows"][-1]["accuracy of DOPRI"] < 0.5
    assert "rotated" in printed


def test_a_quarter_turn_is_torchs(script):
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    turned = script("shift").rotated(x, 90)
    torch.testing.assert_close(turned, torch.rot90(x, 1, (2, 3)), rtol=0, atol=1e-4)


def test_circles_policy(script, call, tmp_path):
    source = ROOT / "results" / "circles-cpu" / "flow-error-seed0"
    run = tmp_path / "run"
    run.mkdir()
    for name in ("model.safetensors", "metrics.json"):
        shutil.copy(source / name, run)
    config = json.loads((source / "config.json").read_text())
    config["settings"]["test_sets"] = 2
    (run / "config.json").write_text(json.dumps(config))
    module = script("circles_policy")
    module.CANDIDATES = (module.dise.RK4(5), module.dise.Euler(1), module.CANDIDATES[-1])
    _, found = call(module, run, "--sets", 6)
    (row,) = found["runs"]
    assert row["policy"] == "RK4(steps=5)"
    assert row["test"]["nfe"] == 16 * 20
    assert abs(row["test"]["difference"]) <= 0.01
    assert row["large test"]["sets"] == 2
    assert row["DISE"]["nfe"] == pytest.approx(348.4, abs=0.1)  # as in the run's report


def test_the_cheapest_is_taken_whose_sixteen_sets_stay_within_the_bound(script):
    choose = script("circles_policy").choose
    noise = torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()
    off = torch.cat([0.005 + 0.02 * noise, 0.005 + 0.004 * noise, 0 * noise], 1)
    nfe = torch.tensor([10.0, 20.0, 100.0]).expand(400, 3)
    assert choose(off, nfe, bound=0.01) == 1  # the first varies too much from set to set
    assert choose(off, nfe, bound=0.1) == 0
    assert choose(off, nfe, bound=0.001) == 2
    assert choose(off + 1, nfe, bound=0.001) == 2  # none: the last one, the reference


def test_pareto_of_the_best_alone(script, run_on_sample, call):
    _, found = call(script("pareto"), run_on_sample("mnist-cpu/odenet-none-seed0"), "--images", 40, "--best")
    assert [row["policy"] for row in found["rows"]] == ["Dopri5 1e-03"]  # too few images to certify anything
