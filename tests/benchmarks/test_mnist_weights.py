"""λ read as a mean's, and NFE in three ways, on a block whose NFE are known."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dise
from dise_experiments.run.config import RunConfig

script = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "mnist_weights.py")))


class Slow(nn.Module):
    """dy/dt = 1e-3·y, which one step over the span solves."""

    def forward(self, t, y):
        return 1e-3 * y


@pytest.mark.parametrize(("reduce", "weight"), [("mean", 0.25), ("sum", 32.0)])
def test_a_sum_is_a_mean_with_the_weight_of_a_batch(reduce, weight):
    config = RunConfig.of("mnist", "long", reg="error", weight=0.25, reduce=reduce)
    assert script.weight_of_mean(config) == weight


def test_nfe_of_images_and_of_batches():
    model = nn.Sequential(dise.NeuralODE(Slow(), script.DOPRI), nn.Identity())
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = x.argmax(1)
    labels[0] = (labels[0] + 1) % 3
    right, spent = script.measure(model, list(zip(x.split(3), labels.split(3), strict=True)))
    assert right.tolist() == [False] + 5 * [True]
    assert spent["NFE, first step span"] == 7  # k1, and six of one step
    assert spent["NFE"] >= 14  # the heuristic's two, and two steps or more
    with model[0].using(script.DOPRI, batched=False), model[0].recording() as records:
        _ = [model(part) for part in x.split(3)]
    assert spent["NFE of a batch"] == sum(int(record.solution.nfe) for record in records) / 2
