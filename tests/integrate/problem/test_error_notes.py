"""Errors raised in f say how f was called."""

import pytest
import torch
from torch import nn

from dise import RK4, Cascade, Dopri5, solve
from dise.torchdiffeq import odeint

integrators = pytest.mark.parametrize("integrator", [RK4(2), Dopri5(), Cascade([RK4(1), Dopri5()])], ids=str)


def notes(error):
    return "\n".join(getattr(error, "__notes__", []))


def one_index(t, y):
    return torch.stack([y[7], -y[1]], 1)


def condition(t, y):
    return y if t > 0.5 else -y


def number(t, y):
    return float(t) * y


def of_matrices(t, y):
    return nn.functional.linear(y, torch.ones(2, 5))


def missing(t, y):
    return {}["rate"] * y


def own(t, y):
    raise OwnError("mine")


def bare(t, y):
    raise AssertionError


class OwnError(Exception):
    pass


FIELDS = [
    (one_index, IndexError),
    (condition, RuntimeError),
    (number, (RuntimeError, ValueError)),
    (of_matrices, RuntimeError),
    (missing, KeyError),
    (own, OwnError),
    (bare, AssertionError),
    (lambda t, y: y[:, :1], ValueError),
    (lambda t, y: None, ValueError),
    (lambda t, y: y * "2", TypeError),
    (lambda t: t, TypeError),
]
fields = pytest.mark.parametrize(("f", "kind"), FIELDS, ids=[f"{f.__name__}-{i}" for i, (f, _) in enumerate(FIELDS)])


@integrators
@fields
@pytest.mark.parametrize("options", [{}, {"drop_finished": False}, {"gradient": "backsolve"}], ids=str)
def test_an_error_of_f_says_how_f_was_called(f, kind, integrator, options):
    if "gradient" in options and integrator.chooses:
        pytest.skip("backsolve has one integrator")
    y0 = torch.ones(3, 2, requires_grad="gradient" in options)
    with pytest.raises(kind) as caught:
        solve(f, y0, 0.0, 1.0, integrator, **options)
    text = notes(caught.value)
    assert (
        text.count("f was called with t of shape (3, 1) and y of shape (3, 2), torch.float32: a row for each of") == 1
    )
    assert text.count("batched=False") == 1


@fields
def test_in_compiled_solves_too(f, kind):
    with pytest.raises(kind) as caught:
        solve(f, torch.ones(3, 2), 0.0, 1.0, Dopri5(), compile={"backend": "eager"})
    assert notes(caught.value).count("f was called with t of shape (3, 1) and y of shape (3, 2)") == 1


def test_one_system():
    with pytest.raises(KeyError) as caught:
        solve(missing, (torch.ones(3, 2), torch.ones(4)), 0.0, 1.0, Dopri5(), batched=False)
    text = notes(caught.value)
    assert "f was called with t of shape () and y of shape [(3, 2), (4,)], torch.float32: with batched=False" in text
    with pytest.raises(KeyError) as caught:
        odeint(missing, torch.ones(3, 2).bfloat16(), torch.tensor([0.0, 1.0]))
    assert "y of shape (3, 2), torch.bfloat16: with batched=False" in notes(caught.value)


def test_some_of_the_samples():
    """One of three ends first; f has a row per sample in its closure."""
    rates = torch.ones(3, 1)
    with pytest.raises(RuntimeError) as caught:
        solve(lambda t, y: rates * y, torch.ones(3, 1), 0.0, torch.tensor([0.01, 9.0, 9.0]), Dopri5())
    assert "y of shape (2, 1), torch.float32: a row for each of 2 of 3 samples." in notes(caught.value)
    assert notes(caught.value).count("belong in sample_args=") == 1


def test_a_recomputation_has_none_of_it(tanh_field, starts):
    """torch's checkpoint stops recomputations by an exception of its own; compiled, f would be called again."""
    f, y0 = tanh_field(2), starts(3, 2)
    for options in ({}, {"compile": {"backend": "aot_eager"}}):
        solve(f, y0, 0.0, 1.0, RK4(4), gradient="checkpoint", **options).y.sum().backward()
    assert f.W.grad.isfinite().all()
