import copy
import dataclasses
import inspect
import pickle
import typing

import pytest
import torch

from dise import Backsolve, Dopri5, NeuralODE, SolveOptions, solve
from dise.integrate.options import SolveKeywords

FIELDS = {field.name: field for field in dataclasses.fields(SolveOptions)}


def test_solve_takes_each_option_with_the_same_default():
    arguments = inspect.signature(solve).parameters
    assert {name: arguments[name].default for name in FIELDS} == {name: x.default for name, x in FIELDS.items()}


def test_keywords_are_the_fields_with_their_types():
    assert typing.get_type_hints(SolveKeywords) == typing.get_type_hints(SolveOptions)
    options = SolveOptions(batched=False, gradient="checkpoint", compile={"mode": "default"})
    assert set(options.keywords()) == set(FIELDS)
    assert SolveOptions(**options.keywords()) == options


def test_options_are_a_value():
    assert SolveOptions(gradient="checkpoint") == SolveOptions(gradient="checkpoint") != SolveOptions()
    assert str(SolveOptions()) == "SolveOptions"
    assert str(SolveOptions(batched=False, compile=True)) == "SolveOptions(batched=False, compile=True)"
    assert pickle.loads(pickle.dumps(SolveOptions(compile={"mode": "default"}))).compile == {"mode": "default"}
    assert copy.deepcopy(SolveOptions(batched=False)) == SolveOptions(batched=False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        SolveOptions().batched = False


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batched": 1}, TypeError, "batched: expected True or False, got 1"),
        ({"drop_finished": None}, TypeError, "drop_finished: expected True or False, got None"),
        ({"differentiate_step_sizes": "yes"}, TypeError, "differentiate_step_sizes: expected True or False, got 'yes'"),
        (
            {"gradient": "adjoint"},
            ValueError,
            "gradient: expected 'direct', 'checkpoint', 'backsolve' or a dise.Backsolve, got 'adjoint'",
        ),
        ({"gradient": Backsolve}, ValueError, "gradient: expected 'direct', .*, got <class"),
        (
            {"compile": "yes"},
            TypeError,
            "compile: expected True, False, 'fast' or a mapping of torch.compile's arguments, got 'yes'",
        ),
        ({"compile": None}, TypeError, "compile: expected True, False, .* or a mapping of .*, got None"),
        ({"compact": True}, TypeError, "unexpected keyword argument 'compact'"),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_a_wrong_option_is_named(options, error, message, grad):
    f, y0 = torch.nn.Identity(), torch.ones(2, 1)
    with torch.set_grad_enabled(grad):
        for call in (
            lambda: SolveOptions(**options),
            lambda: NeuralODE(f, Dopri5(), **options),
            lambda: solve(f, y0, 0.0, 1.0, Dopri5(), **options),
        ):
            with pytest.raises(error, match=message):
                call()
