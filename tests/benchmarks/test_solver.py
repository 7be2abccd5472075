"""The benchmark of a step's time: all ways solve the same problem; it runs, prints a table and writes JSON."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from torchdiffeq import odeint

FOLDER = Path(__file__).parents[2] / "benchmarks"
TITLES = {f"{f}, {kind} gradients" for f in ("Van der Pol", "tanh network") for kind in ("with", "without")}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return runpy.run_path(str(FOLDER / "solver.py"))


@pytest.fixture
def peers(script):
    return sys.modules["peers"]


@pytest.mark.parametrize("name", ["VanDerPol", "TanhNetwork"])
def test_fields_are_the_same_for_diffrax(peers, name):
    jnp = pytest.importorskip("jax.numpy")
    f, y = getattr(peers, name)(), torch.tensor([0.3, -1.2])
    weights = tuple(jnp.asarray(p.detach().numpy()) for p in f.parameters())
    theirs = f.for_jax()(0.5, jnp.asarray(y.numpy()), weights)
    assert_close(torch.tensor(theirs.tolist()), f(torch.tensor([[0.5]]), y[None])[0])


@pytest.mark.parametrize("name", [pytest.param("VanDerPol", marks=pytest.mark.long), "TanhNetwork"])
def test_all_ways_reach_the_same_states_and_gradients(peers, name):
    f = getattr(peers, name)()
    y0 = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    task = peers.Task(f, y0, 0.5, 1e-5)
    start = y0.double().requires_grad_()
    exact = type(f)().double()
    expected = odeint(exact, start, torch.tensor([0.0, 0.5]), rtol=1e-10, atol=1e-10)[1]
    expected_gradient = torch.autograd.grad(expected.square().sum(), start)[0]
    ways = {"dise": peers.by_dise(task), "torchdiffeq": peers.by_torchdiffeq(task)}
    for module, make in (("torchode", peers.by_torchode), ("diffrax", peers.by_diffrax)):
        if peers.installed(module):
            ways[module] = make(task)
    for way in ways.values():
        assert_close(way.forward(y0), expected.float(), rtol=1e-3, atol=1e-3)
        assert_close(way.backward(y0), expected_gradient.float(), rtol=1e-2, atol=1e-2)
        assert way.rounds > 1


def test_rows_of_f_are_counted(peers):
    """Every call of torchdiffeq has all rows; dise's are what samples need."""
    task = peers.Task(peers.VanDerPol(), torch.tensor([[0.1, 0.0], [3.0, 3.0], [0.0, 0.0]]), 5.0, 1e-5)
    theirs, ours = peers.by_torchdiffeq(task), peers.by_dise(task)
    assert theirs.rows == 3 * (2 + 6 * theirs.rounds)
    assert ours.rows < 3 * (2 + 6 * ours.rounds)


def test_a_missing_peer_is_said(peers, capsys):
    assert not peers.installed("no_such_library")
    assert "no_such_library is not installed: left out" in capsys.readouterr().out


def test_it_prints_tables_and_writes_json(script, peers, tmp_path, monkeypatch, capsys):
    """Of the quick ways: compiling takes a minute."""
    quick = {"dise": peers.by_dise, "torchdiffeq": peers.by_torchdiffeq}
    monkeypatch.setitem(
        script["compare"].__globals__, "ways", lambda task: {name: make(task) for name, make in quick.items()}
    )
    arguments = ["--batch", "4", "--repeats", "1", "--t1", "0.3", "--out", tmp_path / "out.json"]
    monkeypatch.setattr(sys, "argv", ["solver.py", *map(str, arguments)])
    script["main"]()
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["batch"], result["threads"], set(result["results"])) == (4, 1, TITLES)
    for ways in result["results"].values():
        assert set(ways) == set(quick)
        for row in ways.values():
            assert row["ms_step"] == row["ms"] / row["rounds"]
            assert row["difference"] < 1e-2
    printed = capsys.readouterr().out
    assert printed.count("torchdiffeq's step") == len(TITLES)
