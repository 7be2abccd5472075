"""JSON files hold JSON: Python's words for infinite numbers and NaN, which other parsers refuse, are text there."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dise
from dise import Dopri5, Euler, NeuralODE
from dise.select.deploy import strict_json
from dise.select.deploy.unit import checksum

ROOT = Path(__file__).parents[3]
WRITERS = {"src/dise/select/deploy/strict_json.py", "src/dise/select/deploy/unit.py"}  # the second what the first made


class Bend(nn.Module):
    """y' = −tanh y."""

    def forward(self, t, y):
        return -y.tanh()


def strictly(text):
    """JSON as in RFC 8259."""

    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_all_numbers_survive():
    values = {"a": [math.inf, -math.inf, 1.5, (0.1, 2)], "b": {"c": math.inf, "d": None, "e": "Infinite"}, "f": True}
    text = strict_json.dumps(values, indent=1)
    assert strictly(text)["b"] == {"c": "Infinity", "d": None, "e": "Infinite"}
    assert strict_json.loads(text) == values | {"a": [math.inf, -math.inf, 1.5, [0.1, 2]]}
    assert math.isnan(strict_json.loads(strict_json.dumps([math.nan]))[0])
    assert strict_json.loads(strict_json.dumps({"hidden": np.int64(3)})) == {"hidden": 3}


def test_files_with_bare_words_are_still_read():
    assert strict_json.loads('[Infinity, -Infinity, "x"]') == [math.inf, -math.inf, "x"]


def test_policies_are_json(tmp_path):
    """The largest step of the reference is infinite."""
    model = nn.Sequential(NeuralODE(Bend(), Dopri5()), nn.Identity()).eval()
    noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    dise.make_dynamic(
        model, noise, epsilon=0.1, risk=dise.select.OutputDeviation(0.2), settings=[Euler(4), Dopri5(rtol=0.1)]
    )
    dise.save_policy(model, tmp_path)
    file, chosen = tmp_path / "policy.json", model[0].integrator
    assert strictly(file.read_text())["reference"]["dt_max"] == "Infinity"
    model[0].integrator = Dopri5()
    dise.load_policy(model, tmp_path)
    assert model[0].integrator == chosen
    signed = strict_json.loads(file.read_text())  # with bare words, as earlier versions wrote and signed it
    signed["checksum"] = checksum({key: value for key, value in signed.items() if key != "checksum"})
    file.write_text(json.dumps(signed))
    assert ": Infinity" in file.read_text()
    model[0].integrator = Dopri5()
    dise.load_policy(model, tmp_path)
    assert model[0].integrator == chosen


def test_committed_results_are_json():
    read = [strictly(file.read_text(encoding="utf-8")) for file in ROOT.glob("results/**/*.json")]
    assert read


@pytest.mark.parametrize("folder", ["src", "experiments/src", "benchmarks", "tools"])
def test_all_writers_write_json(folder):
    writers = {
        str(file.relative_to(ROOT))
        for file in (ROOT / folder).rglob("*.py")
        if re.search(r"(?<!strict_)json\.dumps?\(", file.read_text(encoding="utf-8"))
    }
    assert writers <= WRITERS
