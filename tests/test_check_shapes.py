"""The checks of shape annotations that run with all tests find what they are for."""

import pytest
import torch

from dise.integrate.problem.state import Layout
from dise.integrate.runge_kutta.classical import HEUN
from dise.integrate.runge_kutta.step import Step, finite_rows
from dise.integrate.stepping.tolerance import ErrorTest, max_norm


def test_a_tensor_of_another_shape():
    with pytest.raises(TypeError, match=r"finite_rows: x: expected .*n F.* got torch.float32 of shape \(3,\)"):
        finite_rows(torch.ones(3))


def test_a_tensor_of_another_kind():
    with pytest.raises(TypeError, match=r"finite_rows: x: expected .*, got torch.int64 of shape \(3, 2\)"):
        finite_rows(torch.ones(3, 2, dtype=torch.int64))


def test_a_record_whose_letters_disagree():
    y = torch.ones(3, 2)
    step = Step(torch.zeros(3), torch.ones(4), y, y, (y, y), HEUN)
    with pytest.raises(TypeError, match=r"Step.dt: expected .*, got torch.float32 of shape \(4,\)"):
        ErrorTest(1e-3, 1e-3, max_norm).ratio(step, y, Layout.of(y, batched=True))


def test_nothing_while_torch_compiles():
    def f(x):
        return finite_rows(x)

    # a graph break would be an error
    assert torch.compile(f, backend="eager", fullgraph=True)(torch.ones(3, 2)).all()
