"""A grid of four cells: two trainings of six iterations each, and their published selectors."""

import re

import pytest

from dise_experiments.reproduce.grid import Part, grid, with_trainings
from dise_experiments.reproduce.job import Work
from dise_experiments.reproduce.local import LocalEngine
from dise_experiments.reproduce.schedule import Schedule, carry_out_all
from dise_experiments.reproduce.view import View

CHANGES = ("epochs=3", "iterations=2", "batch_size=64", "selection_sets=4", "test_sets=1")
OPTIONS = [
    *("--task", "circles", "--seeds", "1", "--reg", "none", "--reg", "error", "--selector", "published"),
    *(option for change in CHANGES for option in ("--set", change)),
    *("--device", "cpu", "--workers", "2", "--threads", "1"),
]


@pytest.fixture(scope="session")
def options():
    """The grid's options of `dise reproduce`."""
    return OPTIONS


@pytest.fixture(scope="session")
def cells():
    """cells(out): the cells that are not done, after those that they need."""

    def find(out):
        regs, parts = ["none", "error"], [Part.published]
        return with_trainings(grid(["circles"], "sample", seeds=1, regs=regs, parts=parts, changes=CHANGES), out)

    return find


@pytest.fixture(scope="session")
def work():
    """work(out): what the grid's jobs share."""
    return lambda out: Work(out, None, "cpu", 1)


@pytest.fixture(scope="session")
def carried_out(cells, work):
    """carried_out(out, engine): the schedule after all cells are carried out, by default on two local workers."""

    def carry_out(out, engine=None):
        schedule, engine = Schedule(cells(out), 0), engine or LocalEngine(2, work(out))
        try:
            carry_out_all(schedule, out, engine, View(out))
        finally:
            engine.close()
        return schedule

    return carry_out


@pytest.fixture(scope="session")
def unbroken(carried_out, tmp_path_factory):
    """OUT of an uninterrupted run."""
    out = tmp_path_factory.mktemp("unbroken")
    assert carried_out(out).failed == {}
    return out


@pytest.fixture(scope="session")
def results():
    """results(out): the content of all files with numbers, without seconds."""

    def read(out):
        found = {
            str(file.relative_to(out)): file.read_bytes()
            for name in ("metrics.json", "selection.json", "*.safetensors", "training.json")
            for file in sorted((out / "circles").rglob(name))
        }
        assert found
        return {name: re.sub(rb'"seconds": [^,]*,', b"", content) for name, content in found.items()}

    return read
