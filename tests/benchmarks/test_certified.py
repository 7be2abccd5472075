"""The benchmark of certified samplers: its verdicts and recalibrations are right on numbers known beforehand."""

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dise import Euler

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def certified(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield import_module("certified")
    for name in ("certified", "fit_solver"):
        sys.modules.pop(name, None)


def row(ratio, share, *, violations=0.0, **further):
    return {"ratio": ratio, "share": share, "violations": violations, **further}


def test_the_bars(certified):
    good = {f"samples {task}": row(0.7, 0.6, nfe=6, c2st=0.5, **{"c2st floor": 0.499}) for task in certified.TASKS[:4]}
    good |= {f"unfitted {task}": row(0.7, 0.6, **{"single nfe": 8.0}) for task in certified.TASKS[:4]}
    rest = {f"samples {task}": row(0.99, 0.1) for task in certified.TASKS[4:]}
    third = {f"log_prob {task}": row(0.9, 0.2, **{"ratio to the reference": 0.3}) for task in certified.POSTERIORS}
    assert all(seen.holds for seen in certified.bars(good | rest | third).values())
    worse = row(1.01, -0.1, nfe=8.1, violations=0.09, c2st=0.52, **{"c2st floor": 0.5})
    broken = {"samples moons": worse, "samples slcp": row(0.9, 0.4, nfe=7), "log_prob slcp": third["log_prob slcp"]}
    assert [seen.holds for seen in certified.bars(good | rest | third | broken).values()] == [
        False,
        False,
        False,
        False,
        True,
        False,
    ]
    assert not any(seen.holds for seen in certified.bars({}).values())


def test_a_bar_over_six_tasks_is_open_until_enough_are_measured(certified):
    def held(*ratios):
        rows = {f"samples {task}": row(ratio, 0.6) for task, ratio in zip(certified.TASKS, ratios, strict=False)}
        return next(iter(certified.bars(rows).values())).holds

    assert held(0.7, 0.7, 0.7, 0.9, 0.9) is None
    assert held(0.7, 0.7, 0.9, 0.9, 0.9) is False
    assert held(0.7, 0.7, 0.7, 0.7) is True
    assert held(0.7, 0.7, 0.7, 0.7, 1.01) is False


def test_the_readmes_tables(certified):
    numbers = {
        "reference nfe": 70.0,
        "single nfe": 8.0,
        "nfe": 5.6,
        "oracle": 4.0,
        "fresh risk": 0.004,
        "draws": (3, 2, 1),
    }
    text = certified.markdown({"samples moons": row(0.7, 0.6) | numbers})
    assert "| samples moons | 6 | 70.00 | 8.00 | 5.60 | 4.00 | 0.70 | 0.60 | 0.40% |" in text
    assert "| share of the oracle's gain ≥ 0.5 on ≥ 3 of 6 | moons 0.60 | **no** |" in text


def test_a_script_writes_between_its_marks(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    readme, page = import_module("readme"), tmp_path / "README.md"
    monkeypatch.setattr(readme, "PAGE", page)
    marks = "<!-- written by: python benchmarks/{0}.py --readme -->\n{1}<!-- end of {0}.py -->\n"
    page.write_text(marks.format("other", "kept\n") + marks.format("mine", "old\n") + "after\n")
    readme.write("new", "mine.py")
    readme.write("newer", "mine.py")
    assert page.read_text() == marks.format("other", "kept\n") + marks.format("mine", "newer\n") + "after\n"
    with pytest.raises(ValueError, match=r"expected the marks .*third\.py"):
        readme.write("new", "third.py")


def test_recalibrations_of_known_risks(certified):
    """Risks of 0, 1.2 % and 0.2 %: of two sequences, the first fails at its second setting, the second passes."""
    singles, policies = (Euler(8), Euler(4)), (Euler(6),)
    lost = torch.zeros(10_000, 3, dtype=torch.float64)
    lost[:120, 1] = lost[:20, 2] = 1
    nfe = torch.tensor([8.0, 4.0, 6.0], dtype=torch.float64).expand(10_000, 3)
    prepared = SimpleNamespace(
        choice=SimpleNamespace(sequences=[singles, policies]),
        numbers=(0, 0, 5000),
        block=SimpleNamespace(integrator=policies[0]),
    )
    found = certified.recalibrated(prepared, certified.Outcomes(lost, nfe))
    assert found["fresh risk"] == pytest.approx(0.002)
    assert found["violations"] <= 0.025  # P[Binomial(5000, 0.012) ≤ 36], δ/2's limit, is 0.04 %
    assert found["mean nfe taken"] == pytest.approx(6.0, abs=0.05)
