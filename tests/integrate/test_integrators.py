import dataclasses
import math

import pytest
import torch

from dise import RK4, Adaptive, Bosh3, ButcherTableau, Dopri5, Euler, FixedStep, Midpoint, solve


@pytest.mark.parametrize("steps", [0, -1, 1.5, 2.0, True, "3", None])
@pytest.mark.parametrize("method", [Euler, Midpoint, RK4])
def test_steps_must_be_a_positive_whole_number(method, steps):
    with pytest.raises(ValueError, match="steps: expected a whole number of at least 1"):
        method(steps)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *((name, value) for name in ("rtol", "atol") for value in (-1e-3, math.inf, math.nan, "1e-3", None)),
        *(("first_step", value) for value in ("foo", 0, -0.1, math.inf, math.nan, None)),
        *(("max_steps", value) for value in (0, 1.5, True, None)),
    ],
)
def test_a_bad_argument_is_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument}: expected"):
        Dopri5(**{argument: value})


def test_one_tolerance_must_be_positive():
    with pytest.raises(ValueError, match="rtol, atol: at least one must be positive"):
        Dopri5(rtol=0, atol=0)


def test_integrators_are_values():
    assert RK4(2) == RK4(steps=2) != RK4(3)
    assert RK4() != Euler()
    assert len({Dopri5(), Dopri5(rtol=1e-3, atol=1e-3), Dopri5(rtol=1e-4)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        RK4().steps = 2


@pytest.mark.parametrize(
    ("integrator", "text"),
    [
        (Euler(), "Euler"),
        (RK4(2), "RK4(steps=2)"),
        (Dopri5(), "Dopri5"),
        (Dopri5(rtol=1e-5, first_step="span"), "Dopri5(rtol=1e-05, first_step=span)"),
    ],
)
def test_str_names_what_differs_from_the_defaults(integrator, text):
    assert str(integrator) == text


# ---- a method is a tableau and a stepping rule: made here as a user would


class Heun(FixedStep):
    tableau = ButcherTableau(c=(0.0, 1.0), a=((), (1.0,)), b=(0.5, 0.5), order=2)


class HeunEuler(Adaptive):
    tableau = ButcherTableau(c=(0.0, 1.0), a=((), (1.0,)), b=(0.5, 0.5), order=2, b_err=(-0.5, 0.5))


@pytest.mark.parametrize(
    "integrator", [Heun(200), Midpoint(200), HeunEuler(rtol=1e-5, atol=1e-5), Bosh3(rtol=1e-6, atol=1e-6)]
)
def test_a_method_solves_and_counts(integrator, record):
    f = record(lambda t, y: -2 * t * y)
    solution = solve(f, torch.ones(1, 1, dtype=torch.float64), 0.0, 1.5, integrator)
    torch.testing.assert_close(solution.y.item(), math.exp(-(1.5**2)), rtol=0, atol=3e-5)
    assert solution.nfe.item() == solution.calls == f.calls
    assert solution.n_steps > 10


@pytest.mark.parametrize("method", [HeunEuler, Bosh3, Dopri5])
def test_the_error_follows_the_tolerance(method):
    """A 100 times tighter tolerance: a 100 times smaller error, within a factor of 3, whatever the order."""
    y0 = torch.ones(1, 1, dtype=torch.float64)
    loose, tight = (
        abs(solve(lambda t, y: -2 * t * y, y0, 0.0, 1.5, method(rtol=tol, atol=tol)).y.item() - math.exp(-(1.5**2)))
        for tol in (1e-4, 1e-6)
    )
    assert 100 / 3 < loose / tight < 100 * 3
