import dataclasses
import math

import pytest
import torch

from dise import (
    RK4,
    RK38,
    Adaptive,
    Bosh3,
    ButcherTableau,
    Dopri5,
    Dopri8,
    Euler,
    Fehlberg2,
    FixedStep,
    Heun,
    HeunEuler,
    Midpoint,
    Ralston,
    Tsit5,
    solve,
)


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


# ---- every method, and one made here as a user would


class Kutta3(FixedStep):
    """Kutta's method of order 3 (Hairer, Nørsett, Wanner, II.1)."""

    tableau = ButcherTableau(
        c=(0.0, 0.5, 1.0), a=((), (0.5,), (-1.0, 2.0)), b=(1 / 6, 2 / 3, 1 / 6), order=3, b_err=(1 / 6, -1 / 3, 1 / 6)
    )


class AdaptiveKutta3(Adaptive):
    tableau = Kutta3.tableau  # embeds the midpoint rule


@pytest.mark.parametrize(
    "integrator",
    [
        *(method(200) for method in (Midpoint, Heun, Ralston, RK4, RK38, Kutta3)),
        *(method(rtol=1e-5, atol=1e-5) for method in (HeunEuler, AdaptiveKutta3)),
        Fehlberg2(rtol=1e-6, atol=1e-6),  # its estimate is that of a much better method of order 1
        *(method(rtol=1e-6, atol=1e-6) for method in (Bosh3, Dopri5, Tsit5, Dopri8)),
    ],
    ids=str,
)
def test_a_method_solves_and_counts(integrator, record):
    f = record(lambda t, y: -2 * t * y)
    solution = solve(f, torch.ones(1, 1, dtype=torch.float64), 0.0, 1.5, integrator)
    torch.testing.assert_close(solution.y.item(), math.exp(-(1.5**2)), rtol=0, atol=3e-5)
    assert solution.nfe.item() == solution.calls == f.calls
    assert solution.n_steps >= (3 if isinstance(integrator, Dopri8) else 5)


NFE = {HeunEuler: (0, 2), Fehlberg2: (0, 3), Bosh3: (1, 3), Dopri5: (1, 6), Tsit5: (1, 6), Dopri8: (1, 13)}


@pytest.mark.parametrize(("method", "nfe"), NFE.items())
def test_nfe_is_as_documented(method, nfe):
    first, each = nfe
    for extra, first_step in ((1, "heuristic"), (0, "span")):
        integrator = method(rtol=1e-4, atol=1e-4, first_step=first_step)
        solution = solve(lambda t, y: -2 * t * y, torch.ones(1, 1), 0.0, 3.0, integrator)
        assert solution.nfe == extra + first + each * solution.n_steps


@pytest.mark.parametrize("method", [HeunEuler, Fehlberg2, Bosh3, Dopri5, Tsit5])
def test_the_error_follows_the_tolerance(method):
    """A 100 times tighter tolerance: a 100 times smaller error, within a factor of 3, whatever the order."""
    y0 = torch.ones(1, 1, dtype=torch.float64)
    loose, tight = (
        abs(solve(lambda t, y: -2 * t * y, y0, 0.0, 1.5, method(rtol=tol, atol=tol)).y.item() - math.exp(-(1.5**2)))
        for tol in (1e-4, 1e-6)
    )
    assert 100 / 3 < loose / tight < 100 * 3
