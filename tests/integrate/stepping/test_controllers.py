"""Rules for the next step's size, and their limits."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from dise import Bosh3, Dopri5, IController, PIController, SolveError, Status, solve

NAN, INF = math.nan, math.inf


def column(*values, dtype=torch.float64):
    return torch.tensor([values], dtype=dtype)


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


def attempts(f, y0, t0, t1, integrator, **options):
    """The solution, and (t, dt) of each attempted step of a batch of one."""
    steps = []
    note = lambda step: steps.append((step.t.item(), step.dt.item())) or torch.zeros_like(step.t)  # noqa: E731
    with torch.no_grad():
        return solve(f, y0, t0, t1, integrator, accumulate=note, **options), steps


def decays(t, y):
    return -y


def noise(t, y):
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(int(1e15 * t.sum()) % 2**31), dtype=y.dtype)


# ---- factors


def test_the_elementary_factor():
    ratio, before = row(0.0, 1e-12, 0.5, 1.0, 2.0, 1e9, NAN, INF), torch.ones(8, dtype=torch.float64)
    factor, memory = IController().factor(ratio, before, ratio <= 1, 5)
    limited = [10, 10, 0.9 * 0.5**-0.2, 1, 0.9 * 2**-0.2, 0.2, 0.2, 0.2]  # never shorter after an accepted step
    assert_close(factor, row(*limited))
    assert torch.equal(memory, before)


def test_the_pi_factor():
    """Hairer, Wanner, IV.2, Eq. 2.43c with α = 0.7/q and β = 0.4/q; rejected steps by the elementary rule."""
    ratio, before = row(0.0, 0.5, 1.0, 0.5, 2.0, 1e9, NAN, INF), row(1.0, 1.0, 0.01, 0.01, 0.01, 0.01, 0.3, 0.4)
    factor, memory = PIController().factor(ratio, before, ratio <= 1, 5)
    accepted = [10, 0.9 * 0.5**-0.14, 0.9 * 0.01**0.08, 0.9 * 0.5**-0.14 * 0.01**0.08]
    assert_close(factor, row(*accepted, 0.9 * 2**-0.2, 0.2, 0.2, 0.2))
    assert_close(memory, row(1e-4, 0.5, 1.0, 0.5, 0.01, 0.01, 0.3, 0.4))  # kept where a step was rejected


def test_without_proportion_pi_is_i_but_for_its_limits():
    ratio = torch.logspace(-8, 3, 50, dtype=torch.float64)
    before = torch.rand(50, dtype=torch.float64)
    pi, _ = PIController(proportional=0, integral=1).factor(ratio, before, ratio <= 1, 3)
    i, _ = IController().factor(ratio, before, ratio <= 1, 3)
    assert_close(torch.where(ratio <= 1, pi.clamp(min=1), pi), i)


@pytest.mark.parametrize("controller", [IController(), PIController()])
def test_no_error_gives_no_nan_gradient(controller):
    ratio = row(0.0, 1.0, 3.0).requires_grad_()
    factor, _ = controller.factor(ratio, torch.ones(3, dtype=torch.float64), ratio.detach() <= 1, 5)
    factor.sum().backward()
    assert ratio.grad.isfinite().all()


@pytest.mark.parametrize(
    "controller", [IController(safety=0.5, shrink=0.4, grow=1.5), PIController(grow=2, shrink=0.5)]
)
def test_limits_are_those_given(controller):
    _, steps = attempts(
        lambda t, y: torch.zeros_like(y), column(1.0), 0.0, 1.0, Dopri5(first_step=0.01, controller=controller)
    )
    assert steps[1][1] == pytest.approx(0.01 * controller.grow)
    _, steps = attempts(
        noise,
        column(1.0),
        0.0,
        1.0,
        Dopri5(first_step="span", atol=1e-9, rtol=0, controller=controller, max_steps=2),
        throw=False,
    )
    assert steps[1][1] == pytest.approx(controller.shrink)


# ---- the PI controller in a solve


def stiffening(t, y):
    return torch.stack([y[:, 1], 10 * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]], dim=1)


def test_pi_steps_follow_the_formula():
    """The whole chain of step sizes, from the errors that the steps themselves report."""
    steps, tol = [], 1e-5

    def note(step):
        error, y, y_next = (x.flatten().tolist() for x in (step.error(), step.y, step.y_next))
        scaled = [e / (tol + tol * max(abs(a), abs(b))) for e, a, b in zip(error, y, y_next, strict=True)]
        steps.append((step.t.item(), step.dt.item(), math.sqrt(sum(e**2 for e in scaled) / 2)))
        return torch.zeros_like(step.t)

    solve(
        stiffening,
        column(2.0, 0.0),
        0.0,
        12.0,
        Dopri5(rtol=tol, atol=tol, controller=PIController(), first_step=0.5),
        accumulate=note,
    )
    before, rejected = 1.0, 0
    for (_, dt, ratio), (_, dt_next, _) in pairwise(steps[:-1]):
        if ratio <= 1:
            factor, before = 0.9 * ratio**-0.14 * before**0.08, max(ratio, 1e-4)
        else:
            factor, rejected = 0.9 * ratio**-0.2, rejected + 1
        assert dt_next == pytest.approx(dt * min(10, max(0.2, factor)), rel=1e-9)
    assert rejected > 0


def test_pi_rejects_fewer_steps_where_stiffness_limits_them():
    """y' = −50 y: the elementary controller goes back and forth about the limit of stability."""
    runs = {
        controller: solve(
            lambda t, y: -50 * (y - t.cos()),
            column(0.0),
            0.0,
            10.0,
            Dopri5(rtol=1e-4, atol=1e-4, controller=controller),
        )
        for controller in (IController(), PIController())
    }
    rejected = {controller: (run.n_steps - run.n_accepted).item() for controller, run in runs.items()}
    assert rejected[PIController()] < rejected[IController()] / 2


@pytest.mark.parametrize("controller", [IController(), PIController()])
def test_samples_remember_for_themselves(controller):
    """Solo = batched, with samples that leave the batch at different times, and rejected steps in between."""
    y0 = torch.tensor([[2.0, 0.0], [0.1, 0.1], [2.0, -3.0]], dtype=torch.float64)
    ends, integrator = row(12.0, 1.0, 7.0), Bosh3(rtol=1e-4, atol=1e-4, controller=controller)
    together = solve(stiffening, y0, 0.0, ends, integrator)
    assert (together.n_accepted < together.n_steps).any()
    for i in range(3):
        alone = solve(stiffening, y0[i : i + 1], 0.0, ends[i : i + 1], integrator)
        assert (alone.n_steps, alone.n_accepted) == (together.n_steps[i], together.n_accepted[i])
        assert_close(alone.y[0], together.y[i], rtol=1e-10, atol=1e-10)


# ---- torchode's scenarios


@pytest.mark.parametrize("controller", [IController(), PIController()])
def test_an_error_of_0_gives_a_finite_step(controller):
    solution = solve(lambda t, y: torch.zeros_like(y), column(1.0), 0.0, 10.0, Dopri5(controller=controller))
    assert solution.status == Status.SUCCESS
    assert solution.error == 0
    assert solution.dt.isfinite()


@pytest.mark.parametrize("controller", [IController(), PIController()])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_non_finite_sample_fails_alone(controller, bad):
    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    f = lambda t, y, at: torch.where(t > at, bad, -y)  # noqa: E731
    solution = solve(
        f, y0, 0.0, 1.0, Dopri5(controller=controller), sample_args=(torch.tensor([[0.5], [2.0]]),), throw=False
    )
    assert solution.status.tolist() == [Status.NON_FINITE, Status.SUCCESS]
    assert 0 < solution.t[0] <= 0.5
    assert_close(solution.y[0], y0[0] * (-solution.t[0]).exp(), rtol=1e-3, atol=1e-3)  # the last good state
    assert_close(solution.y[1], y0[1] * math.exp(-1), rtol=1e-3, atol=1e-3)


# ---- dt_min, dt_max


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("first_step", ["heuristic", "span", 0.7])
def test_no_step_is_longer_than_dt_max(sign, first_step):
    _, steps = attempts(
        lambda t, y: torch.ones_like(y), column(1.0), 0.0, sign * 1.0, Dopri5(dt_max=0.15, first_step=first_step)
    )
    assert max(abs(dt) for _, dt in steps) <= 0.15 * (1 + 1e-12)
    assert len(steps) >= 7


def test_no_step_is_shorter_than_dt_min_but_the_last():
    solution, steps = attempts(
        stiffening, column(2.0, 0.0), 0.0, 1.03, Dopri5(rtol=1e-7, atol=1e-7, dt_min=0.02), throw=False
    )
    free, _ = attempts(stiffening, column(2.0, 0.0), 0.0, 1.03, Dopri5(rtol=1e-7, atol=1e-7))
    assert min(dt for _, dt in steps) >= 0.02 * (1 - 1e-9)
    assert solution.status == Status.DT_MIN
    assert free.status == Status.SUCCESS
    _, steps = attempts(decays, column(1.0), 0.0, 0.25, Dopri5(dt_min=0.1, dt_max=0.1))
    assert [dt for _, dt in steps] == pytest.approx([0.1, 0.1, 0.05])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t0", [0.0, 1e3])
def test_a_step_of_dt_min_that_fails_ends_the_sample_at_once(dtype, t0):
    """Though t + dt − t is not dt, by the time's rounding."""
    integrator = Dopri5(rtol=0, atol=1e-12, dt_min=0.1, first_step=0.1)
    solution = solve(noise, column(1.0, dtype=dtype), t0, t0 + 1.0, integrator, throw=False)
    assert (solution.status, solution.n_steps, solution.n_accepted) == (Status.DT_MIN, 1, 0)


def test_the_message_of_dt_min_says_what_to_try():
    y0 = torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.float64)
    f = lambda t, y, rate: torch.sin(rate * t)  # noqa: E731
    rates = torch.tensor([[1.0], [1e4], [1e5]], dtype=torch.float64)
    with pytest.raises(SolveError) as caught:
        solve(f, y0, 0.5, 2.0, Dopri5(rtol=1e-6, atol=1e-6, dt_min=0.01), sample_args=(rates,))
    message = str(caught.value)
    assert message.startswith("2 of 3 samples failed; first: sample 1 at t=0.5 with step 0.01: DT_MIN, ")
    for remedy in ("lower dt_min", "loosen rtol/atol", "accept_at_dt_min=True", "throw=False"):
        assert remedy in message
    assert caught.value.solution.status.tolist() == [Status.SUCCESS, Status.DT_MIN, Status.DT_MIN]
    assert caught.value.solution.y[1:].tolist() == [[1.0], [1.0]]  # the last good states


def test_steps_of_dt_min_may_be_accepted_whatever_their_error():
    integrator = Dopri5(rtol=1e-9, atol=1e-9, dt_min=0.05, accept_at_dt_min=True)
    solution, steps = attempts(stiffening, column(2.0, 0.0), 0.0, 1.0, integrator)
    assert solution.status == Status.SUCCESS
    assert solution.error > solution.n_accepted  # and it says so
    assert min(dt for _, dt in steps[:-1]) == pytest.approx(0.05)
    assert_close(
        solution.y, solve(stiffening, column(2.0, 0.0), 0.0, 1.0, Dopri5(rtol=1e-9, atol=1e-9)).y, rtol=1e-3, atol=1e-3
    )


def test_what_is_not_finite_is_not_accepted_at_dt_min():
    f = lambda t, y: torch.where(t > 0.5, NAN, y)  # noqa: E731
    solution = solve(f, column(1.0), 0.0, 1.0, Dopri5(dt_min=0.1, accept_at_dt_min=True), throw=False)
    assert solution.status == Status.NON_FINITE
    assert solution.t <= 0.5
