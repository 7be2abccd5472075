"""Renaming a selector in stored runs changes names and no numbers."""

import json
import runpy
from pathlib import Path

RENAME = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "rename_selector.py"))["rename"]


def test_every_place_of_a_name_is_renamed(tmp_path):
    stored = {
        "selection.json": {"selectors": {"paper": {"M": 1000.0}, "set": {}}},
        "metrics.json": {"macs": {"set": {"paper": 3}}, "policies": [{"policy": "DISE (paper)", "nll": 0.1}]},
        "timing.json": {"ode_ms": {"DISE (paper)": 1.5, "random, mix of paper": 2.5}},
    }
    for name, content in stored.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "selector-paper.safetensors").write_bytes(b"weights")
    RENAME(tmp_path, "paper", "table-7")
    found = {name: json.loads((tmp_path / name).read_text()) for name in stored}
    assert found["selection.json"]["selectors"] == {"table-7": {"M": 1000.0}, "set": {}}
    assert found["metrics.json"]["macs"] == {"set": {"table-7": 3}}
    assert found["metrics.json"]["policies"] == [{"policy": "DISE (table-7)", "nll": 0.1}]
    assert found["timing.json"]["ode_ms"] == {"DISE (table-7)": 1.5, "random, mix of table-7": 2.5}
    assert (tmp_path / "selector-table-7.safetensors").read_bytes() == b"weights"
    assert not (tmp_path / "selector-paper.safetensors").exists()


def test_no_stored_run_on_circles_has_the_old_name():
    """There it named a selector of 13 candidates that is not the paper's."""
    runs = (Path(__file__).parents[2] / "results" / "circles-cpu").glob("*/")
    names = {
        name
        for run in runs
        for file in run.glob("selection.json")
        for name in json.loads(file.read_text())["selectors"]
    }
    assert names == {"table-7", "set", "point"}
