"""Accuracy by several integrators of one model, on a block whose answers are known."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dise

script = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "validity.py")))


class Turning(nn.Module):
    """A rotation by 2 radians in t from 0 to 1, which Euler's single step misses."""

    def forward(self, t, y):
        return 2 * torch.stack([-y[:, 1], y[:, 0]], 1)


class Sign(nn.Module):
    """Logits of whether the second coordinate is positive."""

    def forward(self, y):
        return torch.stack([-y[:, 1], y[:, 1]], 1)


@pytest.mark.parametrize("number", [1, 3])
def test_integrators_that_change_answers_are_seen(number):
    model = nn.Sequential(dise.NeuralODE(Turning(), dise.Dopri5()), Sign())
    angles = torch.linspace(0, 6.2, 60)
    y = torch.stack([angles.cos(), angles.sin()], 1)
    labels = (torch.sin(angles + 2) > 0).long()
    rows = script.measure(model, list(zip(y.chunk(number), labels.chunk(number), strict=True)))
    found = {row["integrator"]: row for row in rows}
    tight = str(script.TIGHTEST)
    assert found[tight] == {"integrator": tight, "accuracy": 1.0, "other answers": 0, "p": 1.0}
    assert found["RK4(steps=4)"]["other answers"] == 0
    euler = found["Euler"]
    assert euler["other answers"] > 5
    assert euler["accuracy"] == pytest.approx(1 - euler["other answers"] / 60)
    assert euler["p"] < 0.05
