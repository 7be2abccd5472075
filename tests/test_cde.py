"""Controlled differential equations."""

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicHermiteSpline, CubicSpline
from torch.testing import assert_close

import dise
from dise import RK4, Dopri5, cde

DOUBLE = torch.float64
TIGHT = Dopri5(rtol=1e-9, atol=1e-9)
PATHS = [cde.linear_path, cde.hermite_path, cde.natural_path]


def observations(number=3, length=6, channels=2, dtype=DOUBLE):
    torch.manual_seed(0)
    values = torch.randn(number, length, channels, dtype=dtype)
    return values, torch.rand(number, length, dtype=dtype).add(0.2).cumsum(1)


@pytest.mark.parametrize("make", PATHS)
def test_a_path_is_scipys(make):
    values, times = observations()
    path = make(values, times)
    for i in range(3):
        x, y = times[i].numpy(), values[i].numpy()
        slopes = np.diff(y, axis=0) / np.diff(x)[:, None]
        other = {
            cde.linear_path: lambda t, x=x, y=y: np.stack([np.interp(t, x, column) for column in y.T], 1),
            cde.hermite_path: CubicHermiteSpline(x, y, np.concatenate([slopes[:1], slopes])),
            cde.natural_path: CubicSpline(x, y, bc_type="natural"),
        }[make]
        for t in torch.linspace(times[i, 0], times[i, -1], 13, dtype=DOUBLE):
            assert_close(path.value(t.expand(3, 1))[i], torch.as_tensor(other(np.array([t.item()]))[0]))


@pytest.mark.parametrize("make", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exponential_of_a_path(make, dtype):
    """dy = y dX has the solution y = y0 exp(X(t) − X(t0)), over spans of each sample's own."""
    values, times = observations(channels=1, dtype=dtype)
    path = make(values, times)
    y0 = torch.tensor([[1.0], [2.0], [-1.0]], dtype=dtype)
    t0, t1 = times[:, 0] + 0.1, torch.stack([times[0, -1], times[1, 3], times[2, 2] + 0.05])
    solution = cde.solve(lambda t, y: y[:, :, None], y0, path, Dopri5(rtol=1e-6, atol=1e-6), t0=t0, t1=t1)
    exact = y0 * torch.exp(path.value(t1[:, None]) - path.value(t0[:, None]))
    assert_close(solution.y, exact, rtol=1e-3, atol=2e-3)
    assert torch.equal(solution.t, t1.double())


def test_kinks_of_a_linear_path_cost_no_rejected_steps():
    values, times = observations()
    field = lambda t, y: torch.stack([torch.sin(y), torch.cos(y)], 2)  # noqa: E731
    y0 = torch.full((3, 2), 0.3, dtype=DOUBLE)
    path = cde.linear_path(values, times)
    solution = cde.solve(field, y0, path, Dopri5(rtol=1e-6, atol=1e-6))
    y, nfe = y0, 0
    for k in range(5):
        piece = cde.linear_path(values[:, k : k + 2], times[:, k : k + 2])
        part = cde.solve(field, y, piece, Dopri5(rtol=1e-6, atol=1e-6))
        y, nfe = part.y, nfe + part.nfe
    assert_close(solution.y, y, rtol=1e-4, atol=1e-5)
    assert (solution.nfe <= 1.05 * nfe).all()


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
def test_gradients(gradient):
    """The derivative of y0 exp(X(t1) − X(t0)) in the observations and in y0."""
    values, times = observations(channels=1)
    values = values.requires_grad_()
    y0 = torch.ones(3, 1, dtype=DOUBLE, requires_grad=True)
    solution = cde.solve(lambda t, y: y[:, :, None], y0, cde.linear_path(values, times), TIGHT, gradient=gradient)
    of_values, of_y0 = torch.autograd.grad(solution.y.sum(), (values, y0))
    growth = torch.exp(values[:, -1] - values[:, 0]).detach()
    expected = torch.zeros_like(values)
    expected[:, -1], expected[:, 0] = growth, -growth
    assert_close(of_values, expected, rtol=1e-6, atol=1e-6)
    assert_close(of_y0, growth, rtol=1e-6, atol=1e-6)


def test_a_neural_cde_trains():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8))
    values, _ = observations(dtype=torch.float32)
    path = cde.hermite_path(values)
    solution = cde.solve(lambda t, y: net(y).view(-1, 4, 2), torch.zeros(3, 4), path, RK4(10), save_at=[1.0, 2.5, 5.0])
    assert solution.saved.shape == (3, 3, 4)
    solution.y.square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in net.parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: cde.linear_path(torch.zeros(3, 4)), "values: expected real observations"),
        (lambda: cde.linear_path(torch.full((1, 4, 1), torch.nan)), "values: expected finite observations"),
        (lambda: cde.natural_path(torch.zeros(1, 4, 1), torch.zeros(4)), "times: expected increasing times"),
        (lambda: cde.hermite_path(torch.zeros(1, 4, 1), torch.arange(3.0)), "times: expected a tensor of shape"),
        (
            lambda: cde.solve(dise, torch.zeros(2, 1), cde.linear_path(torch.zeros(1, 4, 1)), RK4()),
            "y0: expected a tensor",
        ),
        (
            lambda: cde.solve(lambda t, y: y, torch.zeros(1, 1), cde.linear_path(torch.zeros(1, 4, 1)), RK4()),
            r"f: expected shape \(1, 1, 1\)",
        ),
        (lambda: cde.solve(abs, torch.zeros(1, 1), "x", RK4()), "path: expected what .* return, got str"),
        (
            lambda: cde.solve(None, torch.zeros(1, 1), cde.linear_path(torch.zeros(1, 4, 1)), RK4()),
            "f: expected a function, got NoneType",
        ),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        given()
