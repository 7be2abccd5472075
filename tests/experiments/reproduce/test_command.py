"""`dise reproduce`: its options, and the program that is interrupted."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import lightning  # noqa: F401  here, or its log would keep writing to the stderr of the test that imported it
import pytest

from dise_experiments.reproduce.lock import locked

with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
ENGINES = ["local", pytest.param("ray", marks=with_ray)]


@pytest.fixture
def dise(dise, monkeypatch, options):
    """`dise reproduce` on the grid of conftest.py, in a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    return partial(dise, "reproduce", *options)


# ---- in this process


def test_listing_shows_states_and_makes_nothing(dise, tmp_path):
    code, printed, said = dise("--dry-run", "--out", tmp_path / "out")
    assert (code, said) == (0, "")
    lines = [line.split(maxsplit=1) for line in printed.splitlines()]
    assert [state for state, _ in lines] == ["waiting"] * 4
    assert [name.rpartition("/")[2] for _, name in lines] == ["train", "train", "published", "published"]
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(dise, tmp_path):
    with locked(tmp_path / ".reproduce.lock", "taken"):
        code, printed, said = dise("--out", tmp_path)
    assert (code, printed) == (2, "")
    assert said == f"error: {tmp_path}: another `dise reproduce` works here; wait for it, or choose another --out\n"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--address", "auto"], "address: only --engine ray has one; add it, or omit --address"),
        (["--reg", "bogus"], "reg: there is no 'bogus'"),
        (["--device", "tpu"], "device: there is no 'tpu'"),
    ],
)
def test_wrong_options_are_one_line(dise, tmp_path, wrong, message):
    code, printed, said = dise(*wrong, "--out", tmp_path / "out")
    assert (code, printed) == (2, "")
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_done_cells_are_reported_and_never_run_again(dise, unbroken):
    before = {file: file.stat().st_mtime_ns for file in unbroken.rglob("*.json")}
    code, printed, said = dise("--out", unbroken)
    assert code == 0
    assert "begins" not in said
    assert "Over seeds: mean ± standard deviation" in printed
    assert (unbroken / "circles" / "sample" / "report.md").exists()
    assert {file: file.stat().st_mtime_ns for file in unbroken.rglob("*.json")} == before
    listed = dise("--dry-run", "--out", unbroken)[1]
    assert [line.split()[0] for line in listed.splitlines()] == ["done"] * 2


# ---- as a program


@pytest.fixture
def started(options, tmp_path):
    """started(*arguments): the running program, with OUT in `tmp_path`."""
    programs = []

    def start(*arguments):
        command = [sys.executable, "-m", "dise_experiments", "reproduce", *options, "--out", str(tmp_path), *arguments]
        environment = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        programs.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
        return programs[-1]

    yield start
    for program in programs:
        if program.poll() is None:
            program.kill()
            program.communicate()


def wait_until(condition, program):
    while program.poll() is None and not condition():
        time.sleep(0.1)


@pytest.mark.long
def test_sigterm_ends_all_jobs_and_kill_9_too(started, unbroken, carried_out, results, tmp_path):
    program = started()
    wait_until(lambda: any((tmp_path / "logs").rglob("*.log")), program)
    program.send_signal(signal.SIGTERM)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 130
    assert said.endswith("interrupted; the same command continues\n")

    program = started()
    wait_until(lambda: any(tmp_path.glob("circles/sample/*/checkpoints/last.ckpt")), program)
    program.kill()
    program.communicate()
    assert carried_out(tmp_path).failed == {}  # at once: jobs wait for those whose parent was killed
    assert results(tmp_path) == results(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_killed_at_random_moments_it_comes_to_the_same_results(started, unbroken, results, tmp_path, engine):
    moments = random.Random(engine)
    for _ in range(5):
        program = started("--engine", engine)
        wait_until((tmp_path / "logs").exists, program)
        time.sleep(moments.uniform(0, 8))
        program.kill()
        program.communicate()
    program = started("--engine", engine)
    _, said = program.communicate()
    assert program.returncode == 0, said
    assert results(tmp_path) == results(unbroken)
