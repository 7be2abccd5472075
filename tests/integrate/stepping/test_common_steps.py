"""Solves by fixed steps without a row of numbers per sample, beside the loop's, which has them."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from dise import RK4, RKC1, Dopri5, Euler, Heun, Midpoint, NeuralODE, SolveError, Status, grids, solve
from dise.integrate import FixedStep


class FirstSameAsLast(FixedStep):
    tableau = Dopri5.tableau


METHODS = [
    Euler(1),
    Euler(5),
    Midpoint(1),
    Midpoint(4),
    Heun(3),
    RK4(1),
    RK4(4),
    RKC1(2),
    RK4(grids.sway(4)),
    FirstSameAsLast(3),
]
SPANS = [(0.0, 1.0), (1.0, -0.5), (torch.linspace(0, 0.9, 4), 1.0), (torch.tensor([0.0, 1.0, 0.5, 1.0]), 1.0)]


def smooth(t, y):
    return torch.tanh(1.3 * y) + 0.1 * t


def bounded(t, y):
    """Finite wherever it is evaluated, even at infinity, but at the start of the last sample."""
    return torch.where(y == 3, torch.inf, torch.tanh(y))


def explosive(t, y):
    """Samples above 2 fail, each after another number of steps."""
    return torch.where(y > 2, torch.nan, 1 + y**2)


def by_the_loop(*arguments, **options):
    """The solve whose rounds are observed, for which the loop keeps a row per sample."""
    return solve(*arguments, progress=lambda progress: None, **options)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("f", [smooth, bounded, explosive])
def test_every_field_is_the_loops(f, method):
    y0 = torch.tensor([[0.0, 0.1], [1.0, -1.0], [0.5, 1.5], [0.3, 3.0]])
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for span in SPANS if method.grid.span is None else SPANS[:1]:
            got, expected = (by(f, y0.to(dtype), *span, method, throw=False) for by in (solve, by_the_loop))
            for name in ("y", "t", "nfe", "n_steps", "n_accepted", "error", "status", "dt", "k1"):
                assert_close(getattr(got, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_gradients_are_the_loops(method):
    gradients = []
    for by in (solve, by_the_loop):
        y0, t1 = torch.tensor([[0.1], [0.5]], requires_grad=True), torch.tensor([1.0, 0.7], requires_grad=True)
        end = by(smooth, y0, 0.0, t1 if method.grid.span is None else 1.0, method).y
        gradients.append(torch.autograd.grad(end.sum(), (y0, t1), allow_unused=True))
    assert_close(*gradients, rtol=0, atol=0)


def test_a_first_stage_that_the_end_does_not_show_is_found():
    solution = solve(bounded, torch.tensor([[1.0], [3.0]]), 0.0, 1.0, Midpoint(1), throw=False)
    assert solution.status.tolist() == [Status.SUCCESS, Status.NON_FINITE]
    assert solution.n_steps.tolist() == [1, 0]


def test_other_samples_continue_after_one_has_failed(record):
    f = record(explosive)
    solution = solve(f, torch.tensor([[0.0], [1.9]]), 0.0, 0.5, RK4(5), throw=False)
    assert solution.status.tolist() == [Status.SUCCESS, Status.NON_FINITE]
    assert solution.n_accepted[0] == 5
    assert_close(solution.y[0, 0], torch.tensor(0.5).tan(), rtol=1e-4, atol=0)
    assert solution.calls == f.calls


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("method", "most"), [(Euler(1), 22), (Midpoint(1), 31), (RK4(1), 40)], ids=str)
def test_operators_beside_f(method, most):
    block = NeuralODE(torch.nn.Flatten(), method)  # any module; f is replaced
    block.f.forward = lambda t, y: slope
    y0 = slope = torch.randn(1, 3, 2, 2)
    with torch.no_grad(), Operators() as operators:
        block(y0)
    assert len(operators.names) <= most
    assert sum("local_scalar" in name for name in operators.names) <= 3  # reads of a value


@pytest.mark.parametrize("integrator", [Euler(2), Dopri5()], ids=str)
@pytest.mark.parametrize("options", [{}, {"gradient": "checkpoint"}, {"gradient": "backsolve"}, {"batched": False}])
def test_a_blocks_state_is_its_solutions(integrator, options, tanh_field, starts):
    block = NeuralODE(tanh_field().double(), integrator, **options)
    y0 = starts(3, 3).requires_grad_()
    assert_close(block(y0), block.solve(y0).y, rtol=0, atol=0)
    gradients = [torch.autograd.grad(end.sum(), y0)[0] for end in (block(y0), block.solve(y0).y)]
    assert_close(*gradients, rtol=0, atol=0)


def test_a_block_raises_its_solves_error():
    block = NeuralODE(torch.nn.Flatten(), Euler(3))
    block.f.forward = explosive
    messages = []
    for call in (block, block.solve):
        with pytest.raises(SolveError) as error:
            call(torch.tensor([[0.0], [1.9]]))
        messages.append(str(error.value))
        assert error.value.solution.status.tolist() == [Status.SUCCESS, Status.NON_FINITE]
    assert messages[0] == messages[1]


def test_a_subclass_may_change_how_a_block_solves(starts):
    class Shifted(NeuralODE):
        def solve(self, y0, **options):
            return super().solve(y0 + 1, **options)

    block = Shifted(torch.nn.Flatten(), Euler(1))
    block.f.forward = smooth
    y0 = starts(3)
    assert_close(block(y0), solve(smooth, y0 + 1, 0.0, 1.0, Euler(1)).y)
