"""The solver's clock: float64 times beside states of any dtype."""

import math

import pytest
import torch
from torch.testing import assert_close

import dise
from dise import RK4, Dopri5, Euler, SolveError, solve
from dise.integrate import clock

EPOCH, DAY = 1.7e9, 86400.0

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex32, torch.complex128], ids=str)
def test_real_parts_have_torchs_dtype(dtype):
    assert clock.real_dtype(dtype) is dtype.to_real()
    assert clock.real_dtype(torch.zeros(1, dtype=dtype)) is dtype.to_real()


def decay(t, y):
    return -0.1 * y


def spring(t, y):
    """Five periods a second."""
    return torch.stack([y[:, 1], -((10 * math.pi) ** 2) * y[:, 0]], 1)


def cosine(t, y):
    return torch.cos(t).expand_as(y)


@pytest.mark.parametrize("integrator", [Dopri5(rtol=1e-6, atol=1e-6), RK4(20)], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_ten_seconds_far_from_zero(integrator, sign):
    """A float32 clock has no numbers between 1.7e9 and 1.7e9 + 10."""
    solution = solve(decay, torch.ones(1, 1), EPOCH, EPOCH + 10 * sign, integrator)
    assert solution.y.item() == pytest.approx(math.exp(-sign), rel=1e-5)
    assert solution.t.item() == EPOCH + 10 * sign


def test_an_oscillation_a_day_on():
    y0 = torch.tensor([[1.0, 0.0]])
    solution = solve(spring, y0, DAY, DAY + 5, Dopri5(rtol=1e-6, atol=1e-6))
    assert_close(solution.y, y0, rtol=0, atol=5e-3)
    assert solution.nfe.item() < 1.2 * solve(spring, y0, 0.0, 5.0, Dopri5(rtol=1e-6, atol=1e-6)).nfe.item()


@pytest.mark.parametrize("integrator", [Dopri5(rtol=1e-6, atol=1e-6, max_steps=100_000), RK4(3000)], ids=str)
def test_a_span_of_a_million_in_float32(integrator):
    """y' = (cos(t / 1e5) − y) / 1e4: states in float32 follow those in float64."""

    def f(t, y):
        return (torch.cos(t / 1e5) - y) / 1e4

    single, double = (
        solve(f, torch.ones(1, 1, dtype=dtype), 0.0, 1e6, integrator) for dtype in (torch.float32, torch.float64)
    )
    assert single.y.item() == pytest.approx(double.y.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "compile"),
    [
        *((dtype, False) for dtype in DTYPES),
        (torch.float32, {"backend": "eager"}),
        pytest.param(torch.float32, True, marks=pytest.mark.long),
        *(pytest.param(dtype, True, marks=pytest.mark.slow) for dtype in DTYPES if dtype is not torch.float32),
    ],
)
def test_f_receives_times_in_the_states_real_dtype(dtype, compile):
    def f(t, y):
        return -y * torch.cat([y.real, t], 1)[:, 2:]

    def event(t, y):
        seen.add(t.dtype)
        return t[:, 0] - 5

    seen = set()
    solution = solve(
        f, torch.ones(3, 2, dtype=dtype), 0.0, 1.0, Dopri5(rtol=1e-2, atol=1e-2), event=event, compile=compile
    )
    assert solution.y.dtype == dtype
    assert seen == {dtype.to_real()}
    assert solution.t.dtype == torch.float64


def test_steps_of_accumulate_have_the_states_dtype():
    solution = solve(
        decay,
        torch.ones(2, 1),
        0.0,
        3.0,
        RK4(3),
        accumulate=lambda step: torch.cat([step.y, step.dt[:, None]], 1)[:, 1],
    )
    assert solution.accumulated.tolist() == [3, 3]
    assert solution.accumulated.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("integrator", [Euler(2), RK4(2), Dopri5()], ids=str)
def test_f_cannot_change_the_clock(integrator, dtype):
    def f(t, y):
        t *= 2
        return -y * torch.cos(t)

    with pytest.raises(RuntimeError, match="f: changed t in place"):
        solve(f, torch.ones(1, 1, dtype=dtype), 0.5, 1.5, integrator)


# ---- what the clock cannot resolve


@pytest.mark.parametrize(
    ("t0", "t1"),
    [
        (2**60, 2**60 + 1),
        (torch.tensor(1_700_000_000_000_000_000), torch.tensor(1_700_000_000_000_000_100)),  # nanoseconds
        (torch.tensor([2**53, 0]), torch.tensor([2**53 + 1, 1])),
    ],
)
def test_a_span_that_the_clock_cannot_resolve(t0, t1):
    with pytest.raises(ValueError, match="t0, t1: they differ"):
        solve(decay, torch.ones(2, 1), t0, t1, RK4())


@pytest.mark.parametrize("integrator", [RK4(500), Dopri5(first_step=1e-12, dt_max=1e-12)], ids=str)
def test_a_step_that_the_clock_cannot_resolve(integrator):
    """There are 84 numbers between 1e9 and 1e9 + 1e-5."""
    with pytest.raises(SolveError, match="STEP_UNDERFLOW"):
        solve(decay, torch.ones(1, 1), 1e9, 1e9 + 1e-5, integrator)


def test_only_the_sample_whose_steps_cannot_be_resolved_fails():
    t0 = torch.tensor([0.0, 1e9], dtype=torch.float64)
    solution = solve(decay, torch.ones(2, 1).double(), t0, t0 + 1e-5, RK4(500), throw=False)
    assert solution.status.tolist() == [dise.Status.SUCCESS, dise.Status.STEP_UNDERFLOW]
    assert solution.y[0].item() == pytest.approx(1 - 1e-6)


def test_a_device_without_float64(monkeypatch):
    """Times are float32 there; a span that is lost in it is an error."""
    monkeypatch.setattr(clock, "_WITHOUT_FLOAT64", {"cpu"})
    solution = solve(cosine, torch.zeros(1, 1), 0.0, 1.0, Dopri5(rtol=1e-5, atol=1e-5), save_at=[0.5, 1.0], record=True)
    assert solution.t.dtype == solution.steps.t.dtype == torch.float32
    assert_close(solution.saved[0, :, 0], torch.sin(torch.tensor([0.5, 1.0])), rtol=1e-4, atol=0)
    long = solve(lambda t, y: torch.ones_like(y), torch.zeros(1, 1), 0.0, 0.7, Euler(10_000))
    assert long.y.item() == pytest.approx(0.7, rel=1e-5)  # rounding of 10,000 steps does not add up in t
    with pytest.raises(ValueError, match="t0, t1: they differ"):
        solve(cosine, torch.zeros(1, 1), EPOCH, EPOCH + 10, Dopri5())


# ---- times that were given less precisely than the clock measures


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 0.7), (0.7, 0.0), (0.1, 0.9), (-0.3, 1e3 + 0.1)])
def test_save_points_in_float32_reach_the_ends(t0, t1, dtype):
    """0.7 in float32 is below 0.7, 0.1 above: as numbers they would miss the end or leave the span."""
    y0 = torch.ones(2, 1, dtype=dtype)
    save_at = torch.linspace(t0, t1, 5)
    solution = solve(decay, y0, t0, t1, RK4(10), save_at=save_at, dense=True)
    assert torch.equal(solution.saved[:, -1], solution.y)
    assert torch.equal(solution.saved[:, 0], y0)
    assert torch.equal(solution.evaluate(save_at), solution.saved)


@pytest.mark.parametrize("t1", [0.7, 0.1])
def test_save_points_in_float64_reach_an_end_in_float32(t1):
    solution = solve(decay, torch.ones(1, 1), 0.0, torch.tensor(t1), RK4(10), save_at=[t1], dense=True)
    assert torch.equal(solution.saved[:, 0], solution.y)
    assert torch.equal(solution.evaluate(t1), solution.y)


def test_save_points_beyond_the_end_are_refused():
    for beyond in (torch.tensor([0.7000003]), [0.7000000001]):
        with pytest.raises(ValueError, match="save_at: expected times within the span"):
            solve(decay, torch.ones(1, 1), 0.0, 0.7, RK4(), save_at=beyond)


def test_save_points_too_coarse_for_the_span_are_refused():
    with pytest.raises(ValueError, match=r"save_at: .*float32 cannot tell the ends of the span apart"):
        solve(decay, torch.ones(1, 1), EPOCH, EPOCH + 10, RK4(), save_at=(EPOCH + torch.arange(11.0)))


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_in_float32_times(gradient, dtype):
    """y = sin t1 − sin t0 + y0, saved at s too."""
    t0, t1 = torch.tensor(0.1, requires_grad=True), torch.tensor(0.7, requires_grad=True)
    save_at = torch.tensor([0.3, 0.7], requires_grad=True)
    y0 = torch.zeros(1, 1, dtype=dtype)
    solution = solve(cosine, y0, t0, t1, Dopri5(rtol=1e-6, atol=1e-6), save_at=save_at, gradient=gradient)
    (3 * solution.y.sum() + solution.saved.sum()).backward()
    assert t1.grad.dtype == save_at.grad.dtype == torch.float32
    assert t0.grad.item() == pytest.approx(-5 * math.cos(0.1), rel=1e-4)
    assert t1.grad.item() == pytest.approx(3 * math.cos(0.7), rel=1e-4)
    assert_close(save_at.grad, torch.cos(save_at.detach()), rtol=1e-4, atol=0)
