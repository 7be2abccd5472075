"""Jobs in processes of this machine."""

import time

import pytest

from dise_experiments.reproduce.grid import State
from dise_experiments.reproduce.job import carry_out
from dise_experiments.reproduce.local import LocalEngine
from dise_experiments.reproduce.lock import locked
from dise_experiments.reproduce.logs import failure, log_end, log_file
from dise_experiments.run.config import ExperimentError

pytestmark = pytest.mark.long


def checkpointed(out):
    return any(out.glob("circles/sample/*/checkpoints/last.ckpt"))


def test_all_cells_are_done_and_leave_no_log(unbroken, cells):
    found = cells(unbroken)
    assert [cell.state(unbroken) for cell in found] == [State.done] * 2
    assert not list((unbroken / "logs").rglob("*.log"))


def test_one_worker_has_the_same_results_as_two(unbroken, carried_out, work, results, tmp_path):
    assert carried_out(tmp_path, LocalEngine(1, work(tmp_path))).failed == {}
    assert results(tmp_path) == results(unbroken)


def test_a_closed_engine_leaves_nothing_running_and_everything_resumable(
    unbroken, carried_out, cells, work, results, tmp_path
):
    engine = LocalEngine(2, work(tmp_path))
    for cell in cells(tmp_path)[:2]:
        engine.submit(cell)
    for _ in range(600):
        if checkpointed(tmp_path):
            break
        time.sleep(0.05)
    processes = [process for _, process in engine.running]
    engine.close()
    assert not any(process.is_alive() for process in processes)
    assert checkpointed(tmp_path)
    assert carried_out(tmp_path).failed == {}
    assert results(tmp_path) == results(unbroken)


def test_a_failed_cell_is_shown_and_repeated(unbroken, carried_out, results, tmp_path, capsys):
    (run,) = (unbroken / "circles" / "sample").glob("flow-error-*")
    blocked = tmp_path / "circles" / "sample" / run.name
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")
    failed = carried_out(tmp_path).failed
    assert [reason.partition(",")[0].partition(":")[0] for reason in failed.values()][:1] == ["FileExistsError"]
    assert len(failed) == 3  # β of both published selectors is of this training
    shown = capsys.readouterr().err
    assert "/train: failed; the end of" in shown
    assert "FileExistsError: [Errno 17]" in shown
    blocked.unlink()
    assert carried_out(tmp_path).failed == {}
    assert results(tmp_path) == results(unbroken)


def test_a_killed_process_fails_its_cell(cells, work, tmp_path):
    engine = LocalEngine(1, work(tmp_path))
    cell = cells(tmp_path)[0]
    engine.submit(cell)
    engine.running[0][1].kill()
    assert engine.finished(60) == [(cell, "the process was ended by signal SIGKILL")]
    assert engine.finished(0) == []
    engine.close()


# ---- the job, in this process


def test_an_expected_error_is_one_line_of_the_log(cells, work, tmp_path):
    published = cells(tmp_path)[-1]
    assert carry_out(published, work(tmp_path)) is False  # nothing is trained
    assert published.state(tmp_path) is State.failed
    assert "is not a run directory" in failure(tmp_path, published.name)
    assert not any("Traceback" in line for line in log_end(tmp_path, published.name))


def test_two_processes_never_do_the_same_job(cells, work, tmp_path, monkeypatch):
    monkeypatch.setattr("dise_experiments.reproduce.job.PATIENCE", 0.1)
    cell = cells(tmp_path)[0]
    with locked(log_file(tmp_path, cell.name).with_suffix(".lock"), "taken"):
        assert carry_out(cell, work(tmp_path)) is False
    assert "another process does this job" in failure(tmp_path, cell.name)
    assert not cell.config.directory(tmp_path).exists()


def test_a_lock_is_free_again_after_its_holder(tmp_path):
    lock = tmp_path / "lock"
    with locked(lock, "taken"), pytest.raises(ExperimentError, match="taken"), locked(lock, "taken"):
        pass
    with locked(lock, "taken"):
        pass
