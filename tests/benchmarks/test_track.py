"""The history of ratios, in a repository made for the test."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

REPOSITORY = Path(__file__).parents[2]
track = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "benchmarks" / "track.py")))
FILE = "results/solver/ragged.json"


def commit(root, text):
    """Commit the file with this text."""
    (root / FILE).parent.mkdir(parents=True, exist_ok=True)
    (root / FILE).write_text(text)
    for arguments in (["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", root, *arguments], check=True)


def measured(ratio):
    return json.dumps({"ways": {"dise": {"ms": ratio}, "torchdiffeq": {"ms": 1.0}}})


@pytest.fixture
def root(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    commit(tmp_path, '{"another": "form"}')
    commit(tmp_path, measured(0.5))
    return tmp_path


def test_a_ratio_that_became_worse(root):
    commit(root, measured(0.6))
    ((name, entries, change),) = track.changes(root)
    assert name == "solver: ragged spans: dise / torchdiffeq"
    assert [entry.ratio for entry in entries] == [0.5, 0.6]
    assert change == pytest.approx(1.2)


def test_what_is_not_committed_is_the_last(root):
    (root / FILE).write_text(measured(0.4))
    ((_, entries, change),) = track.changes(root)
    assert [entry.revision for entry in entries][-1] == "now"
    assert change == pytest.approx(0.8)


def test_one_measurement_is_no_change(root):
    ((_, entries, change),) = track.changes(root)
    assert (len(entries), change) == (1, 1.0)


@pytest.mark.parametrize(("ratio", "limit", "status"), [(0.6, 1.05, 1), (0.6, 1.3, 0), (0.51, 1.05, 0), (0.4, 1.05, 0)])
def test_the_exit_status_says_that_one_became_worse(root, monkeypatch, capsys, ratio, limit, status):
    commit(root, measured(ratio))
    monkeypatch.setattr(sys, "argv", ["track.py", "--root", str(root), "--limit", str(limit)])
    assert track.main() == status
    assert ("ragged" in capsys.readouterr().out) is not (1 / limit <= ratio / 0.5 <= limit)


def test_committed_files_have_the_forms_that_are_read():
    found = track.changes(REPOSITORY)
    names = {name.partition(":")[0] for name, _, _ in found}
    assert {"solver", "odenet-none-seed0", "odenet-error-seed0", "results"} <= names
    assert all(entries[-1].ratio > 0 for _, entries, _ in found)
