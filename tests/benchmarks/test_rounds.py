"""What a round of the eager loop costs beside f, in operators, whose number repeats exactly; and its benchmark."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).parents[2] / "src"
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "rounds.py"

# operators per round that compute something, without and with gradients; more are slower in every solve
LIMITS = {
    "plain": (54, 67),
    "50 save points": (56, 69),
    "an event that does not happen": (63, 79),
    "an event that stops": (85, 103.5),
    "record": (55.5, 68.5),
}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "gradients"])
def test_operators_per_round(script, kind, gradients):
    y0 = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))
    f = script["VanDerPol"]()
    computing, views = script["operators_per_round"](f, y0, 10.0, kind, gradients=gradients)
    assert computing <= LIMITS[kind][gradients]
    assert views < computing


class Decay(torch.nn.Module):
    """y' = −y, with some operators too many."""

    def __init__(self, idle):
        super().__init__()
        self.idle = idle

    def forward(self, t, y):
        for _ in range(self.idle):
            y.clone()
        return -y


def test_operators_of_f_are_not_counted(script):
    count = script["operators_per_round"]
    counts = [count(Decay(idle), torch.ones(2, 2), 1.0, "plain", gradients=False) for idle in (0, 50)]
    assert counts[0] == counts[1]


def test_operators_are_counted_by_place(script):
    y0 = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    operators, rounds = script["counted"](script["VanDerPol"](), y0, 1.0, "plain", gradients=False)
    places = operators.computing()
    assert places["running_sums.RunningSums._include"] == 7 * rounds  # one for each stage
    assert places["step.Attempt._advance"] == 6 * rounds
    table = script["places"](y0, 1.0)
    assert table.row_count > 10
    assert len(table.columns) == 1 + len(LIMITS)


@pytest.mark.long
def test_two_checkouts_are_compared(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(script["main"].__globals__, "KINDS", {"plain": script["KINDS"]["plain"]})
    out = tmp_path / "out.json"
    arguments = ["--before", SOURCE, "--batch", "2", "--t1", "0.1", "--repeats", "1", "--out", out]
    monkeypatch.setattr(sys, "argv", ["rounds.py", *map(str, arguments)])
    script["main"]()
    results = json.loads(out.read_text())["results"]
    assert len(results) == 4
    assert all(row["before_ms"] > 0 and row["after_to_before"] > 0 for row in results)
    assert "after_to_torchdiffeq" in capsys.readouterr().out
