import json

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

import dise
from dise.nn import NeuralODE
from dise_experiments.mnist.task import MnistTask
from dise_experiments.run.evaluate import evaluate_run
from dise_experiments.run.report import write_report
from dise_experiments.run.rundir import load_model, read_json
from dise_experiments.run.sample_plots import SAMPLE_PLOTS, _groups, draw_chosen
from dise_experiments.run.samples import SAMPLES, SHOWN, _calibration, _steps, studied_batches
from dise_experiments.run.select import load_dynamic

TASK = MnistTask()


@pytest.fixture(scope="module")
def samples(finished):
    return read_json(finished["evaluated"] / SAMPLES)


@torch.no_grad()
def test_nfe_and_choices_are_those_of_the_test_images(finished, tiny, samples):
    path = finished["evaluated"]
    model = load_model(path, finished["config"])
    ((x, _),) = TASK._test_batches(tiny)
    h0 = model.stem(x)
    assert samples["nfe"] == model.block.solve(h0).nfe.tolist()
    dynamic = load_dynamic(path, "confidence", TASK, model)
    with model.block.using(dynamic):
        assert samples["choice"] == model.block.solve(h0).choice.tolist()
    assert samples["candidates"] == [str(candidate) for candidate in dynamic.candidates]


def test_steps_are_of_the_easiest_and_of_the_hardest(samples):
    nfe, steps = sorted(samples["nfe"]), samples["steps"]
    assert [sample["nfe"] for sample in steps] == [*nfe[:SHOWN], *nfe[-SHOWN:]]
    for sample in steps:
        assert sample["t"][0] == 0
        assert sample["t"][-1] == 1
        assert len(sample["ratio"]) == len(sample["t"]) - 1
        assert 2 + 6 * len(sample["ratio"]) <= sample["nfe"]  # without the rejected ones
        assert max(sample["ratio"]) <= 1


@torch.no_grad()
@pytest.mark.parametrize("row", [0, 2, 3])
def test_steps_of_a_sample_that_has_its_own_span_and_argument(row):
    """Of y' = a·y from 0 to its own end, in two solves."""
    block = NeuralODE(lambda t, y, a: a * y, dise.Dopri5(rtol=1e-6, atol=1e-6))
    rates, ends = torch.tensor([[-1.0], [2.0], [-3.0], [0.5]]), torch.tensor([1.0, 2.0, 0.5, 3.0])
    y0 = torch.ones(4, 1)
    with block.recording() as solves:
        for rows in (slice(0, 3), slice(3, 4)):
            block.solve(y0[rows], t1=ends[rows], sample_args=(rates[rows],))
    steps = _steps(block, solves, row)
    alone = block.solve(y0[row, None], t1=ends[row, None], sample_args=(rates[row, None],), record=True)
    assert steps == {"t": [0.0, *alone.steps.t[0].tolist()], "ratio": alone.steps.ratio[0].tolist()}
    assert steps["t"][-1] == ends[row]


def test_calibration_is_of_bins_by_prediction(finished, tiny):
    path = finished["evaluated"]
    model = load_model(path, finished["config"])
    dynamic = load_dynamic(path, "confidence", TASK, model)
    outcomes = dise.select.run_candidates(
        model, [((x,), y) for x, y in studied_batches(model, TASK, tiny)], TASK.candidates
    )
    costs = dise.Costs.of(outcomes, TASK.rule(None, None, 4))
    found = _calibration(dynamic.selector, costs)
    for i, part in enumerate(found):
        assert part["predicted"] == sorted(part["predicted"])
        assert len(part["actual"]) == 8
        assert np.mean(part["actual"]) == pytest.approx(float(costs.cost[:, i].mean()))  # 40 images, 5 in each bin


def test_stored_metrics_need_the_default_selector_alone(stage):
    path = stage("evaluated")
    (path / SAMPLES).unlink()
    (path / "selector-paper.safetensors").unlink()
    before = (path / "metrics.json").read_bytes()
    evaluate_run(path)
    assert (path / SAMPLES).exists()
    assert (path / "metrics.json").read_bytes() == before


def test_the_report_has_the_figures(stage):
    path = stage("evaluated")
    report = write_report(path.parent)
    text = report.file.read_text()
    for name in [*SAMPLE_PLOTS, "chosen.png"]:
        assert f"{path.name}/{name}" in text
        with Image.open(path / name) as image:
            assert np.asarray(image.convert("L")).std() > 5


# ---- figures


def test_equal_nfe_are_one_group_and_no_group_is_empty():
    nfe = np.array([20] * 90 + [26] * 8 + [32, 38])
    groups = _groups(nfe)
    assert [set(nfe[rows]) for rows in groups] == [{20}, {26, 32, 38}]
    assert sorted(np.concatenate(groups)) == list(range(100))
    assert len(_groups(np.arange(600))) == 6
    assert len(_groups(np.array([7]))) == 1


@pytest.fixture
def study():
    return {
        "candidates": ["Euler", "RK4", "Dopri5"],
        "nfe": [20, 20, 26, 32],
        "choice": [0, 0, 2, -1],
        "steps": [{"t": [0.0, 0.4, 1.0], "ratio": [0.1, 0.0], "nfe": 14}, {"t": [0.0, 1.0], "ratio": [0.5], "nfe": 20}],
        "calibration": [{"predicted": [1.0, 2.0], "actual": [0.0, 2.5]} for _ in range(3)],
    }


@pytest.mark.parametrize("name", SAMPLE_PLOTS)
def test_figures_of_few_samples_with_errors_of_0_and_empty_spans(study, tmp_path, name, recwarn):
    SAMPLE_PLOTS[name](json.loads(json.dumps(study)), "title", tmp_path / name)
    assert (tmp_path / name).stat().st_size > 5_000
    assert not recwarn.list


def test_samples_are_drawn_in_the_row_of_their_candidate(study, tmp_path, monkeypatch):
    drawn, titles, set_title = [], [], mpl.axes.Axes.set_title
    monkeypatch.setattr(
        mpl.axes.Axes,
        "set_title",
        lambda axes, text, **options: titles.append(text) or set_title(axes, text, **options),
    )
    draw_chosen(
        study, lambda axes, i: drawn.append((axes.get_subplotspec().rowspan.start, i)), "title", tmp_path / "c.png"
    )
    assert drawn == [(0, 0), (0, 1), (1, 2)]  # RK4, chosen for none, has no row
    assert titles == ["Euler: 50.0 %", "Dopri5: 25.0 %"]
