import json
import re
import shutil
from dataclasses import replace

import pytest

from dise_experiments.mnist.model import resnet
from dise_experiments.mnist.task import MnistTask
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.evaluate import evaluate_run
from dise_experiments.run.over_seeds import over_seeds
from dise_experiments.run.registry import TASKS
from dise_experiments.run.report import evaluated, read_run, selection_tables, wall_clock, write_report
from dise_experiments.run.rundir import claim_run, read_json, save_weights, write_json

PNG = b"\x89PNG\r\n\x1a\n"
FIGURES = ["training.png", "accuracy-nfe.png", "steps.png", "shares.png", "calibration.png", "chosen.png"]


@pytest.fixture
def folder(stage):
    """A preset's folder with one evaluated run."""
    return stage("evaluated").parent


@pytest.fixture
def run(finished):
    return read_run(finished["evaluated"])


@pytest.fixture
def beside(folder, tiny):
    """beside(): the evaluated run of a ResNet in the same folder, as its training leaves it but for the logs."""

    def make():
        config = RunConfig.of("mnist", "sample", model="resnet")
        path = config.directory(folder.parents[1])
        claim_run(path, config)
        save_weights(resnet(), path / "model.safetensors")
        write_json(path / "training.json", {"seconds": 60.0, "threads": 1, "train/loss": 0.5, "train/penalty": 0.0})
        shutil.copytree(folder / "odenet-error-seed0" / "logs", path / "logs")
        evaluate_run(path)
        return path

    return make


# ---- reading a run


def test_a_run_is_what_its_files_say(finished):
    path, run = finished["evaluated"], read_run(finished["evaluated"])
    assert (run.name, run.model, run.reg) == ("odenet-error-seed0", "odenet", "error")
    assert (run.weight, run.seed) == (0.005, 0)
    metrics = read_json(path / "metrics.json")
    assert run.metrics == metrics | {"selections": {"own selectors": metrics["selection"]}}
    assert run.training == read_json(path / "training.json")
    assert run.timing == read_json(path / "timing.json")


def test_a_run_that_is_not_timed(stage):
    path = stage("evaluated")
    (path / "timing.json").unlink()
    assert read_run(path).timing is None


def test_a_run_is_named_as_its_directory(stage, monkeypatch):
    path = stage("evaluated")
    moved = path.rename(path.with_name("old"))
    assert read_run(moved).name == "old"
    monkeypatch.chdir(moved)
    assert read_run(type(moved)(".")).name == "old"


@pytest.mark.parametrize("name", ["trained", "selected"])
def test_a_run_that_is_not_evaluated(finished, name):
    with pytest.raises(ExperimentError, match=r"is not evaluated \(metrics.json is missing\); `dise evaluate`"):
        read_run(finished[name])


def test_a_run_whose_training_is_not_finished(stage):
    path = stage("evaluated")
    (path / "training.json").unlink()
    with pytest.raises(
        ExperimentError, match=r"is not a finished training \(training.json is missing\); `dise train` finishes it"
    ):
        read_run(path)


def test_no_run(tmp_path):
    with pytest.raises(ExperimentError, match="is not a run directory"):
        read_run(tmp_path)


# ---- the runs of a folder


def test_evaluated_runs_and_their_task(folder, beside):
    other = beside()
    assert evaluated(folder) == (TASKS["mnist"], [folder / "odenet-error-seed0", other])


def test_runs_that_are_not_evaluated_are_left_out(folder, finished):
    shutil.copytree(finished["trained"], folder / "odenet-error-seed1")
    (folder / "notes").mkdir()
    assert [path.name for path in evaluated(folder)[1]] == ["odenet-error-seed0"]


@pytest.mark.parametrize("name", ["none", "."])
def test_no_evaluated_run(tmp_path, name):
    with pytest.raises(ExperimentError, match="contains no evaluated run"):
        evaluated(tmp_path / name)


def test_runs_of_several_tasks(folder, monkeypatch):
    monkeypatch.setitem(TASKS, "another", MnistTask())
    path = folder / "odenet-error-seed1"
    shutil.copytree(folder / "odenet-error-seed0", path)
    write_json(path / "config.json", read_json(path / "config.json") | {"task": "another"})
    with pytest.raises(ExperimentError, match=r"contains runs of several tasks \(another, mnist\); give one"):
        evaluated(folder)
    with pytest.raises(ExperimentError, match="several tasks"):
        write_report(folder)
    assert not (folder / "report.md").exists()
    shutil.rmtree(folder / "odenet-error-seed0")
    assert evaluated(folder) == (TASKS["another"], [path])


# ---- tables


def test_wall_clock_is_relative_to_torchdiffeq(run):
    table = wall_clock(run)
    ode, whole = run.timing["ode_ms"], run.timing["model_ms"]
    assert table.title == "odenet-error-seed0: wall-clock"
    assert table.header == ["policy", "ODE part, ms", "ODE part faster", "whole model, ms", "whole faster"]
    assert table.rows[0][0] == "torchdiffeq dopri5"
    assert table.rows[0][2] == table.rows[0][4] == "1.0×"
    euler = next(row for row in table.rows if row[0] == "Euler")
    assert euler[1:3] == [f"{ode['Euler']:.1f}", f"{ode['torchdiffeq dopri5'] / ode['Euler']:.1f}×"]
    assert euler[3:] == [f"{whole['Euler']:.1f}", f"{whole['torchdiffeq dopri5'] / whole['Euler']:.1f}×"]


def test_selectors_are_timed_in_milliseconds_and_in_evaluations_of_f(run):
    timing = run.timing | {"parts_ms": {"f": 2.0, "paper": 3.0, "pooled": 0.25}}
    note = wall_clock(replace(run, timing=timing)).note
    assert note.endswith("One evaluation: f 2.00 ms (1.00 f), paper 3.00 ms (1.50 f), pooled 0.25 ms (0.12 f).")


def fitted(unit, shares, warning=None, M=1e3, passed=None, members=1):
    values = {"unit": unit, "M": M, "trials": [], "members": members}
    values |= {"initial_loss": 1.0, "validation_loss": 0.25, "epochs": 9.0}
    return values | {"best_epoch": 5, "shares": shares, "warning": warning, "passed": passed}


def outcome(samples, **candidates):
    columns = {name: {"adequate": adequate, "nfe": nfe} for name, (adequate, nfe) in candidates.items()}
    return {"samples": samples, "candidates": columns}


def test_selection_of_one_unit(finished):
    selection = read_json(finished["selected"] / "selection.json")
    (table,) = selection_tables(selection)
    assert table.title == "Selection on 40 held-out rows (sample, Eq. 4), α = 0.3"
    fits = selection["selectors"]
    assert table.header == ["candidate", "adequate", "NFE", *(f"share by {name}" for name in fits)]
    assert [row[0] for row in table.rows] == ["Euler", "RK4", "Dopri5"]
    assert [row[2] for row in table.rows[:2]] == ["1.00", "4.00"]
    for name, fit in fits.items():
        # 40 images are too few to pass
        passed = "" if name == "paper" else " (no M passed the test; the best one is used), mean of 6 selectors"
        assert f"{name}: M = {fit['M']:g}{passed}, " in table.note
    for i, row in enumerate(table.rows):
        assert row[3:] == [f"{fit['shares'][i]:.1%}" for fit in fits.values()]


def test_a_table_for_each_unit_with_its_own_selectors():
    selection = {
        "on": "train",
        "alpha": 0.25,
        "M": None,
        "units": {
            "set": outcome(8, Euler=(0.5, 1.0), RK4=(0.75, 4.0)),
            "point": outcome(256, Euler=(0.25, 1.0), RK4=(0.5, 4.0)),
        },
        "selectors": {
            "a": fitted("set", [0.5, 0.5]),
            "b": fitted("point", [0.25, 0.75], "careful", M=1e6, passed=False, members=6),
            "c": fitted("set", [1.0, 0.0], M=10.0, passed=True),
        },
    }
    sets, points = selection_tables(selection)
    assert sets.title == "Selection on 8 train rows (set), α = 0.25"
    assert sets.header == ["candidate", "adequate", "NFE", "share by a", "share by c"]
    assert sets.rows == [["Euler", "0.5000", "1.00", "50.0%", "100.0%"], ["RK4", "0.7500", "4.00", "50.0%", "0.0%"]]
    assert sets.note == (
        "a: M = 1000, validation loss 0.250 of 1.000 in 9 epochs; "
        "c: M = 10 (passed its test), validation loss 0.250 of 1.000 in 9 epochs"
    )
    assert points.title == "Selection on 256 train rows (point), α = 0.25"
    assert points.rows == [["Euler", "0.2500", "1.00", "25.0%"], ["RK4", "0.5000", "4.00", "75.0%"]]
    assert points.note == (
        "b: M = 1e+06 (no M passed the test; the best one is used), mean of 6 selectors, "
        "validation loss 0.250 of 1.000 in 9 epochs\n"
        "Warning, b: careful"
    )


# ---- the file


def test_report(folder, run):
    file, _, tables, conclusion = write_report(folder)
    assert len(conclusion) == 3
    assert file == folder / "report.md"
    task = TASKS["mnist"]
    assert tables == [*task.tables([run]), over_seeds(task, [run])]
    text = file.read_text()
    assert text.startswith("# mnist, preset sample\n")
    for table in (*tables, *task.details(run), wall_clock(run)):
        assert table.markdown() in text
    for number in ("5.79", "11.36", "0.9963", "37%", "34%", "29%"):
        assert number in text
    images = re.findall(r"!\[.*\]\((.*)\)", text)
    assert images == [f"odenet-error-seed0/{name}" for name in FIGURES]
    for image in images:
        assert (folder / image).read_bytes().startswith(PNG)


def test_the_training_is_in_the_report(folder, run):
    loss, penalty, error = (run.training[f"train/{key}"] for key in ("loss", "penalty", "error"))
    row = f"| odenet-error-seed0 | mean | 0.005 | {loss:.4f} | {penalty:.4f} | {error:.4f} | "
    assert row in write_report(folder)[0].read_text()


def test_a_report_made_again_is_the_same(folder):
    before = write_report(folder)[0].read_bytes()
    assert write_report(folder)[0].read_bytes() == before


def test_nothing_else_in_the_run_is_touched(folder, snapshot):
    before = snapshot(folder)
    write_report(folder)
    after = snapshot(folder)
    assert {name.name for name in set(after) - set(before)} == {"report.md", "report.html", *FIGURES} - {"chosen.png"}
    assert {name: after[name] for name in before} == before


def test_runs_without_timing_have_no_wall_clock(folder):
    (folder / "odenet-error-seed0" / "timing.json").unlink()
    assert "wall-clock" not in write_report(folder)[0].read_text()


def test_a_resnet_beside_an_odenet(folder, beside):
    path = beside()
    text = write_report(folder)[0].read_text()
    accuracy = read_json(path / "metrics.json")["policies"][0]["accuracy"]
    assert f"| ResNet | 0.9959 | – | resnet-none-seed0 | {accuracy:.4f} | – | – | – |" in text
    assert "resnet-none-seed0/training.png" in text
    assert "resnet-none-seed0/accuracy-nfe.png" not in text


def test_a_renamed_run_keeps_its_figures(folder):
    (folder / "odenet-error-seed0").rename(folder / "old")
    text = write_report(folder)[0].read_text()
    assert "## old: all policies" in text
    assert re.findall(r"!\[.*\]\((.*)\)", text) == [f"old/{name}" for name in FIGURES]


def test_a_run_of_an_earlier_preset_keeps_its_figures(folder):
    # its settings are not those of the preset of that name any more
    path = folder / "odenet-error-seed0"
    config = read_json(path / "config.json")
    config["settings"]["epochs"] = 77
    (path / "config.json").write_text(json.dumps(config))
    assert "(odenet-error-seed0/accuracy-nfe.png)" in write_report(folder)[0].read_text()


def test_without_a_log_the_figure_that_is_there_stays(folder):
    # committed results have figures but no logs
    path = folder / "odenet-error-seed0"
    shutil.rmtree(path / "logs")
    assert "training.png" not in write_report(folder)[0].read_text()
    (path / "training.png").write_bytes(PNG + b"kept")
    assert "(odenet-error-seed0/training.png)" in write_report(folder)[0].read_text()
    assert (path / "training.png").read_bytes() == PNG + b"kept"


def test_a_task_can_draw_a_trained_model(folder, monkeypatch):
    drawn = []

    def plots(self, runs, folder, load):
        drawn.extend((run.name, load(run)) for run in runs)
        (folder / "figure.png").write_bytes(PNG)
        return [folder / "figure.png"]

    monkeypatch.setattr(MnistTask, "plots", plots)
    assert "(figure.png)" in write_report(folder)[0].read_text()
    ((name, model),) = drawn
    assert (name, model.training, type(model).__name__) == ("odenet-error-seed0", False, "ImageClassifier")


@pytest.mark.parametrize("name", ["training.json", "metrics.json"])
def test_a_run_that_cannot_be_read_is_named_and_left_out(folder, run, name):
    other = folder / "odenet-error-seed1"
    shutil.copytree(folder / run.name, other)
    complete = write_report(folder)
    assert other.name in complete.file.read_text()
    if name == "training.json":
        (other / name).unlink()
    else:
        (other / name).write_text("{")
    report = write_report(folder)
    assert report.tables == [*TASKS["mnist"].tables([run]), over_seeds(TASKS["mnist"], [run])]
    *_, line = report.conclusion
    assert line.startswith(f"Left out: {other}")
    assert name in line
    for file in (report.file, report.page):
        assert "Left out: " in file.read_text()
        assert f"{other.name}/" not in file.read_text().replace(line, "")
    shutil.rmtree(folder / run.name)
    with pytest.raises(ExperimentError, match=name):
        write_report(folder)
