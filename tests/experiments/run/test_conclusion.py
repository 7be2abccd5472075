"""The last three lines of a command, from runs made by hand."""

from pathlib import Path

import pytest

from dise_experiments.circles.task import CirclesTask
from dise_experiments.common.task import Run
from dise_experiments.mnist.task import MnistTask
from dise_experiments.physionet.task import PhysionetTask
from dise_experiments.run.conclusion import conclusion

REPORT = Path("runs/mnist/sample/report.md")
ROWS = [
    {"policy": "Euler", "accuracy": 0.9, "nfe": 1.0, "nfe_batch": 1.0},
    {"policy": "Dopri5", "accuracy": 0.9641, "nfe": 20.25, "nfe_batch": 26.0},
    {"policy": "DISE (confidence)", "accuracy": 0.9634, "nfe": 1.2, "selector_macs": 0.03},
]
TIMES = {"model_ms": {"torchdiffeq dopri5": 71.26, "DISE (confidence)": 4.12, "Dopri5": 60.0}}


def run(name="odenet-error-seed0", reg="error", rows=ROWS, timing=TIMES):
    return Run(name, "odenet", reg, 0.0, 0, {"policies": rows}, {}, timing)


def lines(*runs, task=None, preset="sample", figures=()):
    return conclusion(task or MnistTask(), preset, runs, REPORT, figures)


def test_dise_stands_beside_dopri5_of_the_same_weights():
    # the selector's cost is included; torchdiffeq has one step size for the batch, hence the NFE of a batch
    expected = "DISE: accuracy 0.963, 1.2 NFE, 4.1 ms; torchdiffeq dopri5: 0.964, 26 NFE, 71 ms"
    assert lines(run())[0] == expected
    assert len(expected) <= 80


def test_long_times_are_in_seconds():
    slow = {"model_ms": {"torchdiffeq dopri5": 12345.6, "DISE (confidence)": 999.4}}
    expected = "DISE: accuracy 0.963, 1.2 NFE, 999 ms; torchdiffeq dopri5: 0.964, 26 NFE, 12 s"
    assert lines(run(timing=slow))[0] == expected


def test_times_that_were_not_measured_are_left_out():
    assert lines(run(timing=None))[0] == "DISE: accuracy 0.963, 1.2 NFE; torchdiffeq dopri5: 0.964, 26 NFE"


def test_a_model_without_an_ode_has_its_quality():
    alone = run("resnet-none-seed0", "none", [{"policy": "no ODE", "accuracy": 0.97}], None)
    assert lines(alone)[0] == "resnet-none-seed0: accuracy 0.970"


@pytest.mark.parametrize(
    ("others", "shown"),
    [
        ([run("odenet-none-seed0", "none")], "odenet-error-seed0"),
        ([run("odenet-none-seed0", "none"), run("b", timing=None)], "odenet-error-seed0"),
        ([run("rknet", "none", ROWS[:1], None)], "odenet-error-seed0"),
    ],
)
def test_the_run_that_is_shown(others, shown):
    figures = [REPORT.parent / r.name / "accuracy-nfe.png" for r in [*others, run()]]
    look_at = f"See {REPORT} and {shown}/accuracy-nfe.png there"
    assert lines(*others, run(), figures=figures)[1] == look_at


def test_a_figure_of_all_runs_comes_first():
    figures = [REPORT.parent / "odenet-error-seed0" / "a.png", REPORT.parent / "figure-3.png"]
    assert lines(run(), figures=figures)[1] == f"See {REPORT} and figure-3.png there"
    assert lines(run())[1] == f"See {REPORT}"


@pytest.mark.parametrize("task", [MnistTask(), PhysionetTask(), CirclesTask()], ids=lambda task: task.name)
def test_the_next_command_is_the_next_larger_preset(task):
    name, rows = task.name, [{"policy": "x", "accuracy": 0.5, "auroc": 0.5, "large": {"nll": 0.5}}]
    one = run(rows=rows)
    assert lines(one, task=task, preset="sample")[2] == f"Next: dise run {name} --preset cpu"
    larger = "long" if name == "mnist" else "paper"
    assert lines(one, task=task, preset="cpu")[2] == f"Next: dise run {name} --preset {larger}"
    assert lines(one, task=task, preset="paper")[2] == f"Next: dise run {name} --preset paper --seed 1"
