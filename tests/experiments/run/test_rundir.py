import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dise_experiments.mnist.model import odenet, resnet
from dise_experiments.run import rundir
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.rundir import (
    claim_run,
    load_model,
    load_weights,
    open_run,
    read_json,
    save_weights,
    weight_names,
    write_json,
    write_text,
)


@pytest.fixture
def config():
    return RunConfig.of("mnist", "sample", reg="error")


@pytest.fixture
def run(tmp_path, config):
    path = tmp_path / "run"
    claim_run(path, config)
    return path


def assert_fails(call, *parts):
    """The call raises an ExperimentError of one line that contains the parts."""
    with pytest.raises(ExperimentError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


# ---- config.json


def test_a_claimed_run_can_be_opened(run, config):
    assert open_run(run) == config
    assert [file.name for file in run.iterdir()] == ["config.json"]


def test_claiming_again_changes_nothing(run, config, snapshot):
    before = snapshot(run)
    claim_run(run, config)
    assert snapshot(run) == before


def test_claiming_makes_parents_and_takes_an_empty_directory(tmp_path, config):
    for path in (tmp_path / "a" / "b", tmp_path):
        claim_run(path, config)
        assert open_run(path) == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed: found 0, expected 1"),
        ({"weight": 0.5}, "weight: found 0.005, expected 0.5"),
        ({"reg": "none", "weight": 0.0}, "reg: found error, expected none"),
        ({"preset": "cpu"}, "preset: found sample, expected cpu"),
    ],
)
def test_a_run_with_other_settings_is_not_claimed(run, config, snapshot, change, said):
    before = snapshot(run)
    assert_fails(lambda: claim_run(run, config.model_copy(update=change)), run, said)
    assert snapshot(run) == before


def test_a_changed_preset_is_another_setting(run, config):
    other = config.model_copy(update={"settings": config.settings | {"epochs": 77}})
    assert_fails(lambda: claim_run(run, other), "epochs: found 2, expected 77")


def test_a_run_of_before_a_setting_was_added_has_its_default(run, config):
    written = json.loads((run / "config.json").read_text())
    del written["settings"]["coarse_epochs"]
    (run / "config.json").write_text(json.dumps(written))
    assert open_run(run) == config


def test_no_run_directory(tmp_path):
    assert_fails(lambda: open_run(tmp_path / "none"), tmp_path / "none", "config.json is missing", "dise train")
    assert_fails(lambda: open_run(tmp_path), "config.json is missing")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:40], "config.json"),
        (lambda text: "", "config.json"),
        (lambda text: text.replace('"seed": 0', '"seed": "zero"'), "seed"),
        (lambda text: text.replace('"seed": 0', '"seed": -3'), "seed"),
        (lambda text: text.replace('"seed": 0', '"seed": 0, "colour": "red"'), "colour"),
        (lambda text: text.replace('"model": "odenet",', ""), "model"),
        (lambda text: text.replace("odenet", "vgg"), "there is no 'vgg'"),
        (lambda text: text.replace('"preset": "sample"', '"preset": "old"'), "there is no 'old'"),
    ],
    ids=["cut", "empty", "wrong type", "out of range", "extra", "missing", "unknown model", "unknown preset"],
)
def test_damaged_config(run, damage, said):
    file = run / "config.json"
    file.write_text(damage(file.read_text()))
    assert_fails(lambda: open_run(run), said)


def test_a_config_that_is_not_text(run):
    (run / "config.json").write_bytes(b"\x80\x81\xff\x00")
    assert_fails(lambda: open_run(run), "config.json")


@pytest.mark.parametrize("settings", [{}, {"epochs": "many"}], ids=["missing", "wrong"])
def test_damaged_settings_are_found_when_the_run_is_opened(run, settings):
    file = run / "config.json"
    values = json.loads(file.read_text())
    values["settings"] = settings and values["settings"] | settings
    file.write_text(json.dumps(values))
    assert_fails(lambda: open_run(run), "config.json", "epochs")


# ---- weights


def test_weights_round_trip(run, config):
    model = odenet()
    save_weights(model, run / "model.safetensors")
    loaded = load_model(run, config)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert not loaded.training


def test_a_run_without_a_model(run, config):
    assert_fails(lambda: load_model(run, config), run, "model.safetensors is missing", "dise train")


def test_weights_of_another_model(run, config):
    save_weights(resnet(), run / "model.safetensors")
    assert_fails(
        lambda: load_model(run, config), "model.safetensors", "does not contain the weights of ImageClassifier"
    )


def test_weights_of_another_shape(tmp_path):
    save_weights(nn.Linear(2, 3), tmp_path / "w.safetensors")
    assert_fails(
        lambda: load_weights(nn.Linear(3, 2), tmp_path / "w.safetensors"), "w.safetensors", "Linear", "size mismatch"
    )


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-7], lambda data: data[:5], lambda data: b"", lambda data: b"\xff" * 100]
)
def test_damaged_weights(tmp_path, damage):
    file, layer = tmp_path / "w.safetensors", nn.Linear(2, 3)
    save_weights(layer, file)
    file.write_bytes(damage(file.read_bytes()))
    assert_fails(lambda: load_weights(nn.Linear(2, 3), file), file, "does not contain the weights of Linear")
    assert weight_names(file) == []


def test_names_of_the_weights_in_a_file(tmp_path):
    save_weights(nn.Linear(2, 3), tmp_path / "w.safetensors")
    assert sorted(weight_names(tmp_path / "w.safetensors")) == ["bias", "weight"]


def test_a_missing_parameter_is_not_left_as_it_was(tmp_path):
    save_file({"weight": torch.zeros(3, 2)}, tmp_path / "w.safetensors")
    assert_fails(lambda: load_weights(nn.Linear(2, 3), tmp_path / "w.safetensors"), "bias")


# ---- files appear whole or not at all


class Cut(Exception):
    pass


def cut(*args, **options):
    raise Cut


def test_text_and_json_are_written_and_nothing_else_is_left(tmp_path):
    write_text(tmp_path / "a.md", "text")
    write_json(tmp_path / "b.json", {"x": [1, 2.5, None]})
    assert (tmp_path / "a.md").read_text() == "text"
    assert read_json(tmp_path / "b.json") == {"x": [1, 2.5, None]}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.md", "b.json"]


def test_a_cut_write_leaves_the_old_text(tmp_path, monkeypatch):
    file = tmp_path / "a.md"
    write_text(file, "old")
    monkeypatch.setattr("dise.select.deploy.atomic.os.replace", cut)
    with pytest.raises(Cut):
        write_text(file, "new")
    assert file.read_text() == "old"


def test_values_that_are_not_json_leave_the_old_file(tmp_path):
    file = tmp_path / "b.json"
    write_json(file, [1])
    with pytest.raises(TypeError):
        write_json(file, {"x": object()})
    assert read_json(file) == [1]


def test_cut_weights_leave_the_old_ones(tmp_path, monkeypatch):
    file, layer = tmp_path / "w.safetensors", nn.Linear(2, 3)
    save_weights(layer, file)
    before = file.read_bytes()
    monkeypatch.setattr(rundir, "save_file", cut)
    with pytest.raises(Cut):
        save_weights(nn.Linear(2, 3), file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", [b"{", b"", b"{'a': 1}", b"\x80\xff\x00"], ids=["cut", "empty", "python", "bytes"])
def test_damaged_json(tmp_path, content):
    (tmp_path / "m.json").write_bytes(content)
    assert_fails(lambda: read_json(tmp_path / "m.json"), tmp_path / "m.json", "move it away and run again")
