"""Two circles through the command line: settings that are changed, and one small run from end to end."""

import json
import re
import shutil
from functools import partial

import lightning  # noqa: F401  here, or its log would keep writing to the stderr of the test that imported it
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dise import RK4, Dopri5, Midpoint
from dise.flow import TransportCost
from dise.select import choose_penalty
from dise_experiments import cli
from dise_experiments.circles import evaluate, figure
from dise_experiments.circles import task as circles_task
from dise_experiments.circles.presets import PRESETS, Preset
from dise_experiments.circles.task import CirclesTask
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.rundir import claim_run, load_model, open_run

TARGETS = "circles, moons, eight-gaussians, pinwheel, checkerboard"
SETTINGS = "target, epochs, iterations, batch_size, learning_rate, selection_sets, test_sets"


def config(*changes, reg="none", preset="cpu", **options):
    return RunConfig.of("circles", preset, reg=reg, changes=changes, **options)


# ---- --set NAME=VALUE


def test_without_changes_settings_are_the_presets():
    assert config().settings == PRESETS["cpu"].model_dump()
    assert config().name == "flow-none-seed0"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["target=moons"], {"target": "moons"}),
        (["epochs=3"], {"epochs": 3}),
        (["learning_rate=1e-2"], {"learning_rate": 0.01}),
        (["learning_rate=1"], {"learning_rate": 1.0}),
        (["batch_size= 64"], {"batch_size": 64}),
        (["epochs=3", "iterations=7", "target=pinwheel"], {"epochs": 3, "iterations": 7, "target": "pinwheel"}),
        (["epochs=3", "epochs=4"], {"epochs": 4}),
        (["target=moons", "target=circles"], {}),
    ],
)
def test_changed_settings(changes, expected):
    run = config(*changes)
    assert run.settings == PRESETS["cpu"].model_dump() | expected
    assert {name: type(value) for name, value in run.settings.items()} == {
        name: type(value) for name, value in PRESETS["cpu"].model_dump().items()
    }
    task, settings = run.found
    assert isinstance(task, CirclesTask)
    assert settings == Preset(**run.settings)


def test_the_preset_itself_stays_as_it_is():
    before = PRESETS["cpu"].model_dump()
    config("epochs=3")
    assert PRESETS["cpu"].model_dump() == before


@pytest.mark.parametrize(
    ("changes", "options", "name"),
    [
        (["target=moons"], {}, "flow-none-target=moons-seed0"),
        (["learning_rate=1e-2"], {"reg": "error", "seed": 2}, "flow-error-learning_rate=0.01-seed2"),
        (["target=moons"], {"reg": "l1", "weight": 0.5}, "flow-l1-0.5-target=moons-seed0"),
        # in the order of the settings, whatever was said first
        (["epochs=3", "target=moons"], {}, "flow-none-target=moons-epochs=3-seed0"),
        (["target=moons", "epochs=3"], {}, "flow-none-target=moons-epochs=3-seed0"),
        # no change at all
        (["target=circles", "epochs=10", "learning_rate=0.001"], {}, "flow-none-seed0"),
    ],
)
def test_names_say_what_was_changed(tmp_path, changes, options, name):
    run = config(*changes, **options)
    assert run.name == name
    assert run.directory(tmp_path) == tmp_path / "circles" / "cpu" / name


def test_every_setting_makes_a_name_of_its_own():
    changes = ("target=moons", "epochs=2", "iterations=2", "batch_size=2", "learning_rate=2", "test_sets=2")
    names = {config(change).name for change in changes} | {config().name, config("selection_sets=5").name}
    assert len(names) == 8


def test_a_changed_run_is_read_as_it_was_made(tmp_path):
    run = config("target=moons", "learning_rate=0.0003", reg="kinetic", seed=1)
    path = run.directory(tmp_path)
    claim_run(path, run)
    again = open_run(path)
    assert again == run
    assert again.name == run.name
    assert again.found[1].target == "moons"
    claim_run(path, run)  # it may go on
    with pytest.raises(ExperimentError, match="target: found moons, expected circles"):
        claim_run(path, config("learning_rate=0.0003", reg="kinetic", seed=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("target=foo", f"set: target: there is no 'foo'; choose one of {TARGETS}"),
        ("target=", f"set: target: there is no ''; choose one of {TARGETS}"),
        ("epochs=abc", "set: epochs: Input should be a valid integer"),
        ("epochs=1.5", "set: epochs: Input should be a valid integer"),
        ("epochs=0", "set: epochs: Input should be greater than or equal to 1"),
        ("learning_rate=-1", "set: learning_rate: Input should be greater than 0"),
        ("learning_rate=inf", "set: learning_rate: Input should be a finite number"),
        ("selection_sets=3", "set: selection_sets: Input should be greater than or equal to 4"),
        ("foo=1", f"set: expected NAME=VALUE with a NAME of {SETTINGS}; got 'foo=1'"),
        ("epochs", f"set: expected NAME=VALUE with a NAME of {SETTINGS}; got 'epochs'"),
        ("=3", f"set: expected NAME=VALUE with a NAME of {SETTINGS}; got '="),
        ("", f"set: expected NAME=VALUE with a NAME of {SETTINGS}; got ''"),
        ("model_config=1", "set: expected NAME=VALUE with a NAME of"),
    ],
)
def test_wrong_changes(change, message):
    with pytest.raises(ExperimentError, match=re.escape(message)) as caught:
        config(change)
    assert "\n" not in str(caught.value)


def test_all_that_is_wrong_is_said():
    with pytest.raises(ExperimentError, match=r"target: there is no 'foo'.*; epochs: Input"):
        config("target=foo", "epochs=abc")


# ---- names, through the command line


@pytest.fixture
def dise(dise, monkeypatch):
    """The command in a wide terminal."""
    monkeypatch.setenv("COLUMNS", "250")
    return dise


@pytest.mark.parametrize("command", ["run", "train"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["circle"], "task: there is no 'circle'; choose one of mnist, physionet, circles"),
        (["circles", "--preset", "huge"], "preset: there is no 'huge'; choose one of sample, cpu, paper"),
        (["circles", "--reg", "bogus"], "reg: there is no 'bogus'; choose one of none, kinetic, l1, l2, error, raw-"),
        (["circles", "--model", "odenet"], "model: there is no 'odenet'; choose one of flow"),
        (["circles", "--set", "target=foo"], f"set: target: there is no 'foo'; choose one of {TARGETS}"),
        (["circles", "--set", "foo=1"], f"set: expected NAME=VALUE with a NAME of {SETTINGS}"),
        (["circles", "--set", "epochs=2", "--set", "epochs=abc"], "set: epochs: Input should be a valid integer"),
        (["mnist", "--set", "target=moons"], "set: expected NAME=VALUE with a NAME of data, epochs"),
    ],
)
def test_wrong_names(dise, tmp_path, command, arguments, message):
    code, out, err = dise(command, *arguments, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_says_how_to_change_a_setting(dise):
    code, out, _ = dise("run", "--help")
    assert code == 0
    assert "--set" in out
    assert "NAME=VALUE" in out
    assert "mnist, physionet, circles or flows" in out


# ---- end to end

CHANGES = ("epochs=2", "iterations=3", "batch_size=64", "selection_sets=8", "test_sets=2")
OPTIONS = [option for change in CHANGES for option in ("--set", change)]
SETS = 4  # of the small test, in place of 16


@pytest.fixture(scope="module", autouse=True)
def small_world():
    """Three candidates, one value of M to choose, a small test of four sets, and coarse figures."""
    with pytest.MonkeyPatch.context() as patch:
        candidates = (RK4(2), Midpoint(10), Dopri5(rtol=1e-5, atol=1e-5))
        patch.setattr(CirclesTask, "candidates", candidates)
        patch.setattr("dise_experiments.run.select.choose_penalty", partial(choose_penalty, penalties=(1e4,), folds=4))
        for module in (evaluate, circles_task):
            patch.setattr(module, "SMALL", SETS)
        for name, value in (("GRID", 20), ("SAMPLES", 200), ("FRAMES", 3)):
            patch.setattr(figure, name, value)
        patch.setenv("COLUMNS", "250")
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """OUT of `dise run`, and what it printed."""
    out = tmp_path_factory.mktemp("out")
    arguments = ["run", "circles", *OPTIONS, "--reg", "kinetic", "--device", "cpu", "--out", str(out)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    return out, result


NAME = "flow-kinetic-epochs=2-iterations=3-batch_size=64-selection_sets=8-test_sets=2-seed0"


@pytest.fixture
def ran(finished, tmp_path):
    """A copy of the run directory."""
    shutil.copytree(finished[0], tmp_path / "out")
    return tmp_path / "out" / "circles" / "sample" / NAME


def test_run_prints_the_papers_tables(finished):
    _, result = finished
    for text in ("Table 8", "0.8914", "2286", NAME, "Table 9", "87.5%", "DISE (point)", "over seeds", "NLL in nats"):
        assert text in result.stdout
    assert "Other targets" not in result.stdout
    for text in (
        "candidates, unit: set",
        "candidates, unit: point",
        "fitting selector 'point', M by cross-validation",
    ):
        assert text in result.stderr


def test_run_writes_everything(finished):
    folder = finished[0] / "circles" / "sample"
    assert {file.name for file in (folder / NAME).iterdir()} >= {
        "config.json", "model.safetensors", "training.json", "selection.json", "selector-table-7.safetensors",
        "selector-set.safetensors", "selector-point.safetensors", "metrics.json", "timing.json", "nll-nfe.png",
    }  # fmt: skip
    report = (folder / "report.md").read_text()
    assert report.startswith("# circles, preset sample\n")
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert {"figure-3.png", "flow.gif", f"{NAME}/nll-nfe.png"} <= set(pictures)
    for picture in pictures:
        with Image.open(folder / picture) as image:
            image.verify()


def test_the_run_is_of_the_settings_that_were_set(finished):
    path = finished[0] / "circles" / "sample" / NAME
    run = open_run(path)
    changed = dict(change.split("=") for change in CHANGES)
    assert run.settings == PRESETS["sample"].model_dump() | {name: int(value) for name, value in changed.items()}
    assert type(run.regularizer) is TransportCost
    assert run.weight == 5e-4
    assert torch.load(path / "checkpoints" / "last.ckpt", weights_only=False)["global_step"] == 2 * 3


def test_what_was_measured(finished):
    path = finished[0] / "circles" / "sample" / NAME
    metrics, selection = (json.loads((path / name).read_text()) for name in ("metrics.json", "selection.json"))
    assert (metrics["target"], metrics["samples"]) == ("circles", (SETS + 2) * 32)
    assert {name: unit["samples"] for name, unit in selection["units"].items()} == {
        "set, Eq. 5": 8,
        "point, Eq. 5": 2 * 32,
    }
    assert selection["selectors"]["table-7"]["M"] == 1000
    assert not selection["selectors"]["table-7"]["trials"]
    # a test at 0.001 needs 1,645 samples
    assert {name: fit["passed"] for name, fit in selection["selectors"].items()} == {
        "table-7": None, "set": False, "point": False,
    }  # fmt: skip
    for name in ("set", "point"):
        assert [trial["M"] for trial in selection["selectors"][name]["trials"]] == [1e4]
        assert selection["selectors"][name]["M"] == 1e4
    rows = {(row["policy"], row["unit"]): row for row in metrics["policies"]}
    for name, unit in (("table-7", "set"), ("set", "set"), ("point", "point")):
        row = rows[f"DISE ({name})", unit]
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["selector_macs"] == metrics["macs"][unit][name] / metrics["macs"][unit]["f"]
    # nothing that the hypernetwork does for one time, and 320 for each point
    f = {unit: metrics["macs"][unit]["f"] for unit in ("set", "point")}
    assert f["set"] - f["point"] == 31 * (2 * 64 + 2 * 64 + 64)
    assert metrics["selection"] == {"on": "held-out", "alpha": 0.03, "M": None}


def test_the_likelihoods_are_those_of_the_model_that_was_saved(finished):
    path = finished[0] / "circles" / "sample" / NAME
    model = load_model(path, open_run(path))
    test = circles_task.sets("circles", SETS, "test")
    rows = json.loads((path / "metrics.json").read_text())["policies"]
    own = next(row for row in rows if row["policy"].startswith("Dopri5(rtol=1e-05"))
    with torch.no_grad():
        log_p, solution = model.solve(test)
    assert own["small"]["nll"] == pytest.approx(-log_p.mean().item(), abs=1e-5)
    assert own["small"]["nfe_sum"] == solution.nfe.sum()
    assert own["small"]["nll"] == pytest.approx(own["small"]["reference"], abs=1e-3)


def test_times_are_of_one_set(finished):
    path = finished[0] / "circles" / "sample" / NAME
    timing = json.loads((path / "timing.json").read_text())
    assert (timing["batch"], timing["batches"]) == (1, SETS)
    # selectors of points decide for other rows
    assert {"DISE (table-7)", "DISE (set)", "torchdiffeq dopri5"} <= set(timing["ode_ms"])
    assert "DISE (point)" not in timing["ode_ms"]


def test_run_again_reuses_everything(finished, ran, dise):
    names = ("model.safetensors", "selection.json", "metrics.json", "timing.json", "training.json")
    before = {name: (ran / name).stat().st_mtime_ns for name in names}
    code, out, err = dise("run", "circles", *OPTIONS, "--reg", "kinetic", "--device", "cpu", "--out", ran.parents[2])
    assert code == 0
    assert "trained before: reused" in err
    assert "collecting" not in err
    assert {name: (ran / name).stat().st_mtime_ns for name in names} == before
    lines, before = out.splitlines(), finished[1].stdout.splitlines()
    assert lines[:-2] == before[:-2]  # the last but one names the directory


def test_another_penalty_afterwards(ran, dise):
    arguments = ("run", "circles", *OPTIONS, "--reg", "kinetic", "--device", "cpu", "--out", ran.parents[2], "-M", 50)
    code, out, err = dise(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].endswith("move it away to fit another selection")
    # what it says helps
    (ran / "selection.json").unlink()
    code, _, err = dise(*arguments)
    assert code == 2
    assert err.splitlines()[-1].endswith("move metrics.json and timing.json away to evaluate again")
    for name in ("metrics.json", "timing.json"):
        (ran / name).unlink()
    code, out, _ = dise(*arguments, "--no-timing")
    assert code == 0
    assert "Table 8" in out
    fits = json.loads((ran / "selection.json").read_text())["selectors"]
    assert {fit["M"] for fit in fits.values()} == {50}


def test_a_penalty_below_the_prices_is_refused(ran, dise):
    (ran / "selection.json").unlink()
    code, _, err = dise("select", ran, "-M", 0.03, "--device", "cpu")  # RK4: 8 · 0.005
    assert code == 2
    assert "error: M: expected more than the largest price of an adequate result" in err


def test_evaluate_prints_every_policy(ran, dise):
    code, out, _ = dise("evaluate", ran, "--device", "cpu")
    assert code == 0
    for text in (
        "RK4(steps=2), per set",
        "oracle, per point",
        "DISE (point), per point",
        "reference",
        "torchdiffeq dopri5",
    ):
        assert text in out


def test_select_prints_a_table_for_sets_and_one_for_points(ran, dise):
    code, out, _ = dise("select", ran, "--device", "cpu")
    assert code == 0
    assert "Selection on 8 held-out rows (set, Eq. 5), α = 0.03" in out
    assert "Selection on 64 held-out rows (point, Eq. 5), α = 0.03" in out


def test_training_is_reproducible(finished, dise, tmp_path):
    arguments = ("train", "circles", *OPTIONS, "--reg", "kinetic", "--device", "cpu", "--out", tmp_path)
    code, out, _ = dise(*arguments)
    path = tmp_path / "circles" / "sample" / NAME
    assert (code, out) == (0, f"{path}\n")
    models = [load_model(where, open_run(where)) for where in (path, finished[0] / "circles" / "sample" / NAME)]
    assert all(map(torch.equal, *(model.state_dict().values() for model in models)))


@pytest.mark.long
def test_another_target_through_the_command_line(finished, dise, tmp_path):
    arguments = ("run", "circles", *OPTIONS, "--set", "target=moons", "--reg", "none", "--no-timing", "--device", "cpu")
    code, out, _ = dise(*arguments, "--out", tmp_path)
    assert code == 0
    assert "Other targets" in out
    assert "Table 8" not in out
    folder = tmp_path / "circles" / "sample"
    assert {file.name for file in folder.iterdir() if file.is_file()} == {
        "figure-3-moons.png", "flow-moons.gif", "report.html", "report.md"
    }  # fmt: skip
    assert json.loads(next(folder.glob("*/metrics.json")).read_text())["target"] == "moons"
