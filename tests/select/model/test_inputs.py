"""Batches for models of several inputs: what is an input, what is the target, and what is refused."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dise.select.model.data import as_batches
from dise.select.model.inputs import Inputs

X, CONDITION = torch.arange(500.0).reshape(250, 2), torch.arange(250) % 7
LABEL = torch.arange(250) % 3


class One(nn.Module):
    def forward(self, x, scale=1.0):
        return x


class Two(nn.Module):
    def forward(self, x, condition):
        return x


class Optional(nn.Module):
    def forward(self, x, condition=None):
        return x


class Any(nn.Module):
    def forward(self, *inputs):
        return inputs[0]


class Named(nn.Module):
    def forward(self, x, *, condition):
        return x


def joined(data, model):
    """Positional and named inputs and targets of all batches."""
    batches = list(as_batches("data", data, model))
    inputs = Inputs.concatenate([batch.inputs for batch in batches], "data")
    targets = [batch.target for batch in batches]
    return inputs, None if targets[0] is None else torch.cat(targets)


loader = DataLoader(TensorDataset(X, CONDITION), batch_size=64)
labelled = DataLoader(TensorDataset(X, CONDITION, LABEL), batch_size=64)
nested = DataLoader([((x, c), y) for x, c, y in zip(X, CONDITION, LABEL, strict=True)], batch_size=64)
by_name = DataLoader([{"x": x, "condition": c} for x, c in zip(X, CONDITION, strict=True)], batch_size=64)


@pytest.mark.parametrize("model", [Two(), Optional(), Any()], ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("data", [((X, CONDITION), None), [((X, CONDITION), None)], [[(X, CONDITION)]]], ids=range(3))
def test_two_inputs_without_a_target(data, model):
    inputs, target = joined(data, model)
    assert all(map(torch.equal, inputs.positional, (X, CONDITION)))
    assert not inputs.named
    assert target is None


@pytest.mark.parametrize("data", [(X, CONDITION), [(X, CONDITION)], loader], ids=range(3))
def test_a_flat_batch_of_two_is_two_inputs_of_a_model_that_takes_two(data):
    inputs, target = joined(data, Two())
    assert all(map(torch.equal, inputs.positional, (X, CONDITION)))
    assert target is None


@pytest.mark.parametrize("data", [(X, LABEL), [(X, LABEL)], [((X,), LABEL)], ((X,), LABEL)], ids=range(4))
@pytest.mark.parametrize("compiled", [False, True])
def test_it_is_an_input_and_a_target_of_a_model_that_takes_one(data, compiled):
    model = torch.compile(One()) if compiled else nn.DataParallel(One())  # both hide the parameters of forward
    inputs, target = joined(data, model)
    assert torch.equal(inputs.positional[0], X)
    assert len(inputs.positional) == 1
    assert torch.equal(target, LABEL)


@pytest.mark.parametrize(
    "data",
    [((X, CONDITION), LABEL), [((X, CONDITION), LABEL)], nested, (X, CONDITION, LABEL), labelled],
    ids=range(5),
)
def test_two_inputs_and_a_target(data):
    inputs, target = joined(data, Two())
    assert all(map(torch.equal, inputs.positional, (X, CONDITION)))
    assert torch.equal(target, LABEL)


@pytest.mark.parametrize("model", [Two(), Optional(), Named()], ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("label", [None, LABEL], ids=["none", "label"])
def test_inputs_by_name(model, label):
    given = {"condition": CONDITION, "x": X}
    forms = [(given, label), [(given, label)], *([given, [given], by_name] if label is None else [])]
    for data in forms:
        inputs, target = joined(data, model)
        assert torch.equal(inputs.named["x"], X)
        assert torch.equal(inputs.named["condition"], CONDITION)
        assert not inputs.positional
        assert target is label if label is None else torch.equal(target, label)


def test_all_samples_are_split_into_batches_of_100():
    for data, model in [(((X, CONDITION), LABEL), Two()), ({"x": X}, Optional()), ((X, CONDITION, LABEL), Two())]:
        assert [len(inputs) for inputs, _ in as_batches("data", data, model)] == [100, 100, 50]


def test_targets_of_any_kind_stay_as_they_are():
    for data in ([((X, CONDITION), "seven")], [(X, CONDITION, "seven")], [({"x": X, "condition": CONDITION}, "seven")]):
        (batch,) = as_batches("data", data, Two())
        assert batch.target == "seven"


def test_each_input_keeps_its_shape_and_dtype_and_is_moved():
    inputs = Inputs.of({"x": X.double(), "condition": CONDITION, "mask": X > 3})
    assert [x.dtype for x in inputs.to(torch.device("cpu")).named.values()] == [torch.float64, torch.int64, torch.bool]
    assert {x.device.type for x in inputs.to(torch.device("meta")).named.values()} == {"meta"}
    whole = Inputs.concatenate(inputs.split(99), "data")
    assert all(torch.equal(whole.named[name], inputs.named[name]) for name in inputs.named)


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        (
            [(X, CONDITION)],
            Optional(),
            r"last of 2 tensors in a batch may be an input or the target.* takes 1 to 2 inp",
        ),
        ((X, CONDITION), Any(), r"may be an input or the target, since the model takes 1 or more inputs; give pairs"),
        ([(X, CONDITION, LABEL)], One(), "got one of 3 parts, while the model takes 1 input"),
        ([X], Two(), r"forward\(x, condition\) cannot be called with x: missing a required argument: 'condition'"),
        ([(X,)], Two(), "missing a required argument: 'condition'"),
        ([((X, CONDITION), None)], One(), None),  # scale is a setting with a default, but may be given
        (
            [((X, CONDITION, LABEL), None)],
            Two(),
            "cannot be called with input 1, input 2, input 3: too many positional",
        ),
        ([{"x": X, "y": LABEL}], Two(), "got an unexpected keyword argument 'y'|missing a required argument"),
        ([{"x": X, "condition": CONDITION, "y": LABEL}], Two(), "got an unexpected keyword argument 'y'"),
        ([{}], Two(), "data: expected inputs with the same number of rows, got no inputs"),
        ([()], Two(), "got an empty one"),
        ([((X, CONDITION[:7]), LABEL)], Two(), "same number of rows, got 250 in input 1, 7 in input 2"),
        ({"x": X, "condition": CONDITION[:7]}, Two(), "got 250 in input 'x', 7 in input 'condition'"),
        (
            [({"x": X, "condition": "fast"}, LABEL)],
            Two(),
            "got str as input 'condition'; what all samples share belongs",
        ),
        ([((X, 0.5), LABEL)], Two(), "got float as input 2"),
        ([((X, None), LABEL)], Two(), "got NoneType as input 2"),
        ([((X, torch.tensor(0.5)), LABEL)], Two(), "got a number as input 2"),
        ([((X, CONDITION), LABEL[:7])], Two(), r"a target per sample, got 250 inputs and targets of shape \(7,\)"),
        ((X, X, X), Two(), r"3 tensors of the same shape \(250, 2\) may be 3 batches, or inputs and their targets"),
        ("abc", One(), "got str as x"),
        ((X.numpy(), LABEL), One(), "got ndarray as x; torch.as_tensor makes it one"),
    ],
    ids=range(21),
)
def test_other_batches_are_refused(data, model, message):
    if message is None:
        assert len(list(as_batches("data", data, model))) == 1
        return
    with pytest.raises(ValueError, match=message):
        list(as_batches("data", data, model))


def test_batches_with_different_inputs_are_not_joined():
    parts = [Inputs.of(X), Inputs.of((X, CONDITION))]
    with pytest.raises(ValueError, match="data: expected the same inputs in all batches, got"):
        Inputs.concatenate(parts, "data")
    with pytest.raises(
        ValueError, match=r"data: expected x of one shape in all batches, got samples of \[\(1,\), \(2,"
    ):
        Inputs.concatenate([Inputs.of(X), Inputs.of(X[:, :1])], "data")
