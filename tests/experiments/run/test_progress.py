"""What a training shows: one bar in a terminal, one line per epoch elsewhere, and nothing of other libraries."""

import io
import os
import pty
import re
import subprocess
import sys
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from dise_experiments.common.task import Quality
from dise_experiments.run import progress
from dise_experiments.run.progress import EpochLines, TrainingBar, measures

ACCURACY = Quality("accuracy", "accuracy", lambda row: row["accuracy"])
TRAIN = """
from dise_experiments.mnist import task
from dise_experiments.mnist.data import MnistSplits, load_mnist_sample
sample = load_mnist_sample()
task.load_mnist_sample = lambda: MnistSplits(sample.train[:64], sample.held_out[:40], sample.test[:40])
from dise_experiments.cli import main
main()
"""


def trainer(step=0, **metrics):
    values = {name.replace("__", "/"): torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(
        callback_metrics=values, global_step=step, max_epochs=2, num_training_batches=4, current_epoch=0
    )


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({}, ""),
        ({"train__nfe": 20.04}, "NFE 20.0"),
        ({"train__nfe": 20.0, "held_out__accuracy": 0.9124}, "NFE 20.0, held-out accuracy 0.912"),
        ({"held_out__accuracy": 0.5, "train__accuracy": 0.7}, "held-out accuracy 0.500"),  # a ResNet has no NFE
    ],
)
def test_measures(metrics, text):
    assert measures(trainer(**metrics), ACCURACY) == text


@pytest.mark.parametrize(("terminal", "kind"), [(True, TrainingBar), (False, EpochLines)])
def test_a_bar_is_for_terminals(monkeypatch, terminal, kind):
    monkeypatch.setattr(progress, "errors", Console(file=io.StringIO(), force_terminal=terminal))
    assert type(progress.progress(ACCURACY)) is kind


def test_the_bar_spans_the_whole_training_and_a_resumed_one_starts_where_it_was_cut(monkeypatch):
    monkeypatch.setattr(progress, "errors", Console(file=io.StringIO(), force_terminal=True, width=80))
    bar = TrainingBar(ACCURACY)
    bar.on_train_start(trainer(step=4), None)
    (task,) = bar.bar.tasks
    assert (task.completed, task.total) == (4, 8)
    bar.on_train_batch_end(trainer(step=5, train__nfe=14.0), None, None, None, 0)
    assert (task.completed, task.fields["measures"]) == (5, "NFE 14.0")
    bar.on_train_end(trainer(), None)
    assert bar.bar.finished is False
    assert not bar.bar.live.is_started


def train(out, **options):
    arguments = ["train", "mnist", "--model", "rknet", "--device", "cpu", "--set", "batch_size=16", "--out", str(out)]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    return subprocess.run([sys.executable, "-c", TRAIN, *arguments], env=environment, **options)


@pytest.mark.long
def test_a_piped_training_prints_only_our_lines(tmp_path):
    result = train(tmp_path, capture_output=True, text=True, check=True)
    path = tmp_path / "mnist" / "sample" / "rknet-none-batch_size=16-seed0"
    assert result.stdout == f"{path}\n"
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    for epoch, line in enumerate(lines[:2], start=1):
        assert re.fullmatch(rf"epoch {epoch}/2: NFE 4\.0, held-out accuracy 0\.\d{{3}}", line)
    assert lines[2] == "trained"


@pytest.mark.long
def test_a_training_in_a_terminal_is_one_bar(tmp_path):
    controller, terminal = pty.openpty()
    shown = bytearray()
    reader = Thread(target=_read_all, args=(controller, shown))  # a terminal that is not read blocks its writer
    reader.start()
    try:
        train(tmp_path, stdout=subprocess.PIPE, stderr=terminal, check=True)
    finally:
        os.close(terminal)
        reader.join()
        os.close(controller)
    plain = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode()
    lines = {line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()}
    assert "trained" in lines
    assert all(line.startswith("training ") for line in lines - {"trained"})
    assert any(re.search(r"100% 0?0:\d\d NFE 4\.0, held-out accuracy 0\.\d{3}$", line) for line in lines)
    assert max(map(len, lines)) <= 80


def _read_all(descriptor, shown):
    """Read until the other side is closed, which the system tells by an error."""
    try:
        while chunk := os.read(descriptor, 4096):
            shown.extend(chunk)
    except OSError:
        return
