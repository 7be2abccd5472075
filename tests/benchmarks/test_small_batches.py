"""The benchmark of small batches: rows, ratios and bars, on random states."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

from dise import Cascade, Euler, Midpoint, NeuralODE
from dise_experiments.mnist.model import VectorField


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module("small_batches")


def test_each_policy_has_a_row_per_size_with_its_ratios_and_bars(script):
    torch.manual_seed(0)
    block = NeuralODE(VectorField(), script.REFERENCE).eval()
    samples = script.Samples(torch.randn(3, 64, 6, 6), torch.zeros(3))
    policies = {"single": Euler(1), "cascade": Cascade((Euler(1), Midpoint(1)), lambda h: h[:, 0, 0, 0] > 0)}
    rows = script.measure(block, policies, samples, {1: 3, 32: 1})
    assert [(row["policy"], row["batch"]) for row in rows] == [(p, n) for n in (1, 32) for p in policies]
    for row in rows:
        torch.testing.assert_close(row["times_ideal"] * row["nfe"] * row["f_ms"], row["ms"])
        torch.testing.assert_close(row["times_faster"] * row["ms"], row["torchdiffeq_ms"])
    assert rows[0]["nfe"] == 1 < rows[1]["nfe"] <= 2
    rows[0] |= {"times_ideal": 1.99, "times_faster": 12.1}
    rows[1] |= {"times_ideal": 2.01, "times_faster": 12.1}
    lines = script.table({"threads": 2, "runs": {"a": rows}}).splitlines()
    assert lines[4].endswith("| 1.99 (≤ 2) | 12.1 (≥ 12) | yes |")
    assert lines[5].endswith("| 2.01 (≤ 2) | 12.1 (≥ 12) | one |")
