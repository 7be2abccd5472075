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
    if sys.modules["floor"].library() is not None:
        ways["by hand"] = peers.by_hand(task)
    for way in ways.values():
        assert_close(way.forward(y0), expected.float(), rtol=1e-3, atol=1e-3)
        assert way.rounds > 1
        if way.backward is not None:
            assert_close(way.backward(y0), expected_gradient.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["save points", "event"])
def test_save_points_and_events_are_the_same(peers, kind):
    task = peers.Task(peers.VanDerPol(), torch.tensor([[0.1, 0.0], [1.0, -1.0]]), 0.5, 1e-6, kind)
    ways = [peers.by_dise(task), peers.by_torchdiffeq(task)]
    if peers.installed("diffrax"):
        ways.append(peers.by_diffrax(task))
    expected = odeint(task.f, task.y0, torch.linspace(0.0, 0.5, 50), rtol=1e-7, atol=1e-7)
    expected = expected.transpose(0, 1) if kind == "save points" else expected[-1]
    for way in ways:
        assert_close(way.forward(task.y0), expected, rtol=1e-4, atol=1e-4)


def test_rows_of_f_are_counted(peers):
    """Every call of torchdiffeq has all rows; dise's are what samples need."""
    task = peers.Task(peers.VanDerPol(), torch.tensor([[0.1, 0.0], [3.0, 3.0], [0.0, 0.0]]), 5.0, 1e-5)
    theirs, ours = peers.by_torchdiffeq(task), peers.by_dise(task)
    assert theirs.rows == 3 * (2 + 6 * theirs.rounds)
    assert ours.rows < 3 * (2 + 6 * ours.rounds)


@pytest.mark.parametrize("kind", ["end", "save points", "event"])
def test_f_alone_is_the_calls_of_f_in_dise_s_solve(peers, kind):
    """As many, on as many rows, and on the same states: together they have the same sums."""

    class Summed(peers.Counter):
        total = 0.0

        def forward(self, t, y):
            self.total += float((t + 2 * y).sum())
            return super().forward(t, y)

    def called(way):
        f.calls, f.rows, f.total = 0, 0, 0.0
        states = way.forward(task.y0)
        return states, (f.calls, f.rows, f.total)

    f = Summed(peers.VanDerPol())
    task = peers.Task(f, torch.tensor([[0.1, 0.0], [3.0, 3.0], [0.0, 0.0]]), 2.0, 1e-5, kind)
    alone, ours = peers.by_f_alone(task), peers.by_dise(task)
    states, calls = called(alone)
    called(ours)  # the first solve also checks that f does not mix samples
    expected, expected_calls = called(ours)
    assert_close(states, expected, rtol=0, atol=0)
    assert calls == expected_calls
    assert calls[0] == 2 + 6 * alone.rounds
    assert (alone.rounds, alone.rows) == (ours.rounds, ours.rows) == (ours.rounds, calls[1])


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
    titles = {script["title"](f, k, gradients=g) for f in ("Van der Pol", "tanh network") for k, g in script["CASES"]}
    assert (result["batch"], result["threads"], set(result["results"])) == (4, 1, titles)
    for ways in result["results"].values():
        assert set(ways) == set(quick)
        for row in ways.values():
            assert row["ms_step"] == row["ms"] / row["rounds"]
            assert row["difference"] < 1e-2
    printed = capsys.readouterr().out
    assert printed.count("torchdiffeq's step") == len(titles)


def test_ratios_and_bars_of_the_page(script):
    """Of a field whose steps take torchdiffeq 4 ms."""
    ms = {"f alone": 0.4, "dise": 1.0, "dise, compiled": 0.5, "torchdiffeq": 4.0, "diffrax, jit": 0.25}
    rows = {name: {"ms_step": x} for name, x in ms.items()}
    text = script["markdown"]({"Van der Pol, without gradients": rows, "tanh network, event, without gradients": rows})
    assert "| Van der Pol | end | no | 4.000 | 0.100 | 0.250 | 0.125 | – | – | – | 0.062 | – |" in text
    assert "| Van der Pol | end | no | dise / torchdiffeq | 0.25 | ≤ 0.45 | yes |" in text
    assert "| Van der Pol | end | no | dise, compiled / diffrax, jit | 2.00 | ≤ 1.5 | no |" in text
    assert "| tanh network | event | no | dise, compiled / torchdiffeq | 0.12 | ≤ 0.2 | yes |" in text


def test_without_a_compiler_the_floor_is_left_out(script, monkeypatch, capsys):
    floor = sys.modules["floor"]
    monkeypatch.setattr(floor, "COMPILER", "no_such_compiler")
    assert floor.library.__wrapped__() is None
    assert "no_such_compiler is not installed" in capsys.readouterr().out
