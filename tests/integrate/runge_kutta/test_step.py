import math

import numpy as np
import pytest
import torch

from dise import (
    RK4,
    RK38,
    RKC1,
    Bosh3,
    Dopri5,
    Dopri8,
    Euler,
    Fehlberg2,
    Heun,
    HeunEuler,
    Midpoint,
    Ralston,
    Step,
    Tsit5,
    solve,
)
from dise.integrate.runge_kutta.classical import DOPRI5
from dise.integrate.runge_kutta.classical import EULER as EULER_TABLEAU
from dise.integrate.runge_kutta.step import finite_rows, unscaled_sum
from dise.integrate.runge_kutta.tableau import WeightedSum

ANY = {"rtol": 0, "atol": 1e6, "first_step": "span"}  # accepts whatever it tries; the error's scale is constant
ONE_STEP = Dopri5(**ANY)
SIZES = [0.2 / 2**i for i in range(4)]
FIXED = {Euler: 1, Midpoint: 2, Heun: 2, Ralston: 2, RK4: 4, RK38: 4, RKC1: 1}
ADAPTIVE = {HeunEuler: 2, Fehlberg2: 2, Bosh3: 3, Dopri5: 5, Tsit5: 5, Dopri8: 8}
fixed = pytest.mark.parametrize(("method", "order"), FIXED.items())
adaptive = pytest.mark.parametrize(("method", "order"), ADAPTIVE.items())


def slope(values, sizes=SIZES):
    """Order of convergence: the mean slope of log(values) over log(sizes)."""
    return np.polyfit(np.log(sizes), np.log(np.abs(values)), 1)[0]


def one_step(h, integrator):
    """y' = (cos(t) y₁, −t y₂, sin(t) y₃) from 1 at t = 0.3: one step of length h, and the error's norm."""
    t0, t1 = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.3 + h, dtype=torch.float64)
    y0 = torch.ones(1, 3, dtype=torch.float64)

    def f(t, y):
        return torch.stack([t[:, 0].cos() * y[:, 0], -t[:, 0] * y[:, 1], t[:, 0].sin() * y[:, 2]], 1)

    solution = solve(f, y0, t0, t1, integrator)
    exact = [(t1.sin() - t0.sin()).exp(), ((t0**2 - t1**2) / 2).exp(), (t0.cos() - t1.cos()).exp()]
    return solution, torch.linalg.vector_norm(solution.y[0] - torch.stack(exact)).item()


def sizes_for(order):
    """A high order's errors are rounding where a low order's are not small yet."""
    return [0.6 / 1.4**i for i in range(4)] if order == 8 else SIZES


@pytest.mark.parametrize(
    ("integrator", "order"),
    [*((method(), p) for method, p in FIXED.items()), *((method(**ANY), p) for method, p in ADAPTIVE.items())],
    ids=str,
)
def test_local_error_is_of_order_p_plus_1(integrator, order):
    sizes = sizes_for(order)
    errors = [one_step(h, integrator)[1] for h in sizes]
    assert slope(errors, sizes) == pytest.approx(order + 1, abs=0.3)


@fixed
def test_global_error_is_of_order_p(method, order):
    """y' = y on [0, 1]; the slope in 1/steps."""
    y0 = torch.ones(1, 1, dtype=torch.float64)
    errors = [solve(lambda t, y: y, y0, 0.0, 1.0, method(round(1 / h))).y.item() - math.e for h in SIZES]
    assert slope(errors) == pytest.approx(order, abs=0.3)


@adaptive
def test_error_estimate_is_of_the_embedded_methods_local_order(method, order):
    sizes = sizes_for(order)
    estimates = [one_step(h, method(**ANY))[0].error.item() for h in sizes]
    assert slope(estimates, sizes) == pytest.approx(order, abs=0.3)


def capture(f, y0, t1, integrator):
    """The attempted steps of a solve, as `accumulate` sees them."""
    steps = []
    solve(f, y0, 0.0, t1, integrator, accumulate=lambda step: steps.append(step) or torch.zeros_like(step.t))
    return steps


@pytest.mark.host
def test_error_estimate_is_the_difference_of_the_two_methods():
    """On y' = λy a method multiplies y by R(z) = 1 + z bᵀ (I − zA)⁻¹ 1, z = λh (Hairer, Wanner, IV.3.2)."""
    A, b_err = np.zeros((7, 7)), np.array(DOPRI5.b_err)
    for i, row in enumerate(DOPRI5.a):
        A[i, :i] = row
    z = np.array([-2.0, 0.5, 1.0]) * 0.8
    expected = [zi * b_err @ np.linalg.solve(np.eye(7) - zi * A, np.ones(7)) for zi in z]
    (step,) = capture(lambda t, y: y * torch.tensor(z) / 0.8, torch.ones(2, 3, dtype=torch.float64), 0.8, ONE_STEP)
    np.testing.assert_allclose(step.error(), [expected, expected], rtol=1e-9)


def test_a_step_holds_its_stages():
    (step,) = capture(lambda t, y: t + 0 * y, torch.zeros(2, 1, dtype=torch.float64), 2.0, ONE_STEP)
    stages = torch.cat(step.stages, dim=1)
    torch.testing.assert_close(stages, 2 * torch.tensor([DOPRI5.c] * 2, dtype=torch.float64))  # k_i = t + c_i dt
    torch.testing.assert_close(step.y_next, torch.full((2, 1), 2.0, dtype=torch.float64))  # ∫ t = t²/2
    assert step.dt.tolist() == [2, 2]


def test_a_method_without_error_estimate_says_so():
    one = torch.ones(1)
    step = Step(one, one, one[:, None], one[:, None], (one[:, None],), EULER_TABLEAU)
    with pytest.raises(ValueError, match=r"no embedded error estimate; use one that has, e\.g\. Dopri5"):
        step.error()


def test_stages_of_weight_0_are_not_read():
    nan = torch.tensor(math.nan)
    terms = WeightedSum.of((0.0, 2.0, 0.0, -1.0))
    assert terms.scale * unscaled_sum(terms, (nan, torch.tensor(3.0), nan, torch.tensor(4.0))) == 2 * 3 - 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_rows_are_finite_or_not(dtype):
    x = torch.randn(5, 3).to(dtype)
    x[1, 2], x[2, 0], x[3, 1] = torch.nan, torch.inf, -torch.inf
    x[4] = torch.finfo(x.real.dtype).max
    assert finite_rows(x).tolist() == x.isfinite().all(1).tolist() == [True, False, False, False, True]
    assert finite_rows(x[:, :0]).all()
