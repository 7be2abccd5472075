import dataclasses
import math
from typing import Protocol

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dise import (
    RK4,
    RK38,
    RKC1,
    Adams,
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
    HutchinsonDivergence,
    IController,
    Integrator,
    Midpoint,
    Multistep,
    PIController,
    Ralston,
    StepDoubling,
    TimeGrid,
    Tsit5,
    grids,
    max_norm,
    solve,
)


def column(*values):
    return torch.tensor([values], dtype=torch.float64)


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("steps", [0, -1, 1.5, 2.0, True, "3", None])
@pytest.mark.parametrize("method", [Euler, Midpoint, RK4, RKC1])
def test_steps_must_be_a_positive_whole_number(method, steps):
    with pytest.raises(ValueError, match="steps: expected a whole number of at least 1"):
        method(steps)


@pytest.mark.parametrize("number", [np.int64, np.int32, np.uint8])
def test_whole_numbers_of_numpy_are_whole_numbers(number):
    """They are kept as Python's, since integrators are printed, compared and saved as JSON."""
    six, three = number(6), number(3)
    for made, expected in {
        Adams(six, max_steps=three): Adams(6, max_steps=3),
        RK4(six): RK4(6),
        RKC1(three, stages=six): RKC1(3, stages=6),
        Euler(grids.sway(six)): Euler(grids.sway(6)),
        Multistep.adams(six): Multistep.adams(6),
        HutchinsonDivergence(six): HutchinsonDivergence(6),
    }.items():
        assert (made, hash(made), repr(made)) == (expected, hash(expected), repr(expected))
    y0, f = torch.ones(2, 1), lambda t, y: -y
    saved = [solve(f, y0, 0.0, 1.0, Dopri5(), save_every=n).saved_t for n in (2, number(2))]
    assert torch.equal(*saved)
    with pytest.raises(ValueError, match="order: expected a whole number from 2 to 8, got"):
        Adams(number(9))


def test_numbers_and_arrays_of_numpy_are_kept_as_pythons():
    """torch's compiler takes others for tensors."""
    numbers = {"rtol": 0.25, "dt_max": 0.5, "dt_min": 0.125, "first_step": 0.25}
    theirs = {name: np.float32(x) for name, x in numbers.items()} | {"atol": np.array([0.5, 0.25])}
    controller = PIController(safety=np.float64(0.5))
    made, expected = Tsit5(**theirs, controller=controller), Tsit5(**numbers, atol=(0.5, 0.25), controller=controller)
    assert (made, hash(made), repr(made)) == (expected, hash(expected), repr(expected))
    assert repr(controller) == repr(PIController(safety=0.5))
    grid = TimeGrid(np.array([0.0, 0.25, 1.0]))
    assert repr(RK4(grid)) == repr(RK4(TimeGrid((0.0, 0.25, 1.0))))
    y0, f = torch.ones(3, 2), lambda t, y: -y
    with torch.no_grad():
        for integrator in (made, RK4(grid)):
            eager, traced = (
                solve(f, y0, 0.0, 1.0, integrator, compile=c, throw=False) for c in (False, {"backend": "eager"})
            )
            assert_close(traced.y, eager.y)


def test_an_integrator_may_implement_a_protocol():
    class Named(Protocol):
        name: str

    class Mine(Integrator, Named):
        name = "mine"

        def integrate(self, problem, run):
            return Euler(2).integrate(problem, run)

    assert solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0, Mine()).y.item() == 0.25


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


@pytest.mark.parametrize("argument", ["rtol", "atol"])
def test_a_tolerance_gets_no_gradient_and_says_so(argument):
    with pytest.raises(ValueError, match=f"{argument}: a tolerance has no gradient"):
        Dopri5(**{argument: torch.tensor(1e-3, requires_grad=True)})


@pytest.mark.parametrize("base", [FixedStep, Adaptive])
def test_a_method_needs_a_tableau(base):
    with pytest.raises(TypeError, match=f"tableau: {base.__name__} has no ButcherTableau; set one in a subclass"):
        base()
    with pytest.raises(TypeError, match="tableau: Mine has no ButcherTableau"):
        type("Mine", (base,), {"tableau": {"c": (0.0,)}})()


def test_an_adaptive_method_needs_an_error_estimate():
    with pytest.raises(ValueError, match="tableau: an adaptive method needs an error estimate"):
        type("Mine", (Adaptive,), {"tableau": RK4.tableau})()


def test_one_tolerance_must_be_positive():
    with pytest.raises(ValueError, match="rtol, atol: at least one must be positive"):
        Dopri5(rtol=0, atol=0)


def test_integrators_are_values():
    assert RK4(2) == RK4(steps=2) != RK4(3)
    assert RK4() != Euler()
    assert RKC1(2) == RKC1(steps=2, stages=4, damping=0.1) != RKC1(2, 5) != RKC1(2, 5, 0.2)
    assert len({RKC1(), RKC1(1, 4), RKC1(damping=0.1), RKC1(damping=0.2)}) == 2
    assert len({Dopri5(), Dopri5(rtol=1e-3, atol=1e-3), Dopri5(rtol=1e-4)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        RK4().steps = 2


@pytest.mark.parametrize(
    ("integrator", "text"),
    [
        (Euler(), "Euler"),
        (RK4(2), "RK4(steps=2)"),
        (RKC1(2, 3, 0.25), "RKC1(steps=2, stages=3, damping=0.25)"),
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
        RKC1(4000, 2),
        *(method(rtol=1e-5, atol=1e-5) for method in (HeunEuler, AdaptiveKutta3)),
        Fehlberg2(rtol=1e-6, atol=1e-6),  # its estimate is that of a much better method of order 1
        *(method(rtol=1e-6, atol=1e-6) for method in (Bosh3, Dopri5, Tsit5, Dopri8, Adams)),
    ],
    ids=str,
)
def test_a_method_solves_and_counts(integrator, record):
    f = record(lambda t, y: -2 * t * y)
    solution = solve(f, torch.ones(1, 1, dtype=torch.float64), 0.0, 1.5, integrator)
    accuracy = 2e-4 if isinstance(integrator, RKC1) else 3e-5  # of first order
    torch.testing.assert_close(solution.y.item(), math.exp(-(1.5**2)), rtol=0, atol=accuracy)
    assert solution.nfe.item() == solution.calls == f.calls
    assert solution.n_steps >= (3 if isinstance(integrator, Dopri8) else 5)


NFE = {
    HeunEuler: (0, 2),
    Fehlberg2: (0, 3),
    Bosh3: (1, 3),
    Dopri5: (1, 6),
    Tsit5: (1, 6),
    Dopri8: (1, 13),
    Adams: (1, 1),
}


@pytest.mark.parametrize(("method", "nfe"), NFE.items())
def test_nfe_is_as_documented(method, nfe):
    first, each = nfe
    for extra, first_step in ((1, "heuristic"), (0, "span")):
        integrator = method(rtol=1e-4, atol=1e-4, first_step=first_step)
        solution = solve(lambda t, y: -2 * t * y, torch.ones(1, 1), 0.0, 3.0, integrator)
        rejected = solution.n_steps - solution.n_accepted
        repeated = 0 if first else rejected  # what a method knows at a step's end it does not evaluate anyway
        assert solution.nfe == extra + first + each * solution.n_steps - repeated
        if first_step == "span":
            assert rejected > 0


WITHOUT_K1 = [method(rtol=1e-3, atol=1e-3, first_step="span") for method in (HeunEuler, Fehlberg2, AdaptiveKutta3)]


@pytest.mark.parametrize("integrator", WITHOUT_K1, ids=str)
@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_f_is_not_evaluated_again_after_a_rejected_step(integrator, gradient, record, starts):
    """Rows of f are the sum of what samples need, and each needs what a counter counts where it is alone."""
    rate = torch.logspace(-1, 1, 7, dtype=torch.float64)[:, None]
    y0 = starts(7, 2)

    def field(t, y, rate):
        return rate * torch.stack([y[:, 1], -y[:, 0]], 1) + torch.cos(rate * t)

    f = record(field)
    batch = solve(f, y0, 0.0, 2.0, integrator, sample_args=(rate,), gradient=gradient)
    assert f.rows == batch.nfe.sum()
    assert (batch.n_steps - batch.n_accepted > 0).sum() > 3
    for i in range(7):
        alone = record(field)
        solution = solve(alone, y0[i : i + 1], 0.0, 2.0, integrator, sample_args=(rate[i : i + 1],))
        assert alone.calls == solution.nfe == batch.nfe[i]
        assert_close(solution.y[0], batch.y[i], rtol=1e-9, atol=1e-11)
        assert alone.calls <= integrator.tableau.stages * int(solution.n_steps)


@pytest.mark.parametrize("max_steps", [1, 2, 3, 4, 5, 6])
def test_nfe_is_exact_where_the_last_step_was_rejected(max_steps, record):
    """Of all first steps over the whole span only the slowest sample's is accepted."""
    rate = torch.tensor([1e-6, 1.0, 10.0, 100.0]).double()[:, None]
    integrator = HeunEuler(rtol=1e-3, atol=1e-3, first_step="span", max_steps=max_steps)
    f = record(lambda t, y, rate: -rate * y)
    solution = solve(f, torch.ones_like(rate), 0.0, 1.0, integrator, sample_args=(rate,), throw=False)
    assert f.rows == solution.nfe.sum()
    rejected = solution.n_steps - solution.n_accepted
    # the evaluation at a start that no accepted step has used up
    assert torch.equal(solution.k1.isnan()[:, 0], solution.nfe == 2 * solution.n_steps - rejected)
    assert rejected[3] > 0


def test_k1_is_known_where_the_last_step_was_rejected():
    """From there one goes on without an evaluation of f at the start."""
    integrator = HeunEuler(rtol=1e-3, atol=1e-3, first_step="span", max_steps=1)
    solution = solve(lambda t, y: -9 * y, torch.ones(2, 1), 0.0, 1.0, integrator, throw=False)
    assert_close(solution.k1, torch.full((2, 1), -9.0))


@pytest.mark.parametrize("method", [HeunEuler, Fehlberg2, Bosh3, Dopri5, Tsit5])
def test_the_error_follows_the_tolerance(method):
    """A 100 times tighter tolerance: a 100 times smaller error, within a factor of 3, whatever the order."""
    y0 = torch.ones(1, 1, dtype=torch.float64)
    loose, tight = (
        abs(solve(lambda t, y: -2 * t * y, y0, 0.0, 1.5, method(rtol=tol, atol=tol)).y.item() - math.exp(-(1.5**2)))
        for tol in (1e-4, 1e-6)
    )
    assert 100 / 3 < loose / tight < 100 * 3


# ---- step doubling


def test_the_result_is_that_of_twice_the_steps(tanh_field, starts):
    f, y0 = tanh_field(3), starts(4, 3)
    doubled = solve(f, y0, 0.0, row(1.0, -1.0, 2.0, 0.0), StepDoubling(RK4(3)))
    assert_close(doubled.y, solve(f, y0, 0.0, row(1.0, -1.0, 2.0, 0.0), RK4(6)).y, rtol=1e-13, atol=1e-13)
    assert doubled.nfe.tolist() == [33, 33, 33, 0]
    assert doubled.n_steps.tolist() == [3, 3, 3, 0]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_its_nfe_is_the_counters(steps, record):
    f = record(lambda t, y: -y)
    solution = solve(f, torch.ones(2, 1), 0.0, 1.0, StepDoubling(RK4(steps)))
    assert solution.nfe.tolist() == [f.calls] * 2 == [11 * steps] * 2


def test_its_error_is_richardsons_by_hand():
    """One step of Euler's on y' = −2y: whole 1 − 2h, halves (1 − h)²; the difference is h²."""
    h = 0.1
    solution = solve(lambda t, y: -2 * y, column(1.0), 0.0, h, StepDoubling(Euler(1), rtol=1e-3, atol=1e-4))
    assert_close(solution.y, column((1 - h) ** 2))
    assert_close(solution.error, row(h**2 / (1e-4 + 1e-3)))


class AdaptiveRK4(Adaptive):
    tableau = RK4.tableau.doubled()


def test_an_adaptive_method_is_made_of_a_doubled_tableau():
    exact = math.exp(-(1.5**2))
    errors = []
    for tol in (1e-4, 1e-7):
        solution = solve(lambda t, y: -2 * t * y, column(1.0), 0.0, 1.5, AdaptiveRK4(rtol=tol, atol=tol))
        errors.append(abs(solution.y.item() - exact))
        assert solution.nfe == 1 + 10 * solution.n_steps + solution.n_accepted
    assert errors[0] < 1e-3
    assert 200 < errors[0] / errors[1] < 5000  # 1000 but for constants


# ---- integrators with these are values still


@pytest.mark.parametrize(
    ("integrator", "text"),
    [
        (Dopri5(controller=PIController()), "Dopri5(controller=PIController)"),
        (Dopri5(controller=IController(grow=2), dt_min=1), "Dopri5(dt_min=1, controller=IController(grow=2))"),
        (Dopri8(dt_min=1, accept_at_dt_min=True), "Dopri8(dt_min=1, accept_at_dt_min=True)"),
        (Tsit5(norm=max_norm), "Tsit5(norm=max_norm)"),
        (Bosh3(atol=torch.tensor([0.5, 0.25])), "Bosh3(atol=(0.5, 0.25))"),
        (Bosh3(atol={"b": [0.5], "a": 1}), "Bosh3(atol=(('a', 1), ('b', (0.5,))))"),
        (StepDoubling(RK4(2)), "StepDoubling(RK4(steps=2))"),
        (StepDoubling(RK4(), rtol=1e-5), "StepDoubling(RK4, rtol=1e-05)"),
    ],
)  # fmt: skip
def test_they_print_what_differs_from_the_defaults(integrator, text):
    assert str(integrator) == text
    assert integrator == dataclasses.replace(integrator)
    assert hash(integrator) == hash(dataclasses.replace(integrator))


def test_they_compare_by_value():
    assert Dopri5(atol=torch.tensor([0.5, 0.25])) == Dopri5(atol=[0.5, 0.25]) != Dopri5(atol=[0.5, 0.5])
    assert Dopri5(atol={"a": 1, "b": 2}) == Dopri5(atol={"b": 2, "a": 1})
    assert Dopri5(controller=PIController()) != Dopri5(controller=IController())
    assert StepDoubling(RK4(2)) == StepDoubling(RK4(2)) != StepDoubling(RK4(3))
    assert Dopri5(rtol=np.float64(1e-4)) == Dopri5(rtol=1e-4)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("rtol", torch.tensor([1e-3, -1.0]), "rtol: expected a finite number of at least 0, or a tensor of .*, got -1"),
        ("atol", {"a": math.nan}, "atol: expected"),
        ("atol", (1e-3, "1e-3"), "atol: expected numbers that broadcast"),
        ("atol", torch.tensor([1j]), "atol: expected"),
        ("atol", True, "atol: expected"),
        ("dt_min", -1, "dt_min: expected a finite number of at least 0, got -1"),
        ("dt_min", math.inf, "dt_min: expected"),
        ("dt_max", 0, "dt_max: expected a positive number of at least dt_min, got 0"),
        ("dt_max", math.nan, "dt_max: expected"),
        ("accept_at_dt_min", 2, "accept_at_dt_min: expected False, or True with a positive dt_min, got 2"),
        ("accept_at_dt_min", True, "accept_at_dt_min: .*, got True with dt_min=0"),
        ("controller", "PI", r"controller: expected one such as dise.PIController\(\), got 'PI'"),
        ("controller", PIController, "controller: expected one such as"),
        ("norm", "max", "norm: expected a function such as dise.max_norm, got 'max'"),
    ],
)  # fmt: skip
def test_a_bad_argument_says_what_was_expected(argument, value, message):
    with pytest.raises(ValueError, match=message):
        solve(lambda t, y: -y, torch.ones(2, 2), 0.0, 1.0, Dopri5(**{argument: value}))


def test_dt_max_is_at_least_dt_min():
    with pytest.raises(ValueError, match=r"dt_max: expected a positive number of at least dt_min, got 0\.1"):
        Dopri5(dt_min=0.2, dt_max=0.1)


def test_tolerances_may_not_all_be_0():
    assert Dopri5(rtol=0, atol=[0, 1e-3]).rtol == 0
    with pytest.raises(ValueError, match="rtol, atol: at least one must be positive"):
        Dopri5(rtol=[0, 0], atol={"a": 0})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IController(safety=1), "safety: expected a number between 0 and 1, got 1"),
        (lambda: IController(shrink=0), "shrink: expected a number between 0 and 1, got 0"),
        (lambda: IController(grow=1), "grow: expected a finite number above 1, got 1"),
        (lambda: PIController(proportional=-0.1), "proportional: expected a finite number of at least 0, got -0.1"),
        (lambda: PIController(integral=0), "integral: expected a finite number above 0, got 0"),
        (lambda: PIController(safety="0.9"), "safety: expected"),
        (lambda: StepDoubling(Dopri5()), "integrator: expected a fixed-step method such as RK4"),
        (lambda: StepDoubling(RK4(), rtol=-1), "rtol: expected"),
        (lambda: StepDoubling(RK4(), norm=2), "norm: expected a function"),
    ],
)
def test_bad_controllers_and_wrappers_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
