"""One step of an Adams method from points at any times: exact for polynomials, and the textbook's for equal steps."""

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial
from torch.testing import assert_close

from dise.integrate.multistep.adams_weights import bashforth_weights, moulton_weights
from dise.integrate.multistep.own_steps import AdamsAttempt, AdamsFormula, History

ORDERS = tuple(range(2, 9))


def double(values):
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


def differences(slope, points):
    """Π_{0<i≤j} (x_0 − x_i) f[x_0, …, x_j], j from 1: leading coefficients of interpolating polynomials, by NumPy."""
    x, found = np.asarray(points) - points[0], []
    for j in range(1, len(x)):
        system = np.vander(x[: j + 1], increasing=True)
        leading = np.linalg.solve(system, [slope(t) for t in points[: j + 1]])[-1]
        found.append(leading * np.prod(-x[1 : j + 1]))
    return found


def history_of(slope, t, past_t, number=None):
    """What one sample knows at t of f, a function of time, at earlier points."""
    count = torch.tensor([len(past_t) if number is None else number])
    separations = double([t - s for s in past_t]).reshape(1, -1)
    return History(double(differences(slope, [t, *past_t])).reshape(1, -1, 1), separations, count, double([[0.0]]))


def attempt_of(order, slope, t, t_next, past_t, number=None):
    """The step from t to t_next of one sample with y = 0, where f is a function of time; f at its end is given."""
    history = history_of(slope, t, past_t, number)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    attempt = AdamsAttempt(AdamsFormula(order), double([t]), double([t_next]), zero, double([[slope(t)]]), history)
    assert attempt.point()[0].item() == t_next
    attempt.stages.append(double([[slope(t_next)]]))
    assert not attempt.pending
    return attempt


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("seed", range(3))
def test_polynomials_of_lower_degree_are_exact(order, sign, seed):
    draw = np.random.default_rng(seed)
    polynomial = Polynomial(draw.normal(size=order))
    back = sign * np.cumsum(draw.uniform(0.05, 1.5, order - 2))
    t, dt = draw.normal(), sign * draw.uniform(0.1, 2)
    attempt = attempt_of(order, polynomial, t, t + dt, t - back)
    step, integral = attempt.finish(), polynomial.integ()
    assert step.y_next.item() == pytest.approx(integral(t + dt) - integral(t), rel=1e-9, abs=1e-9)
    stages = [stage.item() for stage in step.stages]
    assert stages == pytest.approx([polynomial(t + c * dt) for c in step.tableau.c], rel=1e-8, abs=1e-8)
    # the predictor interpolates one point less: the estimate is what it misses
    nodes = np.array([t, *(t - back)])
    predictor = Polynomial.fit(nodes, polynomial(nodes), order - 2).integ() if order > 2 else None
    value = polynomial(t) * dt if predictor is None else predictor(t + dt) - predictor(t)
    assert step.error().item() == pytest.approx(integral(t + dt) - integral(t) - value, rel=1e-6, abs=1e-8)
    assert step.estimate.order.item() == order


@pytest.mark.parametrize("order", ORDERS)
def test_equal_steps_have_the_textbooks_weights(order):
    """The weights of Hairer, Nørsett, Wanner, III.1, which `adams_weights` computes as fractions."""
    for i in range(order):  # f is 1 at one of the points, the newest first, and 0 at the others
        unit = lambda t, i=i: float(round(1 - t) == i)  # noqa: E731
        attempt = attempt_of(order, unit, 0.0, 1.0, [-1.0 * j for j in range(1, order - 1)])
        assert attempt.finish().y_next.item() == pytest.approx(float(moulton_weights(order)[i]), rel=1e-12, abs=1e-12)
        predicted = attempt.point()[1].item()
        expected = 0.0 if i == 0 else float(bashforth_weights(order - 1)[i - 1])
        assert predicted == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_points_that_do_not_count_are_not_read(number):
    past_t = [-1.0, -2.5, -4.0]
    slope = lambda t: np.exp(t)  # noqa: E731
    some = attempt_of(5, slope, 0.0, 1.5, past_t, number).finish()
    fewer = attempt_of(number + 2, slope, 0.0, 1.5, past_t[:number]).finish()
    assert_close(some.y_next, fewer.y_next)
    assert_close(some.error(), fewer.error())
    assert some.estimate.order.item() == number + 2


@pytest.mark.parametrize("order", ORDERS)
def test_lobattos_weights_are_a_quadrature_of_the_nodes(order):
    formula = AdamsFormula(order)
    for degree in range(2 * order - 2):
        value = sum(b * c**degree for b, c in zip(formula.b, formula.c, strict=True))
        assert value == pytest.approx(1 / (degree + 1), abs=1e-12)


def test_a_step_of_no_length_changes_nothing():
    step = attempt_of(4, np.exp, 0.5, 0.5, [0.2, 0.1]).finish()
    assert step.y_next.item() == 0
    assert all(stage.isfinite().all() for stage in step.stages)


@pytest.mark.parametrize("order", ORDERS)
def test_histories_after_steps_know_the_latest_points(order):
    """The second sample rejects every third step; the start of a short step is forgotten where there are others."""
    t, formula, known = double([0.0, 0.5]), AdamsFormula(order), [[0.0], [0.5]]
    history = History.none(formula, t, double([[0.0], [0.0]]))
    draw = np.random.default_rng(0)
    for k in range(12):
        t_next = t + double(draw.uniform(0.3, 1.0, 2))
        slope = lambda t: t.sin()[:, None]  # noqa: E731
        attempt = AdamsAttempt(formula, t, t_next, double([[0.0], [0.0]]), slope(t), history)
        attempt.stages.append(slope(t_next))
        attempt.finish()
        accept, short = torch.tensor([True, k % 3 != 2]), torch.tensor([k % 5 == 4, False])
        history = attempt.history(None if accept.all() else accept, short)
        t = torch.where(accept, t_next, t)
        for i in range(2):
            if accept[i]:
                known[i] = [t[i].item(), *(known[i][1:] if short[i] else known[i])][: order - 1]
            points = known[i]
            assert history.number[i].item() == len(points) - 1
            assert history.separations[i, : len(points) - 1].tolist() == pytest.approx(
                [points[0] - x for x in points[1:]]
            )
            found = history.differences[i, : len(points) - 1, 0].tolist()
            assert found == pytest.approx(differences(np.sin, points), abs=1e-9)


def test_rejected_steps_keep_their_rounding():
    t, y = double([0.0, 0.0]), torch.tensor([[1.0], [1.0]])
    kept = torch.full_like(y, 3e-9)
    history = History.none(AdamsFormula(3), t, y)._replace(rounding=kept)
    attempt = AdamsAttempt(AdamsFormula(3), t, t + 1e-9, y, torch.ones_like(y), history)
    attempt.stages.append(torch.ones_like(y))
    attempt.finish()
    after = attempt.history(torch.tensor([True, False]), torch.tensor([False, False]))
    assert_close(after.rounding, torch.tensor([[4e-9], [3e-9]]), rtol=1e-5, atol=0)


def test_without_values_inside_a_step_ends_the_same():
    steps = [attempt_of(6, np.exp, 0.0, 0.5, [-0.2, -0.3, -0.7, -1.0]) for _ in range(2)]
    whole, ends = steps[0].finish(), steps[1].finish(inside=False)
    assert torch.equal(whole.y_next, ends.y_next)
    assert torch.equal(whole.error(), ends.error())
    assert torch.equal(torch.cat([whole.stages[0], whole.stages[-1]]), torch.cat(ends.stages))


def test_the_rounding_of_a_sum_is_kept_for_the_next_step():
    """y = 1 and 1,000 steps of 1e-9 in float32, which is too coarse for each of them alone."""
    t, y = torch.zeros(1), torch.ones(1, 1)
    formula, slope = AdamsFormula(4), torch.full((1, 1), 1e-6)
    history = History.none(formula, t, y)
    for _ in range(1000):
        attempt = AdamsAttempt(formula, t, t + 1e-3, y, slope, history)
        attempt.stages.append(slope)
        y = attempt.finish().y_next
        history = attempt.history(None, torch.zeros(1, dtype=torch.bool))
        t = t + 1e-3
    assert y.item() == pytest.approx(1 + 1e-6, abs=1.2e-7)
    assert (y.double() + history.rounding.double()).item() == pytest.approx(1 + 1e-6, rel=1e-10)
