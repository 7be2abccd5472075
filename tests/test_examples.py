"""The examples run."""

import importlib.util
import sys
from pathlib import Path

import pytest

from dise_experiments.mnist.data import MnistSplits, load_mnist_sample

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.long
def test_an_odenet_on_torchdiffeq_is_made_dynamic(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("torchdiffeq_odenet", EXAMPLES / "torchdiffeq_odenet.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    whole = load_mnist_sample()
    few = MnistSplits(whole.train[:64], whole.held_out[:40], whole.test[:100])
    monkeypatch.setattr(example, "load_mnist_sample", lambda: few)
    monkeypatch.setattr(sys, "argv", ["torchdiffeq_odenet.py", "--epsilon", "0.3"])
    example.main()
    lines = capsys.readouterr().out.splitlines()
    timed = [line for line in lines if "ms per batch of 100" in line]
    assert [line.split(" s  ")[1].split(":")[0] for line in timed] == ["torchdiffeq", "dynamic"]
    assert any("at most 30.00% with confidence 0.95" in line for line in lines)
    assert lines[-1].startswith("the block is")
