"""The order of jobs, with an engine that does nothing but end them as it is told."""

from io import StringIO

import pytest
from rich.console import Console

from dise_experiments.reproduce import schedule as module
from dise_experiments.reproduce import view as view_module
from dise_experiments.reproduce.engine import Engine
from dise_experiments.reproduce.grid import Cell, Part, grid, with_trainings
from dise_experiments.reproduce.logs import note_failure
from dise_experiments.reproduce.schedule import Schedule, carry_out_all
from dise_experiments.reproduce.view import LiveView, View, duration, summary, view_of
from dise_experiments.run.config import RunConfig
from dise_experiments.run.rundir import claim_run


class Told(Engine):
    """Jobs end in order, one per look; those of failing names fail, and those of dying names lose their process."""

    def __init__(self, out, workers=1, failing=(), dying=(), empty=()):
        self.out, self.workers = out, workers
        self.failing, self.dying, self.empty = failing, dying, empty
        self.begun, self.running, self.most = [], [], 0

    def submit(self, cell):
        self.begun.append(cell.name)
        self.running.append(cell)
        self.most = max(self.most, len(self.running))

    def finished(self, seconds):
        cell = self.running.pop(0)
        if cell.name in self.dying:
            return [(cell, "the process was ended by signal SIGKILL")]
        if cell.name in self.failing:
            note_failure(self.out, cell.name, "diverged")
        elif cell.name not in self.empty:
            claim_run(cell.config.directory(self.out), cell.config)
            cell.results(self.out).parent.mkdir(exist_ok=True)
            cell.results(self.out).touch()
        return [(cell, None)]

    def close(self):
        pass


@pytest.fixture
def cells(tmp_path):
    return with_trainings(grid(["circles"], "sample", seeds=2, regs=["none", "error"]), tmp_path)


def carried_out(cells, out, **options):
    engine, schedule = Told(out, **options), Schedule(cells, 0)
    carry_out_all(schedule, out, engine, View(out))
    return engine, schedule


@pytest.mark.parametrize("workers", [1, 2, 3, 100])
def test_every_cell_begins_once_after_those_that_it_needs(cells, tmp_path, workers):
    engine, schedule = carried_out(cells, tmp_path, workers=workers)
    assert sorted(engine.begun) == sorted(cell.name for cell in cells)
    for cell in cells:
        assert all(engine.begun.index(n.name) < engine.begun.index(cell.name) for n in cell.needs)
    assert engine.most == workers or 4 <= engine.most < workers  # four trainings wait for nothing
    assert (schedule.done, schedule.failed) == (len(cells), {})


def test_a_failed_cell_stops_those_alone_that_need_it(cells, tmp_path, capsys):
    bad = "circles/sample/flow-error-seed0/train"
    engine, schedule = carried_out(cells, tmp_path, workers=2, failing=[bad])
    needing = {cell.name for cell in cells if bad in [n.name for n in cell.needs]}
    assert len(needing) == 3  # its own two, and β of the flow without regularizer
    assert schedule.failed == {bad: "diverged"} | dict.fromkeys(needing, f"needs {bad}, which failed")
    assert sorted(engine.begun) == sorted({cell.name for cell in cells} - needing)
    assert schedule.done == len(cells) - 4
    assert f"{bad}: failed" in capsys.readouterr().err


def test_a_lost_process_fails_its_cell(cells, tmp_path, capsys):
    bad = cells[0].name
    _, schedule = carried_out(cells, tmp_path, dying=[bad])
    assert schedule.failed[bad] == "the process was ended by signal SIGKILL"
    assert "failed: the process was ended by signal SIGKILL" in capsys.readouterr().err


def test_a_job_without_results_fails(cells, tmp_path):
    _, schedule = carried_out(cells, tmp_path, empty=[cells[0].name])
    assert "the same folder on all machines" in schedule.failed[cells[0].name]


def test_the_time_left_is_that_of_like_cells(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    run = [RunConfig.of("circles", "sample", seed=seed) for seed in range(3)]
    cells = [Cell(config, part) for config in run for part in (Part.train, Part.standard)]
    schedule = Schedule(cells, 4)

    def do(cell, seconds):
        schedule.begin(cell)
        clock[0] += seconds
        return schedule.end(cell, None)

    assert schedule.seconds_left(1) is None
    assert do(cells[0], 60) == 60
    assert schedule.seconds_left(1) == 5 * 60  # of no evaluation is the time known
    do(cells[1], 10)
    assert schedule.seconds_left(1) == 2 * 60 + 2 * 10
    schedule.begin(cells[2])
    clock[0] += 25
    assert schedule.seconds_left(1) == 35 + 10 + 60 + 10
    assert schedule.seconds_left(2) == (35 + 10 + 60 + 10) / 2
    clock[0] += 100  # longer than the others took
    assert schedule.seconds_left(1) == 0 + 10 + 60 + 10
    assert summary(schedule, 1) == "6 of 10 done, 1 running, 0 failed, about 1 min 20 s left"


def test_a_terminal_has_one_live_view_and_shows_failures(cells, tmp_path, monkeypatch):
    shown, bad = StringIO(), cells[0].name
    monkeypatch.setattr(view_module, "errors", Console(file=shown, force_terminal=True, width=160))
    view, schedule = view_of(tmp_path), Schedule(cells, 2)
    assert isinstance(view, LiveView)
    carry_out_all(schedule, tmp_path, Told(tmp_path, failing=[bad]), view)
    assert not view.lines  # no cell is shown as running
    last = shown.getvalue().rpartition("cells")[2]
    assert f"{schedule.done}/{schedule.total}" in last
    assert f"{len(schedule.failed)} failed" in last
    assert f"{bad}: failed; the end of" in shown.getvalue()


def test_elsewhere_a_line_is_one_cell(cells, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    carried_out(cells, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 * len(cells)
    assert all(": begins" in line or ": done in" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (600, "10 min 0 s"), (3600, "1 h 0 min"), (9000, "2 h 30 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
