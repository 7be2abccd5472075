"""The benchmark of fitted tables: its verdicts and its table are right on numbers known beforehand."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from dise.flow import SolverErrors

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield import_module("fit_solver")
    sys.modules.pop("fit_solver", None)


def test_points_are_judged_by_their_rms_and_digits_by_their_decibels(script):
    before, halved = (SolverErrors.of(x * torch.tensor([0.1, 0.2, 0.4])) for x in (1.0, 0.5))
    assert script.verdict("moons", before, halved) == {"reduction": pytest.approx(0.5), "holds": True}
    assert script.verdict("digits", before, halved) == {"gain dB": pytest.approx(6.02, abs=0.01), "holds": True}
    hard = SolverErrors.of(torch.tensor([0.05, 0.1, 0.4]))  # the largest error, which most of the RMS is, stays
    assert not script.verdict("moons", before, hard)["holds"]
    assert script.verdict("digits", before, hard) == {"gain dB": pytest.approx(4.01, abs=0.01), "holds": True}


def test_the_readmes_table(script):
    errors = {"rms": 0.0124, "median": 0.01, "q99": 0.04}
    common = {"before": errors, "after": {q: e / 2 for q, e in errors.items()}, "cpu seconds": 6.6, "n": 6}
    rows = [
        common | {"task": "moons", "start": "AB3([0, 1])", "reduction": 0.5, "holds": True},
        common | {"task": "digits", "start": "ABM2([0, 1])", "gain dB": 3.14, "holds": False},
    ]
    _, _, *lines = script.markdown(rows).splitlines()
    assert lines == [
        "| moons | 6 | AB3 | 0.012 → 0.0062 | 0.01 → 0.005 | 0.04 → 0.02 | −50% | 7 | yes |",
        "| digits | 6 | ABM2 | 0.012 → 0.0062 | 0.01 → 0.005 | 0.04 → 0.02 | 3.1 dB | 7 | **no** |",
    ]
