"""The benchmark of clients: it finds adequate integrators, compares times and writes its table."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import dise

FOLDER = Path(__file__).parents[2] / "benchmarks"
COLUMNS = 12


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return import_module("clients")


def decay(script):
    """y' = −y from 1 to 2, whose call at a tolerance of theirs is a fixed-step solve."""
    y0 = torch.linspace(1, 2, 8, dtype=torch.float64)[:, None]

    class Decay(torch.nn.Module):
        def forward(self, t, y):
            return -y

    f = Decay()

    def ours(integrator, nats):
        return lambda: dise.solve(f, y0, 0.0, 1.0, integrator).y

    exact = y0 * torch.tensor(-1.0, dtype=torch.float64).exp()
    return script.Case(
        0.5,
        f,
        lambda: f(0.0, y0),
        lambda tol: ours(dise.RK4(50 if tol is None else 5), None),
        ours,
        exact,
        lambda a, b: (a - b).abs().flatten(),
        lambda draws, folder, dtype: ours(dise.RK4(2), None),
    )


def test_integrators_are_adequate_and_the_loosest(script, monkeypatch):
    monkeypatch.setattr(script, "times", lambda calls, repeats: [1.0] * len(calls))  # the same method in every run
    case = decay(script)
    scan = script.Scan(case)
    found = scan.best(1e-4)
    made = script.integrator(found["method"], found["tolerance"], found["nats"])
    assert case.missed(case.ours(*made)) == found["error"] <= 1e-4
    assert any(error > 1e-4 for (name, _, _), error in scan.seen.items() if name == found["method"])


def test_evaluations_are_counted_per_point(script):
    case = decay(script)
    assert case.evaluations(case.theirs(None)) == 200
    assert case.evaluations(case.ours(dise.Euler(7), None)) == 7
    assert case.evaluations(case.once) == 1


@pytest.mark.long
def test_rows_are_kept_and_written_as_a_table(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "CASES", {"decay": lambda n: decay(script)})
    readme = import_module("readme")
    monkeypatch.setattr(readme, "PAGE", tmp_path / "README.md")
    begin, end = readme.marks("clients.py")
    readme.PAGE.write_text(f"before\n{begin}\n{end}\nafter\n")
    out = tmp_path / "clients.json"
    for options in (["--repeats", "1"], [], ["--again", "--repeats", "1"], ["--readme"]):
        monkeypatch.setattr(sys, "argv", ["clients.py", "--out", str(out), *options])
        script.main()
    row = json.loads(out.read_text())["decay"]
    assert row["equal"]["error"] <= row["error"] < 1e-7
    assert row["loose"]["error"] <= 0.01
    assert (row["nfe"], row["certified"]["nfe"]) == (200, 8)
    assert row["certified"]["seconds"] == min(row[key]["seconds"] for key in ("float32", "bfloat16"))
    assert row["certified"]["ratio"] == pytest.approx(row["certified"]["seconds"] / row["seconds"])
    before, *table, after = readme.PAGE.read_text().splitlines()
    assert (before, after) == ("before", "after")
    assert [line.count("|") for line in table[1:-1]] == [COLUMNS + 1] * 3


def test_a_certified_policy_is_made_once(script, tmp_path, monkeypatch):
    made = []
    field = torch.nn.Linear(2, 2)
    flow = dise.FlowSampler(dise.Flow(field, dise.DiagonalNormal(torch.zeros(2), torch.ones(2)), dise.Euler(1)))

    def make_sampler(flow, **options):
        made.append(options["draws"])
        assert set(options) == {"risk", "draws", "autocast"}
        sampler = dise.FlowSampler(flow)
        sampler.block.integrator = dise.Dynamic((dise.Euler(1), dise.Dopri5()), lambda h0, k1: h0)
        return sampler

    saved = []
    monkeypatch.setattr(script.dise, "make_sampler", make_sampler)
    monkeypatch.setattr(script, "save_policy", lambda sampler, folder: (folder.mkdir(), saved.append(folder)))
    monkeypatch.setattr(script, "load_policy", lambda sampler, folder: (sampler, folder))
    first = script.certify(field, 2, 100, tmp_path / "policy", None, density=False)
    second, folder = script.certify(field, 2, 100, tmp_path / "policy", None, density=False)
    assert (made, saved, folder) == ([100], [tmp_path / "policy"], tmp_path / "policy")
    assert type(first) is type(second) is type(flow)
