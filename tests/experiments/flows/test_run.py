"""`dise run flows` on tiny fields, from the command line."""

import json

import pytest

from dise_experiments.flows import config as config_module
from dise_experiments.flows.measure import field as measure_module
from dise_experiments.flows.measure.sizes import Sizes
from dise_experiments.flows.measure.solvers import usual_solvers

SIZES = Sizes(
    draws=40,
    batch=40,
    density_draws=5,
    compared=20,
    epochs=1,
    observations=1,
    fitted=(4,),
    fit_draws=32,
    fit_iterations=10,
    tolerance=0.2,
    epsilon=0.2,
    sampler_draws=400,
    many_candidates=False,
    timed=(1,),
)


@pytest.fixture
def dise(dise, monkeypatch):
    """The command in a wide terminal, with tiny presets."""
    settings = {"points": {"epochs": 1, "iterations": 20, "batch_size": 64, "simulations": 200}}
    monkeypatch.setattr(config_module, "PRESETS", {"sample": settings, "cpu": settings})
    monkeypatch.setattr(measure_module, "SIZES", {"sample": {"points": SIZES}})
    some = [s for s in usual_solvers() if s.name in ("Euler(steps=8)", "AB2(8)")]
    adams = [s for s in usual_solvers() if s.family == "Adams"][:1]
    monkeypatch.setattr(measure_module, "usual_solvers", lambda few: some + adams)
    monkeypatch.delenv("DISE_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return dise


@pytest.mark.long
def test_the_sample_trains_measures_reports_and_is_reused(dise, tmp_path):
    command = ("run", "flows", "--out", tmp_path, "--device", "cpu", "--threads", "1")
    code, out, err = dise(*command)
    assert code == 0, err
    assert "Certified samplers" in out
    assert "gaussian_linear" in out
    folder = tmp_path / "flows" / "sample"
    assert out.splitlines()[-1] == "Next: dise run flows --preset cpu"
    assert (folder / "report.md").is_file()
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"moons-seed0", "gaussian_linear-seed0"}
    assert json.loads((folder / "moons-seed0" / "times.json").read_text())["moons"]["threads"] == 1
    again = dise(*command)
    assert (again[0], again[1]) == (0, out)
    assert again[2].count("reused") == 4
    assert dise("report", tmp_path)[:2] == (0, out)
    assert dise(*command, "--no-resume")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("flows", "--reg", "none"), "--reg: no option of the task flows"),
        (("flows", "--set", "epochs=3"), "--set: no option of the task flows"),
        (("flows", "--target", "suns"), "target: there is no 'suns'; choose one of checkerboard"),
        (("flows", "--preset", "paper"), "preset: there is no 'paper'; choose one of sample, cpu"),
        (("mnist", "--target", "moons"), "--target: no option of the task mnist; other tasks have --set target=NAME"),
        (("suns",), "task: there is no 'suns'; choose one of mnist, physionet, circles, flows"),
    ],
)
def test_what_does_not_belong_together_is_refused(dise, arguments, message, tmp_path):
    code, out, err = dise("run", *arguments, "--out", tmp_path)
    assert (code, out) == (2, "")
    assert " ".join(err.split()).startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []
