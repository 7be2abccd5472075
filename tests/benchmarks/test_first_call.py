"""The benchmark of the first compiled solve: an empty cache for each, medians, bars on the network alone."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "first_call.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def processes(script, monkeypatch):
    """The requests and folders of processes, which answer that their first solve took 1, 2, 3, … seconds."""
    seen = []

    def run(command, *, env, **options):
        seen.append((json.loads(command[-1]), env["TMPDIR"], env["TORCHINDUCTOR_CACHE_DIR"]))
        answer = {"first_s": float(len(seen)), "first_cpu_s": 2.0, "again_s": 0.1}
        return subprocess.CompletedProcess(command, 0, json.dumps(answer), "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setitem(script["main"].__globals__, "installed", lambda name: False)
    return seen


def run_main(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["first_call.py", *map(str, arguments)])
    script["main"]()


def test_each_first_solve_has_an_empty_cache_and_the_next_process_its_files(script, processes, tmp_path, monkeypatch):
    run_main(script, monkeypatch, "--repeats", 1, "--out", tmp_path / "out.json")
    folders = [folder for _, folder, _ in processes]
    assert folders[::2] == folders[1::2]
    assert len(set(folders)) == len(processes) / 2 == 8
    assert all(Path(cache).parent == Path(folder) for _, folder, cache in processes)
    assert all(not Path(folder).exists() for folder in folders)
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row["first_s"] for row in rows] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert [row["on_disk_s"] for row in rows] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert [(row["field"], row["gradients"], row["way"]) for row in rows] == [
        (request["field"], request["gradients"], request["way"]) for request, _, _ in processes[::2]
    ]


def test_medians(script, processes, tmp_path, monkeypatch):
    run_main(script, monkeypatch, "--repeats", 3, "--out", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row["first_s"] for row in rows] == [1 + 2 * i + 16 for i in range(8)]


def test_bars_are_the_networks(script):
    rows = [
        {"field": field, "gradients": gradients, "way": way, "first_s": seconds}
        | {"first_cpu_s": 1.0, "again_s": 1.0, "on_disk_s": 1.0}
        for field, gradients, way, seconds in [
            ("Van der Pol", False, "dise, compiled", 4.0),
            ("tanh network", False, "dise, compiled", 4.0),
            ("tanh network", False, "dise, compiled fast", 6.0),
            ("tanh network", True, "dise, compiled", 11.0),
            ("tanh network", True, "diffrax, jit", 3.0),
        ]
    ]
    verdicts = [line[-2:] for line in script["table"](rows)[1:]]
    assert verdicts == [("", ""), ("5", "yes"), ("5", "no"), ("12", "yes"), ("", "")]
    lines = script["markdown"](rows).strip().splitlines()
    assert len(lines) == 2 + len(rows)
    assert {line.count("|") for line in lines} == {10}


@pytest.mark.parametrize("gradients", [False, True])
def test_a_first_call_solves(script, monkeypatch, gradients):
    """With a compilation that does nothing."""
    monkeypatch.setattr(torch, "compile", lambda function, **arguments: function)
    found = script["first_call"]("Van der Pol", "dise, compiled", 3, 0.5, gradients=gradients)
    assert set(found) == {"first_s", "first_cpu_s", "again_s"}
    assert min(found.values()) > 0
