import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F
from torch.testing import assert_close

from dise import RK4, Dopri5, Dynamic, Euler, Status, solve
from dise.select import ClassificationCost
from dise_experiments.common.errors import DataError
from dise_experiments.common.task import Run
from dise_experiments.mnist.data import MnistSplits, load_mnist_sample
from dise_experiments.mnist.paper import TABLE_1, TABLE_3
from dise_experiments.mnist.presets import WEIGHTS, Preset
from dise_experiments.mnist.task import MnistTask
from dise_experiments.run.over_seeds import over_seeds
from dise_experiments.run.registry import TASKS

SMALL = Preset(data="sample", epochs=3, schedule="one-cycle", batch_size=16, learning_rate=0.4, monitored=30)


@pytest.fixture(scope="module")
def task():
    return MnistTask()


@pytest.fixture(scope="module")
def splits():
    sample = load_mnist_sample()
    return MnistSplits(sample.train[:70], sample.held_out[:50], sample.test[:130])


def test_settings_are_the_papers(task):
    assert task.candidates == (Euler(steps=1), RK4(steps=1), Dopri5(rtol=1e-3, atol=1e-3))
    assert task.rule(None, None, 4) == ClassificationCost(alpha=0.3, M=1000)
    weights = {name: task.weights[name] for name in ("kinetic", "l1", "l2", "error")}
    assert weights == {"kinetic": 0.01, "l1": 1e-4, "l2": 1e-4, "error": 5e-3}
    assert task.weights["none"] == 0


def test_rule_takes_other_settings(task):
    assert task.rule(0.1, None, 4) == ClassificationCost(alpha=0.1, M=1000)
    assert task.rule(None, 50, 4) == ClassificationCost(alpha=0.3, M=50)


def test_the_papers_tables():
    # README of the paper, Tables 1 and 3
    assert [(row.accuracy, row.nfe) for row in TABLE_1] == [
        (0.9959, None), (0.9953, None), (0.9960, 26), (0.9965, 20), (0.9956, 20), (0.9961, 20), (0.9964, 14),
        (0.9958, 11.36), (0.9963, 5.79),
    ]  # fmt: skip
    assert TABLE_3 == {"Dopri5": 0.37, "RK4": 0.34, "Euler": 0.29}
    assert sum(TABLE_3.values()) == pytest.approx(1)


def test_every_row_of_table_1_is_a_run_that_there_is(task):
    assert {row.model for row in TABLE_1} == set(task.models)
    assert {row.reg for row in TABLE_1} <= set(task.weights)


def test_shares_are_named_as_the_candidates_are(task):
    assert {str(candidate) for candidate in task.candidates} == set(TABLE_3)


def test_registry_has_the_task():
    assert isinstance(TASKS["mnist"], MnistTask)


def test_the_papers_selector_has_the_papers_penalty_and_the_others_choose(task):
    choosing = {name: spec.tolerance for name, spec in task.selectors.items()}
    assert choosing == {"paper": None, "pooled": 1e-3, "confidence": 1e-3}
    assert {spec.unit for spec in task.selectors.values()} == {"sample"}
    model, h0 = task.models["odenet"](), torch.zeros(2, 64, 6, 6)
    assert all(spec.network(model, 3)(h0, h0).shape == (2, 3) for spec in task.selectors.values())


@pytest.mark.parametrize(
    ("model", "reg", "reason"),
    [
        *(("odenet", reg, None) for reg in WEIGHTS),
        *(("resnet", reg, None) for reg in ("none", "l1", "l2")),
        *(("resnet", reg, "needs an ODE") for reg in ("kinetic", "error", "raw-error")),
        *(("rknet", reg, None) for reg in ("none", "kinetic", "l1", "l2")),
        *(("rknet", reg, "needs DOPRI's stages") for reg in ("error", "raw-error", "weighted-error", "stiffness")),
    ],
)
def test_what_can_be_trained_with_what(task, model, reg, reason):
    found = task.check(model, reg)
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize(("precision", "dtype"), [("float32", None), ("bfloat16", torch.bfloat16)])
def test_first_epochs_are_coarse(task, precision, dtype):
    preset = SMALL.model_copy(update={"coarse_epochs": 2, "precision": precision})
    assert task.coarse(preset, 0, "none") == task.coarse(preset, 1, "kinetic") == (RK4(steps=1), dtype)
    assert task.coarse(preset, 2, "none") == (None if dtype is None else (None, dtype))
    assert task.coarse(SMALL, 0, "none") is None


@pytest.mark.parametrize("reg", ["error", "raw-error", "weighted-error", "stiffness"])
def test_coarse_epochs_take_one_step_of_what_the_regularizer_needs(task, reg):
    coarse = task.coarse(SMALL.model_copy(update={"coarse_epochs": 1}), 0, reg)
    large = torch.full([3, 2], 100.0)  # far outside the tolerance for one step
    solution = solve(lambda t, y: -20 * y, large, 0.0, 1.0, coarse.integrator)
    assert (solution.status == Status.SUCCESS).all()
    assert (solution.n_accepted == 1).all()
    assert (solution.nfe == 7).all()
    assert (solution.error > 1).all()


# ---- batches


def test_training_batches_are_full_and_change_with_the_epoch(task, splits):
    epochs = [list(task.training_batches(splits, SMALL, seed=0, epoch=epoch)) for epoch in (0, 0, 1)]
    assert [len(x) for x, _ in epochs[0]] == [16] * 4
    assert all(torch.equal(a[0], b[0]) for a, b in zip(epochs[0], epochs[1], strict=True))
    assert not torch.equal(epochs[0][0][1], epochs[2][0][1])


def selection(task, splits, on):
    return task.selection_batches(None, splits, on=on, unit="sample")


@pytest.mark.parametrize(
    ("batches", "part", "sizes"),
    [
        (lambda task, splits: task._test_batches(splits), lambda s: s.test, [100, 30]),
        (lambda task, splits: selection(task, splits, on="held-out"), lambda s: s.held_out, [50]),
        (lambda task, splits: selection(task, splits, on="train"), lambda s: s.train[:50], [50]),
        (lambda task, splits: task.monitored_batches(splits, SMALL), lambda s: s.held_out[:30], [30]),
    ],
    ids=["test", "held-out", "train", "monitored"],
)
def test_evaluation_batches_are_the_images_as_they_are(task, splits, batches, part, sizes):
    xs, ys = zip(*batches(task, splits), strict=True)
    assert [len(x) for x in xs] == sizes
    images = part(splits)
    assert torch.equal((torch.cat(xs)[:, 0] * 255).round().byte(), images.images)
    assert torch.equal(torch.cat(ys), images.labels)


@pytest.mark.parametrize(("number", "sizes"), [(1, [100]), (2, [100, 30]), (9, [100, 30])])
def test_timed_batches_are_the_first_test_images(task, splits, number, sizes):
    batches = list(task.timed_batches(splits, number, unit="sample"))
    assert [len(x) for x in batches] == sizes
    assert torch.equal((torch.cat(batches)[:, 0] * 255).round().byte(), splits.test.images[: sum(sizes)])


def test_the_sample_preset_reads_the_sample_whatever_the_folder(task, tmp_path):
    splits = task.load(SMALL, tmp_path / "missing")
    assert [len(splits.train), len(splits.held_out), len(splits.test)] == [6000, 1000, 1000]


def test_other_presets_read_the_folder(task, tmp_path):
    with pytest.raises(DataError, match="missing"):
        task.load(task.presets["cpu"], tmp_path / "missing")


# ---- loss and optimizer


@pytest.mark.parametrize("name", ["odenet", "rknet", "resnet"])
def test_loss_is_cross_entropy(task, splits, name):
    torch.manual_seed(0)
    model = task.models[name]()
    x, y = next(iter(task.monitored_batches(splits, SMALL)))
    x, y = x[:4], y[:4]
    loss = task.loss(model, (x, y), None)
    logits = model(x)
    assert_close(loss.value, -F.log_softmax(logits, 1)[torch.arange(4), y].mean())
    assert loss.metrics["accuracy"] == (logits.argmax(1) == y).float().mean()
    assert (loss.solution is None) == (name == "resnet")
    assert loss.dynamics is model.dynamics


def test_loss_gives_accumulate_to_the_solver(task, splits):
    x, y = next(iter(task.monitored_batches(splits, SMALL)))
    loss = task.loss(task.models["rknet"](), (x[:3], y[:3]), lambda step: step.dt)
    assert loss.solution.accumulated.tolist() == [1, 1, 1]


def test_loss_takes_an_image_classifier(task):
    with pytest.raises(TypeError, match="model: expected an ImageClassifier, got Linear"):
        task.loss(torch.nn.Linear(1, 1), (torch.zeros(1), torch.zeros(1)), None)


def rates(task, preset, steps_per_epoch):
    """Learning rate before every step of a training."""
    model = torch.nn.Linear(1, 1)
    made = task.optimizer(model, preset, steps_per_epoch)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]
    found = []
    for _ in range(preset.epochs):
        for _ in range(steps_per_epoch):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if schedule["interval"] == "step":
                schedule["scheduler"].step()
        if schedule["interval"] == "epoch":
            schedule["scheduler"].step()
    return optimizer, found


def test_the_papers_schedule(task):
    optimizer, found = rates(task, task.presets["paper"], 1)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.9
    # ×{0.1, 0.01, 0.001} at epochs {60, 100, 140}
    expected = [0.1] * 60 + [0.01] * 40 + [0.001] * 40 + [1e-4] * 20
    assert found == pytest.approx(expected)


def test_one_cycle_peaks_at_the_rate_scaled_by_the_batch(task):
    _, found = rates(task, SMALL, 10)
    assert len(found) == 30
    assert max(found) == pytest.approx(0.4 * 16 / 128)
    assert found[0] < max(found) / 10
    assert found[-1] < max(found) / 1000


# ---- evaluation


@pytest.fixture(scope="module")
def few(splits):
    """12 images of each part."""
    return MnistSplits(splits.train[:12], splits.held_out[:12], splits.test[:12])


def test_evaluate_takes_the_test_images_and_the_tasks_integrators(task, few):
    torch.manual_seed(0)
    model = task.models["odenet"]().eval()
    metrics = task.metrics(model, {"e": Dynamic(task.candidates, all_to_euler)}, {"e": 0.5}, few)
    names = [str(integrator) for integrator in (*task.candidates, *task.baselines)]
    assert [row["policy"] for row in metrics["policies"]] == [*names, "oracle", "DISE (e)", "random, mix of e"]
    with torch.no_grad():
        ((x, labels),) = task._test_batches(few)
        wrong = (model(x).argmax(1) != labels).nonzero().flatten().tolist()
    assert (metrics["samples"], metrics["wrong"]) == (12, wrong)
    assert metrics["policies"][5]["shares"] == {"Euler": 1, "RK4": 0, "Dopri5": 0}


def all_to_euler(h0, k1):
    return torch.tensor([[0.0, 1.0, 1.0]]).expand(len(h0), 3)


def test_evaluate_without_an_ode(task, few):
    torch.manual_seed(0)
    model = task.models["resnet"]().eval()
    metrics = task.metrics(model, {}, {}, few)
    with torch.no_grad():
        ((x, labels),) = task._test_batches(few)
        right = model(x).argmax(1) == labels
    assert metrics == {
        "samples": 12,
        "wrong": (~right).nonzero().flatten().tolist(),
        "policies": [{"policy": "no ODE", "accuracy": pytest.approx(right.double().mean().item())}],
    }


# ---- tables and plots


def run(name, model, rows):
    return Run(name, model, "none", 0.0, 0, {"policies": rows, "wrong": [0], "samples": 10}, {}, None)


NET = run("net", "odenet", [{"policy": "Dopri5", "accuracy": 0.9, "nfe": 20.0}])
RES = run("res", "resnet", [{"policy": "no ODE", "accuracy": 0.9}])


def test_means_over_seeds_are_of_models_and_of_policies(task):
    policy = {"policy": "DISE (a)", "nfe": 1.0, "selector_macs": 0.5}
    runs = [
        run(f"net-seed{seed}", "odenet", [{**NET.policies()[0], "accuracy": a}, {**policy, "accuracy": a - 0.1}])
        for seed, a in enumerate((0.9, 0.92))
    ]
    assert over_seeds(task, [*runs, RES]).rows == [
        ["net", "Dopri5", "2", "0.9100 ± 0.0141", "20.00 ± 0.00"],
        ["net", "DISE (a)", "2", "0.8100 ± 0.0141", "1.50 ± 0.00"],
        ["", "no ODE", "1", "0.9000", "–"],
    ]


def test_tables_are_the_papers_and_the_models(task):
    assert [table.title.split(":")[0] for table in task.tables([NET, RES])] == [
        "Table 1",
        "Table 3",
        "Models against the plain ODE-Net of the same seed",
    ]
    assert [table.title for table in task.details(NET)] == ["net: all policies"]


def test_a_plot_for_each_model_with_an_ode(task, tmp_path):
    for one in (NET, RES):
        (tmp_path / one.name).mkdir()
    files = task.plots([NET, RES], tmp_path, load=None)
    assert files == [tmp_path / "net" / "accuracy-nfe.png"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "res").iterdir()) == []


# ---- presets


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch_size", 0), ("learning_rate", 0), ("monitored", 0), ("data", "some"), ("schedule", "no")],
)
def test_presets_are_checked(name, value):
    with pytest.raises(ValidationError, match=name):
        Preset(**(SMALL.model_dump() | {name: value}))


def test_presets_have_no_further_settings():
    with pytest.raises(ValidationError, match="extra"):
        Preset(**SMALL.model_dump(), momentum=0.9)
