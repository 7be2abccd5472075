"""Adams–Bashforth tables: exactness, order, and Runge–Kutta methods as tables."""

import itertools
import math

import pytest
import torch

import dise
from dise import RK4, RK38, Euler, Heun, Midpoint, Multistep, TimeGrid, grids
from dise.integrate.multistep.adams import quadrature

DOUBLE = torch.float64


def random_grid(steps, seed):
    """A grid whose steps differ by a factor of up to three."""
    lengths = 1 + 2 * torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    inside = (lengths.cumsum(0) / lengths.sum()).tolist()[:-1]
    return TimeGrid((0.0, *inside, 1.0))


def refined(grid):
    """The grid with each step halved."""
    middles = [(a + b) / 2 for a, b in zip(grid.fractions, grid.fractions[1:], strict=False)]
    return TimeGrid(tuple(sorted((*grid.fractions, *middles))))


def rotation(t, y):
    """y' = (1 + t) J y, with the closed form y(t) = R(t + t²/2) y(0)."""
    return (1 + t) * torch.stack([y[:, 1], -y[:, 0]], 1)


def error(integrator):
    y0 = torch.tensor([[1.0, 0.3], [0.2, -1.0]], dtype=DOUBLE)
    angle = 1.0 + 0.5
    turned = y0 @ torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=DOUBLE)
    return float((dise.solve(rotation, y0, 0.0, 1.0, integrator).y - turned).abs().max())


@pytest.mark.parametrize("method", [Multistep.adams, Multistep.ipndm])
@pytest.mark.parametrize("order", [1, 2])
def test_low_orders_on_equal_steps(method, order):
    errors = [error(method(n, order)) for n in (40, 80, 160)]
    observed = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert observed[-1] == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("start", ["equal", "random"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order_by_halving(order, start):
    grid = grids.uniform(20) if start == "equal" else random_grid(20, seed=order)
    errors = []
    for _ in range(4):
        errors.append(error(Multistep.adams(grid, order)))
        grid = refined(grid)
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("start", ["equal", "random"])
@pytest.mark.parametrize("order", [2, 3])
def test_order_with_the_corrector_by_halving(order, start):
    grid = grids.uniform(40) if start == "equal" else random_grid(40, seed=order)
    errors = []
    for _ in range(6):  # the first and the last step, which are predicted alone, fade slowly
        errors.append(error(Multistep.adams(grid, order, corrector=True)))
        grid = refined(grid)
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(order, abs=0.15)


def test_the_corrector_is_predict_evaluate_correct():
    """Order 2 on unequal steps, written as the textbook has it, with the weights of unequal steps by hand."""
    grid, y0 = random_grid(7, seed=3), torch.tensor([[1.0, 0.3]], dtype=DOUBLE)
    f = lambda t, y: torch.sin(3 * y) + t  # noqa: E731
    t, corrected, predicted, past = grid.fractions, y0, y0, None
    for i in range(grid.steps):
        h, v = t[i + 1] - t[i], f(t[i], predicted)
        if i == 0:
            predicted = corrected + h * v
        else:
            before = t[i] - t[i - 1]
            corrected = corrected + before / 2 * (past + v)
            predicted = corrected + h * ((1 + h / (2 * before)) * v - h / (2 * before) * past)
        past = v
    solution = dise.solve(f, y0, 0.0, 1.0, Multistep.adams(grid, 2, corrector=True))
    torch.testing.assert_close(solution.y, predicted, rtol=1e-14, atol=1e-14)
    assert solution.nfe.tolist() == [7]


@pytest.mark.parametrize("order", [2, 3])
def test_the_corrector_lowers_the_error_at_the_same_evaluations(order):
    grid = random_grid(40, seed=5)
    assert error(Multistep.adams(grid, order, corrector=True)) < error(Multistep.adams(grid, order)) / 2


def test_the_corrector_halves_the_interval_of_stability():
    decay = lambda t, y: -100 * y  # noqa: E731
    y0 = torch.ones(1, 1, dtype=DOUBLE)
    for steps, corrector, stable in ((105, False, True), (105, True, False), (205, True, True)):
        y = dise.solve(decay, y0, 0.0, 1.0, Multistep.adams(steps, 2, corrector=corrector)).y
        assert (y.abs().item() < 1) == stable


@pytest.mark.parametrize("order", [1, 4, 5])
def test_orders_without_a_corrector_are_refused(order):
    with pytest.raises(ValueError, match=f"order: expected 2 or 3 with a corrector, got {order}"):
        Multistep.adams(8, order, corrector=True)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_polynomials_are_integrated_exactly_on_any_grid(order):
    """Beyond the first steps, the weights of order k integrate polynomials of degree k − 1 in t exactly."""
    degree = order - 2  # the first steps have one order less
    f = lambda t, y: (1 + t) ** degree + 0 * y  # noqa: E731
    y = dise.solve(f, torch.zeros(1, 1, dtype=DOUBLE), 0.0, 3.0, Multistep.adams(random_grid(9, seed=0), order)).y
    assert y.item() == pytest.approx((4 ** (degree + 1) - 1) / (degree + 1), rel=1e-12)


def test_classical_weights_of_equal_steps():
    """The last row of a table of equal steps holds the textbook's weights: Hairer, Nørsett, Wanner, Table III.1.1."""
    weights = [
        (dise.Multistep.adams(8, order).table.updates[-1].sum, expected)
        for order, expected in {2: (3, -1), 3: (23, -16, 5), 4: (55, -59, 37, -9)}.items()
    ]
    for found, expected in weights:
        terms = sorted([(found.first, 1.0), *found.others], reverse=True)
        scale = 8 * found.scale * sum(expected)
        assert [scale * factor for _, factor in terms] == pytest.approx(expected)


@pytest.mark.parametrize(("order", "nfe"), [(1, 12), (2, 12), (3, 12), (4, 14)])
def test_evaluations_of_f(order, nfe):
    solution = dise.solve(rotation, torch.ones(2, 2, dtype=DOUBLE), 0.0, 1.0, Multistep.adams(12, order))
    assert solution.nfe.tolist() == [nfe, nfe]
    assert solution.calls == nfe


@pytest.mark.parametrize("integrator", [Euler(7), Midpoint(5), Heun(grids.sway(4)), RK4(3), RK38(grids.power(2, 2.0))])
def test_runge_kutta_methods_as_tables(integrator):
    y0 = torch.tensor([[1.0, 0.3], [0.2, -1.0]], dtype=DOUBLE)
    t1 = torch.tensor([2.0, -1.0], dtype=DOUBLE)
    direct, table = (dise.solve(rotation, y0, 0.5, t1, m) for m in (integrator, Multistep.of(integrator)))
    torch.testing.assert_close(table.y, direct.y, rtol=1e-14, atol=1e-14)
    assert torch.equal(table.nfe, direct.nfe)


def test_first_order_is_eulers_method():
    y0 = torch.tensor([[1.0, 0.3]], dtype=DOUBLE)
    euler, table = (dise.solve(rotation, y0, 0.0, 2.0, m).y for m in (Euler(9), Multistep.adams(9, 1)))
    torch.testing.assert_close(table, euler, rtol=1e-14, atol=0)


def test_quadrature_of_four_nodes_is_exact_to_degree_three():
    nodes, a, b = [0.1, 0.25, 0.7, 0.75], 0.75, 1.3
    weights = quadrature(nodes, a, b)
    for degree in range(4):
        exact = (b ** (degree + 1) - a ** (degree + 1)) / (degree + 1)
        assert sum(w * x**degree for w, x in zip(weights, nodes, strict=True)) == pytest.approx(exact, rel=1e-12)


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="order: expected 1, 2, 3 or 4, got 5"):
        Multistep.adams(8, order=5)
