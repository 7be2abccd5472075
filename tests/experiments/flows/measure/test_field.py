"""All measurements of one tiny field, and the report."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from dise_experiments.flows.cases import cases
from dise_experiments.flows.measure import field as measure_module
from dise_experiments.flows.measure.errors import outcome, tight_draws
from dise_experiments.flows.measure.field import SOLVERS, TIMES, measure_field, solvers_of, time_field
from dise_experiments.flows.measure.figures import draw_budgets, draw_pareto
from dise_experiments.flows.measure.report import measured_folders, write_flows_report
from dise_experiments.flows.measure.solvers import FITTED, POLICY, usual_solvers
from dise_experiments.run.config import ExperimentError

PNG = b"\x89PNG"


SOLVERS_SHOWN = ("Euler(steps=8)", "AB2(8)", "DPM++2M(6)", "Adams(rtol=0.03, atol=0.03)")


@pytest.fixture(autouse=True, scope="module")
def few(tiny):
    """Few solvers, on few draws."""
    some = [solver for solver in usual_solvers() if solver.name in SOLVERS_SHOWN]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_module, "usual_solvers", lambda few: some)
        patch.setattr(measure_module, "SIZES", {"sample": {"points": tiny}})
        yield tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory, few, store):
    path = store("moons", tmp_path_factory.mktemp("out"))
    assert measure_field(path)
    return path


@pytest.fixture
def measured(finished, tmp_path):
    """A copy of the field's directory, in a folder of its preset."""
    return shutil.copytree(finished, tmp_path / "flows" / "sample" / finished.name)


def test_everything_is_measured_written_and_reused(measured):
    content = json.loads((measured / SOLVERS).read_text())
    case = content["cases"]["moons"]
    families = [row["family"] for row in case["rows"]]
    assert families.count(FITTED) == families.count(POLICY) == 1
    for row in case["rows"]:
        assert 0 <= row["error"]["median"] <= row["error"]["q90"] <= row["error"]["q99"]
        assert row["nfe"] == row["model_calls"]
    assert set(case["log_prob"]) == {
        "Euler(steps=8)",
        "AB2(8)",
        *(n for n in case["log_prob"] if "Adams" in n or "Dopri5" in n),
    }
    assert case["policy"]["nfe"] <= (case["policy"]["single_nfe"] or math.inf)
    assert set(case["distances"]["solvers"]) == {row["solver"] for row in case["rows"]}
    for kind in ("pareto", "budgets"):
        assert (measured / f"{kind}-moons.png").read_bytes().startswith(PNG)
    assert not measure_field(measured)


def test_kept_policies_are_the_ones_that_were_measured(measured, few, monkeypatch):
    content = json.loads((measured / SOLVERS).read_text())["cases"]["moons"]["rows"]
    monkeypatch.setattr("dise_experiments.flows.measure.policies.make_sampler", None)  # must not be called
    monkeypatch.setattr("dise_experiments.flows.measure.policies.fit_solver", None)
    (case,) = cases(measured)
    solvers, report = solvers_of(case, few, measured, print)
    draws = tight_draws(case, few.draws, batch=few.batch, seed=1)
    for solver in solvers:
        row = next(row for row in content if row["solver"] == solver.name)
        found = outcome(case, solver.integrator, draws, batch=few.batch)
        assert float(found.error.median()) == pytest.approx(row["error"]["median"], rel=0.1, abs=1e-6)
    assert report.policy == solvers[[s.family for s in solvers].index(POLICY)].integrator


def test_times_and_the_report(measured):
    folder = measured.parent
    first = write_flows_report(folder)
    assert "milliseconds" not in first.file.read_text()
    assert time_field(measured)
    assert not time_field(measured)
    assert set(json.loads((measured / TIMES).read_text())["moons"]["milliseconds"]["AB2(8)"]) == {"1", "8"}
    report = write_flows_report(folder)
    text = report.file.read_text()
    assert "## moons: milliseconds per batch" in text
    assert "## moons: log-densities" in text
    assert "no FID" in text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (folder / line.partition("](")[2].rstrip(")")).is_file()
    assert [len(row) for table in report.tables for row in table.rows] == [
        len(table.header) for table in report.tables for row in table.rows
    ]
    assert "evaluations" in report.conclusion[0] or "certified" in report.conclusion[0]
    assert measured_folders(folder) == measured_folders(folder.parent.parent) == measured_folders(measured) == [folder]


def test_other_settings_are_refused(measured, monkeypatch, few):
    other = {"points": few.model_copy(update={"draws": 65})}
    monkeypatch.setattr(measure_module, "SIZES", {"sample": other})
    with pytest.raises(ExperimentError, match="other settings"):
        measure_field(measured)


def test_a_folder_without_measurements_has_no_report(tmp_path):
    assert measured_folders(tmp_path) == []
    with pytest.raises(ExperimentError, match="no measured field"):
        write_flows_report(tmp_path)


def test_figures_of_images_and_of_failures(stored, tiny, tmp_path):
    case, _ = cases(stored("digits"))
    images, nfe = torch.randn(7, 1, 28, 28), torch.tensor([3, 3, 4, 4, 4, 9, 9])
    draw_budgets(case, case.flow.block.integrator, None, images, nfe, tmp_path / "images.png")
    rows = [{"family": "Euler", "nfe": {"mean": 8.0}, "error": {"q99": math.inf}}]
    draw_pareto(rows, "failed", 0.1, tmp_path / "pareto.png")
    assert (tmp_path / "images.png").read_bytes().startswith(PNG)
    assert (tmp_path / "pareto.png").read_bytes().startswith(PNG)


def test_the_committed_report_is_made_of_the_committed_measurements(tmp_path):
    committed = Path(__file__).parents[4] / "results" / "flows-cpu"
    for file in [*committed.glob("*/*.json")]:
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / file.parent.name)
    assert write_flows_report(tmp_path).file.read_text() == (committed / "report.md").read_text()
    for figure in re.findall(r"!\[.*\]\((.*)\)", (committed / "report.md").read_text()):
        assert (committed / figure).is_file()
