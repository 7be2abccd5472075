import re
import shutil

import pytest

from dise.experiment.config import ExperimentError, RunConfig
from dise.experiment.evaluate import evaluate
from dise.experiment.plots import accuracy_against_nfe, training_curves
from dise.experiment.report import Run, Table, read_runs, selection_table, table_1, table_3, wall_clock, write_report
from dise.experiment.rundir import claim_run, read_json, save_weights, write_json
from dise.tasks.mnist.model import resnet

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def folder(stage):
    """A preset's folder with one evaluated run."""
    return stage("evaluated").parent


@pytest.fixture
def evaluated(finished):
    return Run.read(finished["evaluated"])


def cells(table, row):
    return dict(zip(table.header, row, strict=True))


# ---- tables


def test_a_table_in_markdown():
    table = Table("Title", ["a", "b"], [["1", "2"], ["3", "4"]], "Note.")
    assert table.markdown() == "## Title\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n\nNote.\n"


def test_table_1_has_the_papers_numbers_in_its_order(evaluated):
    table = table_1([evaluated])
    paper = list(dict.fromkeys(tuple(row[:3]) for row in table.rows))
    assert paper == [
        ("ResNet", "0.9959", "–"),
        ("RKNet", "0.9953", "–"),
        ("No reg.", "0.9960", "26.00"),
        ("Kinetic energy reg.", "0.9965", "20.00"),
        ("L1 reg.", "0.9956", "20.00"),
        ("L2 reg.", "0.9961", "20.00"),
        ("Our reg.", "0.9964", "14.00"),
        ("No reg. & DISE", "0.9958", "11.36"),
        ("Our reg. & DISE", "0.9963", "5.79"),
    ]


def test_table_1_has_our_numbers_beside_the_papers(evaluated):
    table = table_1([evaluated])
    rows = {row["policy"]: row for row in evaluated.metrics["policies"]}
    found = {cells(table, row)["run"]: cells(table, row) for row in table.rows if "not run" not in row}
    assert list(found) == ["odenet-error-seed0", "odenet-error-seed0, (paper)", "odenet-error-seed0, (pooled)"]
    ours = found["odenet-error-seed0"]
    assert ours["model"] == "Our reg."
    assert ours["accuracy"] == f"{rows['Dopri5']['accuracy']:.4f}"
    assert ours["NFE a sample"] == f"{rows['Dopri5']['nfe']:.2f}"
    assert ours["NFE a batch"] == f"{rows['Dopri5']['nfe_batch']:.2f}"
    assert ours["selector (in f)"] == "–"
    routed = found["odenet-error-seed0, (pooled)"]
    assert routed["model"] == "Our reg. & DISE"
    assert routed["NFE a sample"] == f"{rows['DISE (pooled)']['nfe']:.2f}"
    assert found["odenet-error-seed0, (paper)"]["selector (in f)"] == "1.97"


def test_table_3_has_the_papers_shares_and_ours(evaluated):
    table = table_3([evaluated])
    assert table.header == ["run", "Dopri5", "RK4", "Euler"]
    assert table.rows[0] == ["paper: Our reg. & DISE", "37%", "34%", "29%"]
    shares = evaluated.policies("DISE")[0]["shares"]
    assert table.rows[1][1:] == [f"{shares[name]:.1%}" for name in table.header[1:]]
    assert len(table.rows) == 3


def test_wall_clock_is_relative_to_torchdiffeq(evaluated):
    table = wall_clock(evaluated)
    ode = evaluated.timing["ode_ms"]
    assert table.rows[0][0] == "torchdiffeq dopri5"
    assert table.rows[0][2] == table.rows[0][4] == "1.0×"
    euler = next(row for row in table.rows if row[0] == "Euler")
    assert euler[2] == f"{ode['torchdiffeq dopri5'] / ode['Euler']:.1f}×"


def test_selection_table(finished):
    selection = read_json(finished["selected"] / "selection.json")
    table = selection_table(selection)
    assert table.title == "Selection on 40 held-out samples, α = 0.3, M = 1000"
    assert table.header == ["candidate", "accuracy", "NFE", "share by paper", "share by pooled"]
    assert [row[0] for row in table.rows] == ["Euler", "RK4", "Dopri5"]
    assert [row[2] for row in table.rows[:2]] == ["1.00", "4.00"]
    assert "careful" not in table.note
    selection["selectors"]["pooled"]["warning"] = "careful"
    assert "Warning, pooled: careful" in selection_table(selection).note


# ---- the file


def test_report(folder, evaluated):
    runs = read_runs(folder)
    assert [run.config for run in runs] == [evaluated.config]
    text = write_report(folder, runs, command="dise run mnist").read_text()
    assert text.startswith("# mnist, preset sample\n\nMade by `dise run mnist`.\n")
    for table in (table_1(runs), table_3(runs), wall_clock(runs[0])):
        assert table.markdown() in text
    for number in ("5.79", "11.36", "0.9963", "37%", "34%", "29%"):
        assert number in text
    images = re.findall(r"!\[.*\]\((.*)\)", text)
    assert [name.split("/")[-1] for name in images] == ["training.png", "accuracy-nfe.png"]
    for image in images:
        assert (folder / image).read_bytes().startswith(PNG)


def test_a_report_made_again_is_the_same(folder):
    runs = read_runs(folder)
    before = write_report(folder, runs).read_bytes()
    assert write_report(folder, runs).read_bytes() == before


def test_nothing_else_in_the_run_is_touched(folder, snapshot):
    before = snapshot(folder)
    write_report(folder, read_runs(folder))
    after = snapshot(folder)
    assert {name.name for name in set(after) - set(before)} == {"report.md", "training.png", "accuracy-nfe.png"}
    assert {name: after[name] for name in before} == before


def test_a_resnet_beside_an_odenet(folder, tiny):
    config = RunConfig.of("mnist", "sample", model="resnet")
    path = config.directory(folder.parents[1])
    claim_run(path, config)
    save_weights(resnet(), path / "model.safetensors")
    # as a resnet's training leaves them, shortened
    write_json(path / "training.json", {"seconds": 60.0, "threads": 1, "train/loss": 0.5, "train/penalty": 0.0})
    shutil.copytree(folder / "odenet-error-seed0" / "logs", path / "logs")
    accuracy = evaluate(path)["policies"][0]["accuracy"]
    runs = read_runs(folder)
    assert len(runs) == 2
    table = table_1(runs)
    row = cells(table, table.rows[0])
    assert (row["model"], row["run"]) == ("ResNet", "resnet-none-seed0")
    assert (row["accuracy"], row["NFE a sample"]) == (f"{accuracy:.4f}", "–")
    text = write_report(folder, runs).read_text()
    assert "resnet-none-seed0/training.png" in text
    assert "resnet-none-seed0/accuracy-nfe.png" not in text


def test_runs_that_are_not_evaluated_are_left_out(folder, finished):
    shutil.copytree(finished["trained"], folder / "odenet-error-seed1")
    (folder / "notes").mkdir()
    assert len(read_runs(folder)) == 1


@pytest.mark.parametrize("name", ["none", "."])
def test_no_evaluated_run(tmp_path, name):
    with pytest.raises(ExperimentError, match="holds no evaluated run"):
        read_runs(tmp_path / name)


# ---- plots


def test_plot_of_policies(tmp_path, evaluated):
    accuracy_against_nfe(evaluated.policies(), "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("count", [0, 1, 50])
def test_plot_of_a_training_log(tmp_path, count):
    # Lightning logs every tenth step: a run of fewer has no rows
    log = [
        {"step": 10.0 * i + 9, "train/loss": 2.0 / (i + 1), "train/penalty": 0.0, "train/nfe": 20.0}
        for i in range(count)
    ]
    training_curves(log, "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)
