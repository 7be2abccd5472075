"""A run small enough to be trained in a test: real digits, 64 to train on, 40 held out, 40 to test."""

import shutil
from contextlib import contextmanager
from functools import partial

import pytest

from dise.select import choose_penalty
from dise_experiments.mnist import task as mnist_task
from dise_experiments.mnist.data import MnistSplits, load_mnist_sample
from dise_experiments.mnist.presets import PRESETS, Preset
from dise_experiments.run.config import RunConfig
from dise_experiments.run.evaluate import evaluate_run
from dise_experiments.run.select import select_run
from dise_experiments.run.train import train_run

TINY = Preset(data="sample", epochs=2, schedule="one-cycle", batch_size=8, learning_rate=1.6, monitored=20)
PENALTIES = (1e3, 1e5)


@contextmanager
def small_world(preset=TINY):
    """Within it, preset "sample" is tiny and so are the images, and M is one of two."""
    sample = load_mnist_sample()
    splits = MnistSplits(sample.train[:64], sample.held_out[:40], sample.test[:40])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "sample", preset)
        patch.setattr(mnist_task, "load_mnist_sample", lambda: splits)
        patch.setattr(
            "dise_experiments.run.select.choose_penalty", partial(choose_penalty, penalties=PENALTIES, folds=4)
        )
        yield splits


@pytest.fixture(scope="session")
def small():
    """small_world, for fixtures that outlive a test."""
    return small_world


@pytest.fixture
def tiny():
    """The tiny splits, which the preset "sample" reads."""
    with small_world() as splits:
        yield splits


@pytest.fixture
def tiny_steps():
    """As `tiny`, with the paper's kind of schedule."""
    with small_world(TINY.model_copy(update={"schedule": "steps"})) as splits:
        yield splits


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """OUT of one run, trained, selected and evaluated; copy what you change."""
    out = tmp_path_factory.mktemp("out")
    with small_world():
        config = RunConfig.of("mnist", "sample", reg="error")
        path = config.directory(out)
        stages = {"trained": out / "trained", "selected": out / "selected"}
        train_run(config, path, device="cpu")
        shutil.copytree(path, stages["trained"])
        select_run(path)
        shutil.copytree(path, stages["selected"])
        evaluate_run(path)
    return {"config": config, "evaluated": path, **stages}


@pytest.fixture
def stage(finished, tmp_path, tiny):
    """stage(name): a copy of the run as it was after being "trained", "selected" or "evaluated"."""

    def copy(name):
        return shutil.copytree(finished[name], finished["config"].directory(tmp_path / "out"))

    return copy


@pytest.fixture
def snapshot():
    """snapshot(path): every file's content and time of change."""

    def take(path):
        return {
            file.relative_to(path): (file.read_bytes(), file.stat().st_mtime_ns)
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }

    return take
