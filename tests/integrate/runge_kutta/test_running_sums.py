"""Sums of stages that grow with each stage: the same steps as sums made one by one, to the last bit."""

import pytest
import torch
import torch.autograd.forward_ad as forward
from torch.testing import assert_close

from dise import RK4, Bosh3, Dopri5, Dopri8, HeunEuler, solve
from dise.integrate.output.interpolation import states_within
from dise.integrate.runge_kutta.running_sums import MAX_NUMEL, RunningSums
from dise.integrate.runge_kutta.step import Attempt

TABLEAUS = [Dopri5.tableau, Bosh3.tableau, HeunEuler.tableau, Dopri8.tableau, RK4.tableau, RK4.tableau.doubled()]
tableaus = pytest.mark.parametrize("tableau", TABLEAUS, ids=lambda tableau: f"{tableau.stages} stages")


def attempt(tableau, y, t, t_next, sums=None, known=True):
    """A step of y' = −t y."""
    step = Attempt(tableau, t, t_next, y, -t.to(y.real.dtype)[:, None] * y if known else None, sums=sums)
    while step.pending:
        time, state = step.point()
        step.stages.append(-time[:, None] * state)
    return step


@tableaus
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("n", [0, 1, 5, 37])
def test_steps_are_those_of_sums_made_one_by_one(tableau, dtype, n):
    y = torch.randn(n, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(-1, 1, n, dtype=torch.float64)
    sums = RunningSums(tableau, y)
    for length in (0.5, 0.1):  # the second step overwrites the first one's sums
        for known in (True, False):
            ours, theirs = (attempt(tableau, y, t, t + length, s, known) for s in (sums, None))
            steps = ours.finish(), theirs.finish()
            assert_close(steps[0].y_next, steps[1].y_next, rtol=0, atol=0)
            assert_close(steps[0].stages, steps[1].stages, rtol=0, atol=0)
            if tableau.b_err is not None:
                assert_close(ours.error(), theirs.error(), rtol=0, atol=0)
                assert_close(ours.error(), steps[0].error(), rtol=0, atol=0)


@pytest.mark.parametrize("tableau", TABLEAUS[:4], ids=lambda tableau: f"{tableau.stages} stages")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_states_within_a_step_are_those_of_its_interpolant(tableau, dtype):
    y = torch.randn(5, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    t, inside = torch.linspace(-1, 1, 5, dtype=torch.float64), (0.0, 0.3, 1.0)
    sums = RunningSums(tableau, y, inside)
    for length in (0.5, 0.1):
        ours, theirs = (attempt(tableau, y, t, t + length, s).finish() for s in (sums, None))
        assert theirs.inside is None
        assert_close(ours.y_next, theirs.y_next, rtol=0, atol=0)
        assert_close(ours.inside, states_within(theirs, inside))
        assert_close(ours.inside[0], y, rtol=0, atol=0)
        assert_close(ours.inside[2], ours.y_next)


@torch.no_grad()
def test_for_small_states_without_gradients():
    small = torch.ones(4, 2)
    assert RunningSums.suit(Dopri5.tableau, small)
    assert not RunningSums.suit(Dopri5.tableau, torch.ones(MAX_NUMEL, 1))
    assert not RunningSums.suit(RK4.tableau, small)  # most of its sums have one term
    with torch.enable_grad():
        assert not RunningSums.suit(Dopri5.tableau, small)
    with forward.dual_level():
        assert not RunningSums.suit(Dopri5.tableau, small)
    seen = []
    torch.func.vmap(lambda y: seen.append(RunningSums.suit(Dopri5.tableau, y)) or y)(small[None])
    assert seen == [False]


def test_what_is_kept_of_a_step_is_not_overwritten(tanh_field, starts):
    """Dense output reads the steps after the solve, with and without running sums."""
    f, y0, times = tanh_field(3), starts(5, 3), torch.linspace(0.0, 4.0, 9)
    values = []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            values.append(solve(f, y0, 0.0, 4.0, Dopri5(rtol=1e-6, atol=1e-6), dense=True).evaluate(times).detach())
    assert_close(*values, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_forward_derivatives_without_reverse_ones():
    with forward.dual_level():
        y0 = forward.make_dual(torch.ones(2, 1), torch.ones(2, 1))
        y = solve(lambda t, y: -y, y0, 0.0, 1.0, Dopri5(rtol=1e-6, atol=1e-6)).y
        assert_close(forward.unpack_dual(y).tangent, torch.full((2, 1), -1.0).exp(), rtol=1e-5, atol=0)


@torch.no_grad()
def test_a_stage_that_is_not_finite_is_rejected():
    """f is infinite beyond y = 2, which a first step of the whole span probes."""
    y = solve(lambda t, y: torch.where(y > 2, torch.inf, 1.0), torch.zeros(2, 1), 0.0, 1.9, Dopri5(first_step="span")).y
    assert_close(y, torch.full((2, 1), 1.9), rtol=1e-5, atol=0)
    late = solve(
        lambda t, y: torch.where(t > 1.5, torch.inf, 1.0) + 0 * y, torch.zeros(2, 1), 0.0, 1.9, Dopri5(), throw=False
    )
    assert (late.t < 1.5 + 1e-6).all()
    assert late.y.isfinite().all()
