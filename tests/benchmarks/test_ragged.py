"""The benchmark of a batch with a stiff tenth: rows of f are counted; it runs, prints a table and writes JSON."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

import dise

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return runpy.run_path(str(FOLDER / "ragged.py"))


def test_one_tenth_is_stiff(script):
    y0 = script["start"](40)
    assert y0[:, 2].tolist() == ([25.0] + [1.0] * 9) * 4
    assert y0[:, :2].unique().numel() == 80


def test_the_stiffness_of_a_sample_stays(script):
    y0 = script["start"](20)
    y = dise.solve(script["Corrected"](8), y0, 0.0, 0.5, dise.Dopri5()).y
    torch.testing.assert_close(y[:, 2], y0[:, 2], rtol=0, atol=0)
    assert not torch.equal(y[:, :2], y0[:, :2])


def test_it_prints_a_table_and_writes_json(script, tmp_path, monkeypatch, capsys):
    arguments = ["--batch", "10", "--width", "4", "--repeats", "1", "--t1", "1", "--out", tmp_path / "out.json"]
    monkeypatch.setattr(sys, "argv", ["ragged.py", *map(str, arguments)])
    script["main"]()
    result = json.loads((tmp_path / "out.json").read_text())
    assert {"dise", "torchdiffeq"} <= set(result["ways"])
    ours, theirs = result["ways"]["dise"], result["ways"]["torchdiffeq"]
    assert theirs["rows"] == 10 * (2 + 6 * theirs["rounds"])
    assert ours["rows"] < theirs["rows"]
    assert all(row["ms"] > 0 for row in result["ways"].values())
    assert "rows of f" in capsys.readouterr().out
