"""Gradients against finite differences (float64)."""

import math
from itertools import pairwise

import pytest
import torch
from torch.autograd import grad, gradcheck

from dise import RK4, RKC1, Dopri5, Euler, solve


def field(t, y, weight, gain, shift):
    """Nonlinear in all that it depends on; `gain` is an args, `shift` a sample_args."""
    return torch.tanh(y @ weight + gain * t) + shift * torch.sin(2 * t + y)


def inputs():
    """y0, t0, t1, weight, gain, shift of two samples, one of them backwards."""
    draw = torch.Generator().manual_seed(1)
    y0, weight, shift = (torch.randn(2, 2, generator=draw, dtype=torch.float64) for _ in range(3))
    t0, t1 = torch.tensor([0.1, 1.2], dtype=torch.float64), torch.tensor([1.0, 0.3], dtype=torch.float64)
    gain = torch.tensor(0.7, dtype=torch.float64)
    return tuple(x.requires_grad_() for x in (y0, t0, t1, weight, gain, shift))


def solution(integrator, y0, t0, t1, weight, gain, shift, **options):
    return solve(field, y0, t0, t1, integrator, args=(weight, gain), sample_args=(shift,), **options)


def y_and_error(integrator, **options):
    """What gradcheck differentiates: y, and the error estimate where there is one."""

    def function(*args):
        s = solution(integrator, *args, **options)
        return (s.y, s.error) if isinstance(integrator, Dopri5) else s.y

    return function


# a tolerance at which one step over all the span is accepted with an error estimate that is not negligible
SPAN = Dopri5(rtol=1e-4, atol=1e-4, first_step="span")
MANY = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("integrator", [Euler(1), Euler(3), RK4(1), RK4(2), RKC1(2)], ids=str)
@pytest.mark.parametrize("drop_finished", [True, False])
def test_fixed_steps(integrator, drop_finished):
    assert gradcheck(y_and_error(integrator, drop_finished=drop_finished), inputs(), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("differentiate_step_sizes", [True, False])
def test_one_dopri5_step(differentiate_step_sizes):
    args = inputs()
    s = solution(SPAN, *args)
    assert s.n_steps.tolist() == [1, 1]
    assert s.error.min() > 0.1
    assert gradcheck(y_and_error(SPAN, differentiate_step_sizes=differentiate_step_sizes), args, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("first_step", ["heuristic", "span", 0.1])
@pytest.mark.parametrize("drop_finished", [True, False])
def test_through_control_is_exact(first_step, drop_finished):
    integrator, args = Dopri5(**MANY, first_step=first_step), inputs()
    s = solution(integrator, *args)
    assert s.n_accepted.min() >= 2
    if first_step == "span":
        assert (s.n_accepted < s.n_steps).all()
    function = y_and_error(integrator, differentiate_step_sizes=True, drop_finished=drop_finished)
    assert gradcheck(function, args, eps=1e-4, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["y0", "weight", "gain", "shift"])
@pytest.mark.parametrize("first_step", ["heuristic", "span"])
def test_only_through_control_sees_what_finite_differences_see(first_step, name):
    """The error estimate depends on the lengths of the steps, which the default takes as constants."""
    integrator, args = Dopri5(**MANY, first_step=first_step), inputs()
    at, epsilon = ("y0", "t0", "t1", "weight", "gain", "shift").index(name), 1e-5

    def error(x, **options):
        return solution(integrator, *args[:at], x, *args[at + 1 :], **options).error.sum()

    with torch.no_grad():
        expected = (error(args[at] + epsilon) - error(args[at] - epsilon)) / (2 * epsilon)
    exact, detached = (
        grad(error(args[at], differentiate_step_sizes=through), args[at])[0].sum() for through in (True, False)
    )
    assert exact.item() == pytest.approx(expected.item(), rel=1e-5)
    assert detached.item() != pytest.approx(expected.item(), rel=1e-2)


def test_the_detached_gradient_is_that_of_the_steps_taken(tanh_field, starts):
    """It equals backpropagation through the same accepted steps, taken as constants."""
    f, y0 = tanh_field(3), starts(1, 3).requires_grad_()
    starts_of_steps = set()

    def note(step):
        starts_of_steps.add(step.t.item())
        return torch.zeros_like(step.t)

    sol = solve(f, y0, 0.0, 1.0, Dopri5(rtol=1e-6, atol=1e-6, first_step=0.3), accumulate=note)
    times = [*sorted(starts_of_steps), 1.0]
    assert sol.n_steps > sol.n_accepted == len(times) - 1
    y = y0
    for t, t_next in pairwise(times):
        y = solve(f, y, t, t_next, Dopri5(rtol=0, atol=1e9, first_step="span")).y
    torch.testing.assert_close(y, sol.y, rtol=1e-12, atol=1e-12)
    weights = (y0, *f.parameters())
    torch.testing.assert_close(grad(sol.y.sum(), weights), grad(y.sum(), weights), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("differentiate_step_sizes", [True, False])
@pytest.mark.parametrize("first_step", ["heuristic", "span", 0.1])
@pytest.mark.parametrize(
    ("f", "start", "expected"),
    [
        (lambda t, y, p: p * y, 1.0, 1.0),  # at p = 0 nothing moves: dy/dp = y0 T
        (lambda t, y, p: p * torch.ones_like(y), 0.0, 1.0),
        (lambda t, y, p: (1 + p) * t + 0 * y, 0.0, 0.5),
    ],
    ids=["f=0", "f=0 at y=0", "f linear in t"],
)
def test_an_error_of_0_has_a_finite_gradient(f, start, expected, first_step, differentiate_step_sizes):
    p = torch.zeros((), dtype=torch.float64, requires_grad=True)
    y0 = torch.full((2, 3), start, dtype=torch.float64, requires_grad=True)
    s = solve(
        f, y0, 0.0, 1.0, Dopri5(first_step=first_step), args=(p,), differentiate_step_sizes=differentiate_step_sizes
    )
    torch.testing.assert_close(s.error, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)
    for output in (s.y, s.error):
        for gradient in grad(output.sum(), (p, y0), retain_graph=True):
            assert gradient.isfinite().all()
    torch.testing.assert_close(grad(s.y.mean(), p)[0].item(), expected)


def test_no_graph_without_gradients(tanh_field, starts):
    with torch.no_grad():
        s = solve(tanh_field(3), starts(2, 3), 0.0, 1.0, Dopri5())
    assert not s.y.requires_grad
    assert not s.error.requires_grad


@pytest.mark.parametrize("batched", [True, False])
def test_gradients_of_a_tuple_state(batched):
    a, b = (torch.full((2, n), 0.3 * n, dtype=torch.float64, requires_grad=True) for n in (1, 3))

    def f(t, y):
        return y[1].sum(1, keepdim=True) * y[0], torch.cos(y[1] * t)

    def function(a, b):
        s = solve(f, (a, b), 0.1, 0.5, Dopri5(rtol=1e-2, atol=1e-2, first_step="span"), batched=batched)
        assert (s.n_steps == 1).all()
        return (*s.y, s.error)

    assert gradcheck(function, (a, b), atol=1e-7, rtol=1e-6)


def test_a_finished_sample_gets_its_gradient_whatever_its_neighbours_do(tanh_field, starts):
    """compact or not, beside slow samples or alone."""
    f, together = tanh_field(3), starts(4, 3).requires_grad_()
    integrator = Dopri5(rtol=1e-6, atol=1e-6)
    expected = torch.cat(
        [
            grad(solve(f, y0[None], 0.0, 1.0, integrator).y.sum(), together)[0][i : i + 1]
            for i, y0 in enumerate(together)
        ]
    )
    for drop_finished in (True, False):
        s = solve(f, together, 0.0, 1.0, integrator, drop_finished=drop_finished)
        assert len(s.n_steps.unique()) > 2
        torch.testing.assert_close(grad(s.y.sum(), together)[0], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("integrator", [RK4(2), Dopri5(**MANY)], ids=str)
@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_span_without_length_has_gradients_in_its_times(record, integrator, gradient, alone):
    """dy/dt1 = f(t1, y) and dy/dt0 = −f(t0, y0), of a save point too: what finite differences see."""
    y0 = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
    ends = [[0.3, 0.9], [0.3, 0.9 if alone else 1.5], [[0.3], [0.9]]]
    t0, t1, times = (torch.tensor(end, dtype=torch.float64, requires_grad=True) for end in ends)
    f = record(lambda t, y: y * torch.cos(3 * t) + t)
    solution = solve(f, y0, t0, t1, integrator, gradient=gradient, save_at=times)
    if gradient == "direct":
        assert solution.nfe[0] == 1
        assert solution.nfe.sum() == f.rows
    slope = (y0[0] * math.cos(0.9) + 0.3).sum().item()
    for state in (solution.y[0], solution.saved[0, 0]):
        assert state.tolist() == y0[0].tolist()
    of_t0, of_t1 = grad(solution.y[0].sum(), (t0, t1), retain_graph=True)
    assert of_t1[0].item() == pytest.approx(slope)
    assert of_t0[0].item() == pytest.approx(-slope)
    of_t0, of_times = grad(solution.saved[0].sum(), (t0, times))
    assert of_times[0, 0].item() == pytest.approx(slope)
    assert of_t0[0].item() == pytest.approx(-slope)


@pytest.mark.parametrize("batched", [True, False])
def test_where_f_is_undefined_a_span_without_length_still_ends(batched):
    t1 = torch.tensor(1.0, requires_grad=True)
    solution = solve(lambda t, y, rate: rate * y / 0, torch.ones(2, 3), 1.0, t1, Dopri5(), batched=batched,
                     sample_args=(torch.ones(2, 1),))  # fmt: skip
    assert solution.y.tolist() == [[1.0] * 3] * 2
    assert grad(solution.y.sum(), t1)[0] == 0
