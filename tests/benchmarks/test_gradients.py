"""The table of gradients' errors and costs: its references agree with each other, and it tells the modes apart."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GROUPS = {"y0", "parameters", "args", "t0", "t1", "save_at"}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as if it was called as a script
    return runpy.run_path(str(BENCHMARKS / "gradients.py"))


@pytest.mark.long
def test_the_tight_solves_gradients_are_finite_differences(script):
    x, tight = script["Inputs"].draw(1, 2), script["tight"]
    found, expected = (script[name](tight, x, None) for name in ("gradients", "differences"))
    assert found.keys() == GROUPS
    assert_close(found, expected, rtol=1e-7, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("way", ["direct", "backsolve, one system", "torchdiffeq odeint", "torchdiffeq odeint_adjoint"])
def test_all_ways_solve_the_same(script, way):
    x = script["Inputs"].draw(3, 4)
    expected = script["tight"](x, None)
    for method in (script["dopri5"](1e-9), script["fixed"](512)):
        y, saved = script["WAYS"][way](x, method)
        assert_close(y, expected[0], rtol=1e-6, atol=1e-6)
        if method.theirs["method"] == "dopri5":  # torchdiffeq's rk4 interpolates linearly
            assert_close(saved, expected[1], rtol=1e-6, atol=1e-6)


def test_differences_leave_the_inputs_as_they_are(script):
    x = script["Inputs"].draw(2, 3)
    before = [tensor.detach().clone() for group in x.groups.values() for tensor in group]
    script["differences"](script["WAYS"]["direct"], x, script["dopri5"](1e-3))
    assert_close([tensor.detach() for group in x.groups.values() for tensor in group], before, rtol=0, atol=0)


@pytest.mark.long
def test_it_prints_tables_and_writes_json(script, tmp_path, monkeypatch, capsys):
    small = ["--batch", "2", "--width", "3", "--steps", "64", "--runs", "1", "--tol", "1e-4", "--out"]
    monkeypatch.setattr(sys, "argv", ["gradients.py", *small, str(tmp_path / "out.json")])
    script["main"]()
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["about"]["steps"] == 64
    ((at,), costs) = result["accuracy"], result["cost"]
    assert at["tol"] == 1e-4
    assert len(at["ways"]) == 7
    for row in at["ways"].values():
        for errors in row.values():
            assert errors.keys() == GROUPS
            assert max(errors.values()) < 0.1
    exact, detached = (
        at["ways"][name]["finite differences"] for name in ("direct, differentiate_step_sizes", "direct")
    )
    assert max(exact.values()) < 1e-5 < max(detached.values())
    assert at["ways"]["checkpoint"]["tight solve"] == pytest.approx(at["ways"]["direct"]["tight solve"], rel=1e-6)
    assert costs.keys() == at["ways"].keys() - {"direct, differentiate_step_sizes"}
    assert costs["checkpoint"]["peak bytes"] < costs["direct"]["peak bytes"] / 2
    assert costs["backsolve"]["kept bytes"] < costs["checkpoint"]["kept bytes"] < costs["direct"]["kept bytes"]
    assert [costs[name]["calls forward"] for name in costs] == [4 * 64] * 6
    assert costs["direct"]["calls backward"] == costs["torchdiffeq odeint"]["calls backward"] == 0
    printed = capsys.readouterr().out
    assert "Error of the gradients against tight solve" in printed
    assert "odeint_adjoint" in printed
