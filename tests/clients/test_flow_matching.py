"""`ODESolver` against flow_matching's own and closed forms."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import dise
from dise.clients.flow_matching import ODESolver

theirs = pytest.importorskip("flow_matching.solver")


class Velocity(nn.Module):
    """A small network of x [B, 2], t ([] or [B]) and a label [B]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 2)).double()
        self.times = []

    def forward(self, x, t, label=None, scale=1.0):
        self.times.append(t)
        t = t.reshape(-1, 1).expand(len(x), 1)
        label = torch.zeros(len(x), 1, dtype=x.dtype) if label is None else label[:, None].to(x.dtype)
        return scale * 3 * self.net(torch.cat([x, t, label], 1))


def points(n=6):
    return torch.randn(n, 2, dtype=torch.float64)


def log_p0(z):
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)


EXTRAS = {"label": torch.arange(6), "scale": 0.5}
GRID = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun3", "rk4"])
@pytest.mark.parametrize("step_size", [None, 0.125])
def test_fixed_steps_are_theirs(method, step_size):
    x, ours, solver = points(), ODESolver(Velocity()), theirs.ODESolver(Velocity())
    for keep in (False, True):
        call = {"step_size": step_size, "method": method, "time_grid": GRID, "return_intermediates": keep, **EXTRAS}
        assert_close(ours.sample(x, **call), solver.sample(x, **call), rtol=0, atol=1e-12)
    assert all(t.ndim == 0 for t in ours.velocity_model.times)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
@pytest.mark.parametrize("back", [False, True])
def test_adaptive_methods_agree_with_theirs(method, back):
    x, grid = points(), GRID.flip(0) if back else GRID
    call = {"step_size": None, "method": method, "rtol": 1e-8, "atol": 1e-8, "time_grid": grid, **EXTRAS}
    ours, expected = ODESolver(Velocity()), theirs.ODESolver(Velocity()).sample(x, return_intermediates=True, **call)
    assert_close(ours.sample(x, return_intermediates=True, **call), expected, rtol=0, atol=1e-4)
    assert_close(ours.sample(x, **call), expected[-1], rtol=0, atol=1e-4)
    assert any(t.ndim == 1 for t in ours.velocity_model.times)
    alone = ODESolver(Velocity()).sample(x[2:3], **(call | {"label": EXTRAS["label"][2:3]}))
    assert_close(alone[0], ours.sample(x, **call)[2], rtol=0, atol=1e-9)


def test_any_integrator_and_one_step_size_for_the_batch():
    x = points()
    expected = ODESolver(Velocity()).sample(x, method="dopri8", rtol=1e-10, atol=1e-10, **EXTRAS)
    for integrator in (dise.Adams(rtol=1e-7, atol=1e-7, order=4), dise.Multistep.adams(100, 3), dise.RK4(20)):
        assert_close(ODESolver(Velocity(), integrator).sample(x, **EXTRAS), expected, rtol=0, atol=1e-4)
    whole = ODESolver(Velocity(), batched=False)
    assert_close(whole.sample(x, method="dopri5", rtol=1e-8, atol=1e-8, **EXTRAS), expected, rtol=0, atol=1e-6)
    assert all(t.ndim == 0 for t in whole.velocity_model.times)
    there = ODESolver(Velocity(), dise.RK4(dise.grids.sway(30)))
    back = there.sample(there.sample(x), time_grid=[1.0, 0.0])
    assert_close(back, x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{"method": "midpoint", "step_size": 0.1}, {"method": "dopri5", "step_size": None}])
def test_likelihoods_are_theirs(options):
    x = points()
    if options["method"] == "dopri5":
        options = options | {"rtol": 1e-8, "atol": 1e-8}
    for keep in (False, True):
        call = options | EXTRAS | {"exact_divergence": True, "return_intermediates": keep}
        z, log_p = ODESolver(Velocity()).compute_likelihood(x, log_p0, **call)
        their_z, their_log_p = theirs.ODESolver(Velocity()).compute_likelihood(x, log_p0, **call)
        assert_close(z, their_z, rtol=0, atol=1e-6)
        assert_close(log_p, their_log_p, rtol=0, atol=1e-5)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("integrator", [None, dise.Dopri5(rtol=1e-8, atol=1e-8), dise.Multistep.adams(200, 3)], ids=str)
def test_likelihoods_of_images_in_closed_form(exact, integrator):
    """dx/dt = x log 2 doubles the noise; the estimate is exact where the Jacobian is diagonal."""
    solver = ODESolver(lambda x, t: x * torch.tensor(2.0, dtype=x.dtype).log(), integrator)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    call = {} if integrator else {"method": "dopri5", "rtol": 1e-8, "atol": 1e-8}
    z, log_p = solver.compute_likelihood(x, log_p0, exact_divergence=exact, **call)
    assert_close(z, x / 2, rtol=1e-5, atol=1e-6)
    expected = torch.distributions.Normal(0.0, 2.0).log_prob(x).flatten(1).sum(1)
    assert_close(log_p, expected, rtol=0, atol=1e-4)


def test_gradients_where_they_are_asked_for():
    x = points().requires_grad_()
    for call in ({"method": "dopri5"}, {"method": "euler", "step_size": 0.1}):
        solver = ODESolver(Velocity())
        assert not solver.sample(x, **call).requires_grad
        (gradient,) = torch.autograd.grad(solver.sample(x, enable_grad=True, **call).sum(), x)
        assert gradient.abs().min() > 0
        log_p = solver.compute_likelihood(x, log_p0, exact_divergence=True, enable_grad=True, **call)[1]
        (gradient,) = torch.autograd.grad(log_p.sum(), solver.velocity_model.net[0].weight)
        assert gradient.abs().max() > 0


def test_their_wrapper_of_models():
    from flow_matching.utils import ModelWrapper

    class Wrapper(ModelWrapper):
        def forward(self, x, t, **extras):
            return self.model(x, t, **extras)

    x = points()
    ours = ODESolver(Wrapper(Velocity())).sample(x, method="dopri5", rtol=1e-7, atol=1e-7, **EXTRAS)
    call = {"step_size": None, "method": "dopri5", "rtol": 1e-7, "atol": 1e-7}
    assert_close(ours, theirs.ODESolver(Wrapper(Velocity())).sample(x, **call, **EXTRAS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_models_of_one_time_are_noticed(n):
    """t [n] times x [n, 2] raises, or, for two rows, multiplies columns."""
    x = 1 + torch.arange(2.0 * n).reshape(n, 2)
    solver = ODESolver(lambda x, t: x * 3 * t**2)
    if n > 1:
        with pytest.raises(ValueError, match=r"model: expected one that takes a time per row.*batched=False"):
            solver.sample(x, method="dopri5")
    whole = ODESolver(lambda x, t: x * 3 * t**2, batched=False).sample(x, method="dopri5")
    assert_close(whole, x * torch.e, rtol=1e-3, atol=1e-3)
    assert_close(solver.sample(x, step_size=0.001, method="midpoint"), x * torch.e, rtol=1e-3, atol=1e-3)


def test_models_whose_rows_depend_on_each_other_are_noticed():
    with pytest.raises(ValueError, match="treats rows alike whatever stands beside them"):
        ODESolver(lambda x, t: x - x.mean(0)).sample(points(), method="dopri5")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda z: log_p0(z)[:, None],
        lambda z: log_p0(z).sum(),
        torch.distributions.Normal(torch.zeros(2, dtype=torch.float64), 1.0).log_prob,  # as many points as coordinates
    ],
    ids=["column", "sum", "per coordinate"],
)
def test_densities_of_the_noise_that_would_broadcast_are_refused(wrong):
    with pytest.raises(ValueError, match=r"log_p0: expected log-densities of shape \(2,\), one per point, got"):
        ODESolver(Velocity()).compute_likelihood(points(2), wrong, method="midpoint", step_size=0.5)


def test_bad_arguments():
    solver, x = ODESolver(Velocity()), points()
    with pytest.raises(TypeError, match="velocity_model: expected a function or module, got int"):
        ODESolver(3)
    with pytest.raises(TypeError, match="integrator: expected an integrator"):
        ODESolver(Velocity(), "dopri5")
    with pytest.raises(ValueError, match="step_size: expected None"):
        solver.sample(x, step_size=0.1, method="dopri5")
    with pytest.raises(ValueError, match="method"):
        solver.sample(x, method="dopri6")
    with pytest.raises(ValueError, match="time_grid: expected at least two times"):
        solver.sample(x, time_grid=[0.0])
    with pytest.raises(ValueError, match="time_grid: expected times from 1 to 0"):
        solver.compute_likelihood(x, log_p0, time_grid=[0.0, 1.0])
    for wrong in (torch.ones(3, 2).long(), torch.tensor(1.0), [1.0]):
        with pytest.raises(TypeError, match="x: expected a tensor of real numbers"):
            solver.sample(wrong, method="dopri5")
    with pytest.raises(dise.SolveError, match="NON_FINITE"):
        solver.sample(torch.full((2, 2), torch.nan, dtype=torch.float64), method="dopri5")
    assert solver.sample(points(0), method="dopri5").shape == (0, 2)
