"""Data-parallel training: two processes have the loss curve of one at the same global batch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from dise_experiments.common.errors import UserError
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.processes import Processes, in_processes, rank
from dise_experiments.run.rundir import open_run, read_json
from dise_experiments.run.train import read_log, train_run

SCRIPT = Path(__file__).with_name("training_in_parts.py")
NAMES = ("mean", "sum", "parameters", "steer", "one system", "bound", "cross-entropy")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("training_in_parts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def alone(script, tmp_path_factory):
    """OUT of the trainings in this process."""
    out = tmp_path_factory.mktemp("alone")
    with script.small_world():
        for name, config in script.configs().items():
            train_run(config, out / name, device="cpu")
    return out


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """OUT of the trainings in two processes of torchrun."""
    out = tmp_path_factory.mktemp("shared")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(out)], env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (out / "stderr").write_text(done.stderr)
    assert (out / "rank0").exists()
    assert (out / "rank1").exists()
    return out


# Losses and penalties are float32 sums in another order: one step differs by about 1e-7.
# Two systems of 32 points have other steps than one of 64, so they differ by the solver's tolerance of 1e-5.
LOSSES = dict.fromkeys(NAMES, 1e-5) | {"one system": 1e-3}
# A bias before a normalization has no gradient but rounding, so weights are compared with a step's size: 0.02 · 7/128
# for MNIST; Adam divides by a gradient's own size, so small gradients that differ give steps that differ, 3e-3 each.
WEIGHTS = dict.fromkeys(NAMES, 1e-4) | {"one system": 2e-3}


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_have_the_loss_curve_of_one(alone, shared, name):
    one, two = (read_log(out / name) for out in (alone, shared))
    assert [row["step"] for row in two] == [row["step"] for row in one]
    assert len(one) >= 6
    for key in ("train/loss", "train/penalty"):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=LOSSES[name]), key
    if name not in ("one system", "bound", "cross-entropy"):
        for key in ("train/accuracy", "train/nfe"):
            assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=1e-6), key


@pytest.mark.long
def test_unused_parameters_are_searched_for_only_where_there_are_some(shared):
    """The cross-entropy alone leaves the decoder out, so that torch says nothing of its training either."""
    assert "unused parameters" not in (shared / "stderr").read_text()


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_weights_and_held_out_measures_are_those_of_one(alone, shared, name):
    one, two = (load_file(out / name / "model.safetensors") for out in (alone, shared))
    assert_close(two, one, rtol=1e-3, atol=WEIGHTS[name])
    one, two = (read_json(out / name / "training.json") for out in (alone, shared))
    assert one.keys() == two.keys()
    for key in (key for key in one if key.startswith("held_out/") and key[9:] not in ("nfe", "nfe_batch", "error")):
        assert two[key] == pytest.approx(one[key], rel=5e-3, abs=1e-4), key


@pytest.mark.long
def test_the_first_process_alone_writes_files(alone, shared):
    for name in NAMES:
        one, two = (
            {str(file.relative_to(out / name)) for file in (out / name).rglob("*") if "events.out" not in file.name}
            for out in (alone, shared)
        )
        assert two == one
        assert len(list((shared / name / "logs" / "tensorboard").glob("events.out*"))) == 1


@pytest.mark.long
def test_processes_are_started_where_torchrun_is_not(tmp_path, alone):
    changes = ["epochs=1", "iterations=2", "batch_size=64"]
    config = RunConfig.of("circles", "sample", changes=changes)
    assert train_run(config, tmp_path / "two", device="cpu", processes=Processes(2)) is True
    assert train_run(config, tmp_path / "two", device="cpu", processes=Processes(2)) is False
    train_run(config, tmp_path / "one", device="cpu")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert_close(two, one, rtol=1e-3, atol=WEIGHTS["one system"])


# ---- processes


@pytest.mark.long
def test_the_error_of_a_process_is_the_callers_and_the_first_value_the_result():
    assert in_processes(2, os.getenv, "RANK") == "0"
    with pytest.raises(UserError, match=r"nowhere is not a run directory"):
        in_processes(2, open_run, Path("nowhere"))
    with pytest.raises(RuntimeError, match=r"process \d of the training ended with 1"):
        in_processes(2, int, "no number")


@pytest.mark.parametrize(
    ("processes", "environment", "expected"),
    [
        (Processes(), {}, False),
        (Processes(2), {}, True),
        (Processes(2), {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, False),
        (Processes(2, 2), {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, False),
    ],
)
def test_processes_are_started_once(monkeypatch, processes, environment, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.must_be_started is expected
    assert rank() == int(environment.get("RANK", 0))


def test_several_machines_need_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ExperimentError, match="torchrun --nnodes 2 --nproc-per-node 3"):
        _ = Processes(3, 2).must_be_started


def test_other_numbers_than_torchruns_are_refused(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ExperimentError, match="torchrun started 2 processes, 2 on this machine; expected 1 × 1"):
        _ = Processes().must_be_started
