"""The solver beside SciPy and torchdiffeq."""

import numpy as np
import pytest
import torch
import torchdiffeq
from scipy.integrate import solve_ivp
from torch import nn
from torch.nn import functional as F

from dise import RK4, RK38, Bosh3, Dopri5, Dopri8, Euler, Heun, IController, Midpoint, max_norm, solve


def van_der_pol(t, y):
    return torch.stack([y[..., 1], 3 * (1 - y[..., 0] ** 2) * y[..., 1] - y[..., 0]], dim=-1)


def forced_pendulum(t, y):
    return torch.stack([y[..., 1], -torch.sin(y[..., 0]) - 0.2 * y[..., 1] + torch.cos(2 * t[..., 0])], dim=-1)


class ConvField(nn.Module):
    """ODE-Net's vector field, made small: it sees t as one more channel."""

    def __init__(self, *, seed, channels=8, gain=1.0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.conv2 = (nn.Conv2d(channels + 1, channels, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(4, channels) for _ in range(3))
        self.gain = gain

    def forward(self, t, y):
        t = torch.ones_like(y[:, :1]) * t
        y = self.conv1(torch.cat([t, F.relu(self.norm1(y))], dim=1))
        y = self.conv2(torch.cat([t, F.relu(self.norm2(y))], dim=1))
        return self.gain * self.norm3(y)


def torchdiffeq_dopri5(f, y0, t0, t1, tol, method="dopri5", **options):
    """State at t1, NFE, and accepted steps.

    step_t ends a step at t1, which torchdiffeq would else overstep. The state is read where the next step begins:
    what torchdiffeq returns, even there, is an interpolation, which in float32 rounds at 2e-5.
    """
    accepted, there, t = [], [], torch.tensor([t0, t1, t1 + 1e-3 * (t1 - t0)], dtype=torch.float64)
    f.callback_accept_step = lambda t, y, dt: accepted.append(t)
    f.callback_step = lambda time, y, dt: there.append((y, f.calls, len(accepted))) if time == t[1] else None
    torchdiffeq.odeint(f, y0, t, rtol=tol, atol=tol, method=method, options={"step_t": t[1:2], **options})
    return there[0]


# ---- SciPy


@pytest.mark.parametrize("f", [van_der_pol, forced_pendulum])
def test_scipys_dop853_agrees(f):
    starts = np.array([[2.0, 0.0], [0.1, -1.0], [-3.0, 2.0]])
    ends = np.array([3.0, -0.5, 6.0])
    expected = [
        solve_ivp(
            lambda t, y: f(torch.tensor([t]), torch.tensor(y)).numpy(),
            (0.0, t1),
            y0,
            method="DOP853",
            rtol=1e-12,
            atol=1e-12,
        ).y[:, -1]
        for y0, t1 in zip(starts, ends, strict=True)
    ]
    y0, t1 = torch.from_numpy(starts), torch.from_numpy(ends)
    tight = solve(f, y0, 0.0, t1, Dopri5(rtol=1e-11, atol=1e-11)).y
    np.testing.assert_allclose(tight, expected, rtol=1e-8, atol=1e-8)
    fixed = solve(f, y0, 0.0, t1, RK4(1000)).y
    np.testing.assert_allclose(fixed, expected, rtol=1e-6, atol=1e-6)


# ---- torchdiffeq


@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("span", [(0.0, 2.0), (1.0, -0.7)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("seed", [0, 1])
def test_float64_dopri5_takes_torchdiffeqs_steps(tanh_field, starts, record, tol, span, seed):
    f, y0 = tanh_field(3, scale=3.0, seed=seed), 0.3 * starts(4, 3, seed=seed)
    with torch.no_grad():
        ours = solve(f, y0, *span, Dopri5(rtol=tol, atol=tol))
        for i in range(4):
            y, nfe, accepted = torchdiffeq_dopri5(record(f), y0[i : i + 1], *span, tol)
            assert (ours.nfe[i], ours.n_accepted[i]) == (nfe, accepted)
            torch.testing.assert_close(ours.y[i : i + 1], y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", [Dopri5, Bosh3, Dopri8])
def test_rejected_steps_are_torchdiffeqs(record, method):
    y0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    ours = solve(van_der_pol, y0, 0.0, 6.0, method(rtol=1e-5, atol=1e-5))
    y, nfe, accepted = torchdiffeq_dopri5(record(van_der_pol), y0, 0.0, 6.0, 1e-5, method.__name__.lower())
    assert ours.n_accepted < ours.n_steps
    assert (ours.nfe, ours.n_accepted) == (nfe, accepted)
    torch.testing.assert_close(ours.y, y, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"safety": 0.7}, {"controller": IController(safety=0.7)}),
        ({"ifactor": 1.5, "dfactor": 0.6}, {"controller": IController(grow=1.5, shrink=0.6)}),
        ({"max_step": 0.05}, {"dt_max": 0.05}),
        ({"min_step": 0.04}, {"dt_min": 0.04, "accept_at_dt_min": True}),
        ({"first_step": 0.3}, {"first_step": 0.3}),
        ({"norm": lambda x: x.abs().max()}, {"norm": max_norm}),
    ],
    ids=lambda options: ", ".join(options),
)
def test_options_do_what_torchdiffeqs_do(record, theirs, ours):
    y0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    plain = solve(van_der_pol, y0, 0.0, 6.0, Dopri5(rtol=1e-5, atol=1e-5))
    solution = solve(van_der_pol, y0, 0.0, 6.0, Dopri5(rtol=1e-5, atol=1e-5, **ours))
    y, nfe, accepted = torchdiffeq_dopri5(record(van_der_pol), y0, 0.0, 6.0, 1e-5, **theirs)
    assert (solution.nfe, solution.n_accepted) == (nfe, accepted)
    assert solution.nfe != plain.nfe
    torch.testing.assert_close(solution.y, y, rtol=0, atol=1e-10)


def test_tolerances_of_each_feature_are_torchdiffeqs(record):
    y0, atol = torch.tensor([[2.0, 0.0]], dtype=torch.float64), torch.tensor([1e-4, 1e-8], dtype=torch.float64)
    solution = solve(van_der_pol, y0, 0.0, 6.0, Dopri5(rtol=0, atol=atol))
    counted, accepted = record(van_der_pol), []
    counted.callback_accept_step = lambda t, y, dt: accepted.append(t)
    t = torch.tensor([0.0, 6.0], dtype=torch.float64)
    torchdiffeq.odeint(counted, y0, t, rtol=0, atol=atol, method="dopri5", options={"step_t": t[1:]})
    assert solution.n_accepted <= len(accepted) <= solution.n_accepted + 1  # torchdiffeq oversteps the end


@pytest.mark.parametrize("gain", [1.0, 10.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_float32_conv_field_takes_torchdiffeqs_steps(record, seed, gain):
    f, y0 = ConvField(seed=seed, gain=gain), torch.randn(3, 8, 4, 4)
    with torch.no_grad():
        ours = solve(f, y0, 0.0, 1.0, Dopri5(rtol=1e-3, atol=1e-3))
        for i in range(3):
            y, nfe, accepted = torchdiffeq_dopri5(record(f), y0[i : i + 1], 0.0, 1.0, 1e-3)
            assert (ours.nfe[i], ours.n_accepted[i]) == (nfe, accepted)
            torch.testing.assert_close(ours.y[i : i + 1], y, rtol=0, atol=1e-5 * gain)  # a steep field spreads rounding


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_unbatched_dopri5_is_torchdiffeqs_on_the_batch(tanh_field, starts, record, tol):
    f, y0 = tanh_field(3, scale=3.0), starts(5, 3)
    with torch.no_grad():
        ours = solve(f, y0, 0.0, 2.0, Dopri5(rtol=tol, atol=tol), batched=False)
        y, nfe, accepted = torchdiffeq_dopri5(record(f), y0, 0.0, 2.0, tol)
    assert (ours.nfe, ours.n_accepted) == (nfe, accepted)
    torch.testing.assert_close(ours.y, y, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("batched", "samples"), [(False, 4), (True, 1)])
def test_a_tuple_state_is_normed_as_torchdiffeqs(starts, record, batched, samples):
    """Its norm is the largest of the parts' root mean squares."""
    y0 = (starts(samples, 3), 10 * starts(samples, 2, 2, seed=1))

    def f(t, y):
        a, b = y
        return torch.sin(5 * a) + b.mean(dim=(1, 2))[:, None], torch.cos(t) * b * a[:, :2, None]

    ours = solve(f, y0, 0.0, 1.0, Dopri5(rtol=1e-5, atol=1e-5), batched=batched)
    y, nfe, accepted = torchdiffeq_dopri5(record(f), y0, 0.0, 1.0, 1e-5)
    assert (ours.nfe.item(), ours.n_accepted.item()) == (nfe, accepted)
    torch.testing.assert_close(ours.y, y, rtol=0, atol=1e-10)


FIXED = {"euler": Euler, "midpoint": Midpoint, "heun2": Heun, "rk4": RK38}


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_are_torchdiffeqs(tanh_field, starts, record, steps, batched, method):
    f, y0 = tanh_field(3), starts(4, 3)
    counted = record(f)
    t = torch.linspace(0.5, 2.0, steps + 1, dtype=torch.float64)
    with torch.no_grad():
        y = torchdiffeq.odeint(counted, y0, t, method=method)[-1]
        ours = solve(f, y0, 0.5, 2.0, FIXED[method](steps), batched=batched)
    torch.testing.assert_close(ours.y, y, rtol=0, atol=1e-12)
    assert ours.calls == counted.calls
