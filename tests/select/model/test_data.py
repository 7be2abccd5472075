"""Data in any form are the same batches, or an error says what is expected."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dise.select.model.data import as_batches

X = torch.arange(500.0).reshape(250, 2)
LABEL = torch.arange(250) % 3
ONE = nn.Identity()  # takes one input


@pytest.mark.parametrize(
    "data",
    [
        X,
        [X],
        X.split(100),
        list(X.split(125)),
        [(X,)],
        [[X[:7]], X[7:]],
        (part for part in X.split(10)),
        DataLoader(TensorDataset(X), batch_size=64),
        DataLoader(X, batch_size=64),
        (X[:150], X[150:]),
    ],
    ids=range(10),
)
def test_inputs_without_targets(data):
    batches = list(as_batches("data", data, ONE))
    assert torch.equal(torch.cat([inputs.positional[0] for inputs, _ in batches]), X)
    assert all(target is None for _, target in batches)


@pytest.mark.parametrize(
    "data",
    [
        (X, LABEL),
        [X, LABEL],
        [(X, LABEL)],
        [[X[:7], LABEL[:7]], (X[7:], LABEL[7:])],
        zip(X.split(99), LABEL.split(99), strict=True),
        DataLoader(TensorDataset(X, LABEL), batch_size=64),
    ],
    ids=range(6),
)
def test_inputs_with_targets(data):
    inputs, target = zip(*as_batches("data", data, ONE), strict=True)
    assert torch.equal(torch.cat([x.positional[0] for x in inputs]), X)
    assert torch.equal(torch.cat(target), LABEL)


def test_a_tensor_is_split_into_batches_of_100():
    assert [len(x) for x, _ in as_batches("data", X, ONE)] == [100, 100, 50]
    assert [len(x) for x, _ in as_batches("data", (X, LABEL), ONE)] == [100, 100, 50]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"data: expected batches of inputs or \(inputs, target\), got none"),
        (X[:0].split(10)[1:], r"expected batches of inputs or \(inputs, target\), got none"),
        (None, r"expected batches of inputs or \(inputs, target\), got NoneType"),
        (7, r"expected batches of inputs or \(inputs, target\), got int"),
        (torch.tensor(1.0), r"expected batches \[B, ...\] of samples, got a number"),
        ((X, X), r"two tensors of the same shape \(250, 2\) may be two batches, or inputs and their targets"),
        ((X, LABEL[:7]), r"expected a target per sample, got 250 inputs and targets of shape \(7,\)"),
        ([(X, LABEL, LABEL)], "got one of 3 parts"),
        ([{"x": X}], r"forward\(input.* cannot be called with input 'x': missing a required argument: 'input'"),
        (X.tolist(), r"that are tensors \[B, ...\] with a row per sample, got float as x"),
        (TensorDataset(X, LABEL), "got the TensorDataset itself; give a DataLoader of it"),
    ],
    ids=range(11),
)
def test_other_data_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        list(as_batches("data", data, ONE))
