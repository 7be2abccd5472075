import pytest
import torch
from torch.testing import assert_close

from dise_experiments.flows.config import FieldConfig
from dise_experiments.flows.sources import source
from dise_experiments.flows.stored import load_field
from dise_experiments.flows.training import Batches, train_field
from dise_experiments.run.config import ExperimentError

TINY = FieldConfig(task="moons", preset="sample", epochs=3, iterations=40, batch_size=64, learning_rate=5e-3)


def test_training_learns_resumes_and_is_reused(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_field(TINY, whole, device="cpu")
    assert not train_field(TINY, whole, device="cpu")
    assert train_field(TINY, parts, device="cpu")
    (parts / "model.safetensors").unlink()  # as if interrupted after the last epoch
    assert train_field(TINY, parts, device="cpu")
    field, again = load_field(whole), load_field(parts)
    assert _loss(field) < 0.9 * _loss(source("moons", simulations=1, sample=True, data_dir=None).field())
    for name, value in field.state_dict().items():
        assert_close(again.state_dict()[name], value)


def test_another_training_in_the_same_directory_is_refused(tmp_path):
    train_field(TINY.model_copy(update={"epochs": 1, "iterations": 1}), tmp_path, device="cpu")
    with pytest.raises(ExperimentError, match="other settings"):
        train_field(TINY, tmp_path, device="cpu")


def test_an_untrained_directory_is_reported(tmp_path):
    with pytest.raises(ExperimentError, match="no trained field"):
        load_field(tmp_path)


@pytest.mark.parametrize(("task", "preset", "reason"), [("sun", "cpu", "target"), ("moons", "huge", "preset")])
def test_unknown_names_are_refused(task, preset, reason):
    with pytest.raises(ExperimentError, match=reason):
        FieldConfig.of(task, preset)


def test_batches_are_a_function_of_seed_and_epoch():
    data = source("moons", simulations=1, sample=True, data_dir=None)
    first, same = (next(iter(Batches(data, TINY, 0))) for _ in range(2))
    other = next(iter(Batches(data, TINY, 1)))
    assert torch.equal(first[1], same[1])
    assert torch.equal(first[0][0], same[0][0])
    assert not torch.equal(first[1], other[1])


def _loss(field):
    (x, _), noise, t = next(iter(Batches(source("moons", simulations=1, sample=True, data_dir=None), TINY, 7)))
    with torch.no_grad():
        return float((field(t, torch.lerp(noise, x, t)) - (x - noise)).square().mean())
