"""Global states of torch that a solve meets: distributed training, inference mode, the default dtype, threads."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from dise import (
    RK4,
    RKC1,
    Adams,
    Bosh3,
    Cascade,
    Dopri5,
    Dopri8,
    Dynamic,
    Euler,
    NeuralODE,
    StepDoubling,
    max_norm,
    solve,
)
from dise.torchdiffeq import odeint, odeint_adjoint

INTEGRATORS = [
    Dopri5(rtol=1e-5, atol=1e-5),
    Dopri8(rtol=(1e-4, 1e-5), atol=1e-6),
    Bosh3(norm=max_norm, first_step="span"),
    Adams(rtol=1e-4, atol=1e-4),
    RK4(2),
    RKC1(2, 3),
    StepDoubling(Euler(2)),
    Dynamic([RK4(1), Dopri5()], lambda h0, k1: torch.stack([h0[:, 0], -h0[:, 0]], 1)),
    Cascade([StepDoubling(Euler(1)), Dopri5()], accept=lambda y: y[:, 0] > 0),
]
integrators = pytest.mark.parametrize("integrator", INTEGRATORS, ids=lambda x: str(x).split("(rtol")[0])
PARTS = {
    "end": {},
    "saved": {"save_at": [0.2, 0.9]},
    "dense": {"dense": True},
    "event": {"event": lambda t, y: y[:, 0] - 0.1},
    "record": {"record": True},
    "accumulate": {"accumulate": lambda step: step.dt},
    "one system": {"batched": False},
    "checkpoint": {"gradient": "checkpoint"},
    "whole batch": {"drop_finished": False},
}


def field(dtype=torch.float32):
    torch.manual_seed(0)
    return Field().to(dtype)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, t, y):
        return self.net(y) * torch.cos(t)


def start(dtype=torch.float32):
    return torch.linspace(-1, 1, 6, dtype=dtype).reshape(3, 2)


@pytest.fixture
def process_group(tmp_path):
    if not distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
@pytest.mark.parametrize("unused", [False, True])
def test_distributed_training_has_the_plain_models_gradients(process_group, gradient, unused):
    plain = nn.Sequential(NeuralODE(field(), Dopri5(rtol=1e-6, atol=1e-6), gradient=gradient), nn.Linear(2, 3))
    model = DistributedDataParallel(copy.deepcopy(plain), find_unused_parameters=unused)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (plain, model)]
    for _ in range(2):
        for net, optimizer in zip((plain, model), optimizers, strict=True):
            optimizer.zero_grad()
            net(start()).square().sum().backward()
            optimizer.step()
        for ours, theirs in zip(model.module.parameters(), plain.parameters(), strict=True):
            assert_close(ours.grad, theirs.grad)
            assert_close(ours, theirs)


@integrators
@pytest.mark.parametrize("part", PARTS)
def test_training_after_validation(integrator, part):
    """What a solve keeps must not be made in inference mode, where later gradients could not use it."""
    options = PARTS[part]
    if integrator.chooses and part in ("one system", "event"):
        pytest.skip("a choice per sample")
    f, y0 = field(), start()

    def value():
        s = solve(f, y0, 0.0, 1.0, integrator, **options)
        return s.saved.sum() if part == "saved" else s.evaluate(0.5).sum() if part == "dense" else s.y.sum()

    with torch.inference_mode():
        before = value()
    after = value()
    assert_close(after.detach(), before.clone())
    after.backward()
    assert all(p.grad.isfinite().all() for p in f.parameters())


@integrators
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_default_dtype_does_not_matter(integrator, default):
    def results():
        y0 = start().requires_grad_()
        s = solve(field(), y0, 0.0, 1.0, integrator, save_at=[0.2, 0.9], accumulate=lambda step: step.dt)
        (slope,) = torch.autograd.grad(s.y.sum(), y0)
        return s.y, s.saved, s.error, s.accumulated, slope, s.nfe

    f32 = results()
    state = field().state_dict()
    torch.set_default_dtype(default)
    try:
        made = field(torch.float32)
        made.load_state_dict(state)  # the weights' draws depend on the default dtype
        y0 = start().requires_grad_()
        s = solve(made, y0, 0.0, 1.0, integrator, save_at=[0.2, 0.9], accumulate=lambda step: step.dt)
        (slope,) = torch.autograd.grad(s.y.sum(), y0)
        other = s.y, s.saved, s.error, s.accumulated, slope, s.nfe
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(other, f32, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_odeint_under_another_default_dtype(interface, method):
    t, f, y0 = torch.tensor([0.0, 0.5, 1.0]), field(), start()
    here = interface(f, y0, t, method=method)
    torch.set_default_dtype(torch.float64)
    try:
        there = interface(f, y0, t, method=method)
        there.sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(there, here, rtol=0, atol=0)
