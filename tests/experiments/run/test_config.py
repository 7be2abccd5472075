from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from dise.regularize import (
    L1,
    L2,
    ErrorEstimate,
    KineticEnergy,
    NoRegularizer,
    RandomEndTime,
    UnscaledErrorEstimate,
)
from dise_experiments.common.task import PER_SAMPLE, REGULARIZERS
from dise_experiments.mnist.model import odenet, rknet
from dise_experiments.mnist.presets import PRESETS
from dise_experiments.mnist.task import MnistTask
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.registry import TASKS


def test_defaults():
    config = RunConfig.of("mnist", "cpu")
    assert (config.model, config.reg, config.weight, config.seed) == ("odenet", "none", 0.0, 0)
    assert config.settings == PRESETS["cpu"].model_dump()


# λ as in the paper's section 4.1
@pytest.mark.parametrize(
    ("reg", "weight", "regularizer"),
    [
        ("none", 0, NoRegularizer),
        ("kinetic", 0.01, KineticEnergy),
        ("l1", 1e-4, L1),
        ("l2", 1e-4, L2),
        ("error", 5e-3, ErrorEstimate),
        ("raw-error", 5e-3, UnscaledErrorEstimate),
    ],
)
def test_regularizers_and_the_papers_weights(reg, weight, regularizer):
    config = RunConfig.of("mnist", "sample", reg=reg)
    assert config.weight == weight
    assert type(config.regularizer) is regularizer


def test_every_regularizer_has_a_weight_in_every_task():
    assert all(set(task.weights) <= set(task.regularizers) for task in TASKS.values())
    assert set(TASKS["mnist"].weights) == set(REGULARIZERS)


def test_a_regularizer_is_the_tasks(monkeypatch):
    config = RunConfig.of("mnist", "sample", reg="error")
    monkeypatch.setattr(MnistTask, "regularizers", REGULARIZERS | {"error": lambda: "of this task"})
    assert config.regularizer == "of this task"


def test_the_first_model_is_the_default(monkeypatch):
    monkeypatch.setattr(MnistTask, "models", {"rknet": rknet, "odenet": odenet})
    assert RunConfig.of("mnist", "sample").model == "rknet"


def test_what_the_task_refuses_is_refused(monkeypatch):
    monkeypatch.setattr(MnistTask, "check", lambda self, model, reg: f"not {model} with {reg}")
    with pytest.raises(ExperimentError, match="not odenet with l1"):
        RunConfig.of("mnist", "sample", reg="l1")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "odenet-none-seed0"),
        ({"reg": "error"}, "odenet-error-sum-seed0"),
        ({"reg": "error", "weight": 0.005}, "odenet-error-sum-seed0"),
        ({"reg": "error", "reduce": "mean"}, "odenet-error-seed0"),
        ({"reg": "error", "weight": 0.02, "seed": 3}, "odenet-error-sum-0.02-seed3"),
        ({"reg": "l1", "weight": 0.0}, "odenet-l1-0-seed0"),
        ({"reg": "raw-error", "weight": 1e-7}, "odenet-raw-error-sum-1e-07-seed0"),
        ({"reg": "steer"}, "odenet-steer-seed0"),
        ({"model": "resnet", "reg": "l2"}, "resnet-l2-seed0"),
        ({"model": "rknet", "reg": "kinetic"}, "rknet-kinetic-sum-seed0"),
    ],
)
def test_name_and_directory(options, name):
    config = RunConfig.of("mnist", "paper", **options)
    assert config.name == name
    assert config.directory(Path("out")) == Path("out/mnist/paper") / name


# ---- R over a batch


def test_a_sum_is_the_papers_reading_and_that_of_its_preset():
    assert RunConfig.of("mnist", "paper", reg="error").regularizer.reduce == "sum"
    assert RunConfig.of("mnist", "cpu", reg="error").regularizer.reduce == "mean"
    config = RunConfig.of("mnist", "cpu", reg="error", reduce="sum")
    assert config.regularizer.reduce == "sum"
    assert config.name == "odenet-error-sum-seed0"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("reg", PER_SAMPLE)
def test_regularizers_of_samples_can_be_sums(task, reg):
    if reg not in TASKS[task].weights:
        pytest.skip("not of this task")
    made = RunConfig.of(task, "cpu", reg=reg, reduce="sum").regularizer
    assert made.reduce == "sum"
    values = torch.tensor([1.0, 2.0, 4.0])
    assert made._reduced(values) == 7


def test_configs_from_before_have_means():
    stored = RunConfig.of("mnist", "cpu", reg="error").model_dump(exclude={"reduce"})
    assert RunConfig.model_validate(stored) == RunConfig.of("mnist", "cpu", reg="error", reduce="mean")


@pytest.mark.parametrize(("reg", "reduce", "message"), [("l1", "sum", "is no sum"), ("error", "max", "no 'max'")])
def test_other_reductions_are_refused(reg, reduce, message):
    with pytest.raises(ExperimentError, match=f"reduce: .*{message}"):
        RunConfig.of("mnist", "cpu", reg=reg, reduce=reduce)


# ---- regularizers that the paper lacks


@pytest.mark.parametrize(("task", "width"), [("mnist", 0.25), ("circles", 2.5)])
def test_the_weight_of_steer_is_the_width(task, width):
    made = RunConfig.of(task, "cpu", reg="steer").regularizer
    assert (type(made), made.width) == (RandomEndTime, width)


def test_steer_is_not_for_spans_that_the_records_have():
    with pytest.raises(ExperimentError, match="reg: there is no 'steer'"):
        RunConfig.of("physionet", "cpu", reg="steer")


# ---- changed settings


def test_settings_of_the_preset_can_be_changed():
    config = RunConfig.of("mnist", "sample", changes=["epochs=7", "learning_rate=0.25"])
    expected = PRESETS["sample"].model_dump() | {"epochs": 7, "learning_rate": 0.25}
    assert config.settings == expected
    assert config.name == "odenet-none-epochs=7-learning_rate=0.25-seed0"
    assert config.found[1].epochs == 7


def test_the_name_has_what_differs_from_the_preset_alone():
    epochs = PRESETS["sample"].epochs
    config = RunConfig.of("mnist", "sample", reg="error", weight=0.5, changes=[f"epochs={epochs}", "batch_size=16"])
    assert config.name == "odenet-error-0.5-batch_size=16-seed0"


def test_the_last_change_holds():
    assert RunConfig.of("mnist", "sample", changes=["epochs=7", "epochs=8"]).settings["epochs"] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("epochs", "set: expected NAME=VALUE with a NAME of data, epochs, .*; got 'epochs'"),
        ("speed=3", "set: expected NAME=VALUE with a NAME of data, epochs, .*; got 'speed=3'"),
        ("", "set: expected NAME=VALUE"),
        ("epochs=", "set: epochs: "),
        ("epochs=0", "set: epochs: .*greater than or equal to 1"),
        ("data=half", "set: data: "),
    ],
)
def test_wrong_changes(change, message):
    with pytest.raises(ExperimentError, match=message) as caught:
        RunConfig.of("mnist", "sample", changes=[change])
    assert "\n" not in str(caught.value)


# ---- names that there are not


@pytest.mark.parametrize(
    ("task", "preset", "options", "message"),
    [
        ("cifar", "cpu", {}, "task: there is no 'cifar'; choose one of mnist"),
        ("mnist", "huge", {}, "preset: there is no 'huge'; choose one of sample, cpu, long, paper"),
        ("mnist", "cpu", {"model": "vgg"}, "model: there is no 'vgg'; choose one of odenet, rknet, resnet"),
        ("mnist", "cpu", {"reg": "l3"}, "reg: there is no 'l3'; choose one of none, kinetic, l1, l2, error, "),
        ("mnist", "cpu", {"model": "resnet", "reg": "error"}, "reg: 'error' needs an ODE"),
        ("mnist", "cpu", {"model": "resnet", "reg": "raw-error"}, "reg: 'raw-error' needs an ODE"),
        ("mnist", "cpu", {"model": "resnet", "reg": "kinetic"}, "reg: 'kinetic' needs an ODE"),
        ("mnist", "cpu", {"model": "rknet", "reg": "error"}, "reg: 'error' needs DOPRI's stages"),
        ("mnist", "cpu", {"model": "rknet", "reg": "raw-error"}, "reg: 'raw-error' needs DOPRI's stages"),
    ],
)
def test_wrong_names(task, preset, options, message):
    with pytest.raises(ExperimentError, match=message) as caught:
        RunConfig.of(task, preset, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"seed": -1}, {"weight": float("nan")}])
def test_numbers_out_of_range(options):
    with pytest.raises(ValidationError):
        RunConfig.of("mnist", "cpu", **options)


@pytest.mark.parametrize("options", [{}, {"reg": "error", "weight": 1 / 3, "seed": 7}, {"model": "resnet"}])
def test_json_round_trip(options):
    config = RunConfig.of("mnist", "sample", **options)
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.name == config.name


def test_found_is_the_task_and_the_settings_the_run_was_made_with(monkeypatch):
    config = RunConfig.of("mnist", "sample")
    before = PRESETS["sample"]
    monkeypatch.setitem(PRESETS, "sample", before.model_copy(update={"epochs": 99}))
    task, settings = config.found
    assert task is TASKS["mnist"]
    assert settings == before
