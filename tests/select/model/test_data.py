"""Data in any form are the same batches, or an error says what is expected."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from dise.select.model.data import as_batches

X = torch.arange(500.0).reshape(250, 2)
LABEL = torch.arange(250) % 3


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
    batches = list(as_batches("data", data))
    assert torch.equal(torch.cat([x for x, _ in batches]), X)
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
    x, target = (torch.cat(column) for column in zip(*as_batches("data", data), strict=True))
    assert torch.equal(x, X)
    assert torch.equal(target, LABEL)


def test_a_tensor_is_split_into_batches_of_100():
    assert [len(x) for x, _ in as_batches("data", X)] == [100, 100, 50]
    assert [len(x) for x, _ in as_batches("data", (X, LABEL))] == [100, 100, 50]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"data: expected batches x or \(x, target\), got none"),
        (X[:0].split(10)[1:], r"expected batches x or \(x, target\), got none"),
        (None, r"expected batches x or \(x, target\), got NoneType"),
        (7, r"expected batches x or \(x, target\), got int"),
        (torch.tensor(1.0), r"expected batches \[B, ...\] of samples, got a number"),
        ((X, X), r"two tensors of the same shape \(250, 2\) may be two batches, or inputs and their targets"),
        ((X, LABEL[:7]), r"expected a target per sample, got 250 inputs and targets of shape \(7,\)"),
        ([(X, LABEL, LABEL)], "got one of 3 parts"),
        ([{"x": X}], "of tensors, got dict as x"),
        (X.tolist(), "got one of 2 parts|of tensors, got float as x"),
        (TensorDataset(X, LABEL), "got the TensorDataset itself; give a DataLoader of it"),
    ],
    ids=range(11),
)
def test_other_data_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        list(as_batches("data", data))
