"""A block's `forward`, which integrates for the states at t1 alone, beside `solve`, which returns everything."""

import math

import pytest
import torch
from torch import nn

from dise import RK4, Bosh3, Cascade, Dopri5, Dynamic, Euler, Midpoint, Multistep, NeuralODE, SolveError
from dise.integrate.problem.forward_context import training_modes
from dise.select import Confidence
from dise.select.policies.cascade import FEW

TIGHT = Dopri5(rtol=1e-6, atol=1e-6)
ONE_STEP = Bosh3(rtol=1e-2, atol=1e-2, first_step="span", max_steps=1)


def small(y):
    return y.abs().amax(1) < 1


def scores(h0, k1):
    """Candidate 0, 1 or 2, by the size of h0."""
    size = h0.abs().amax(1, keepdim=True)
    return torch.cat([size, (size - 1).abs(), (size - 3).abs()], 1)


POLICIES = {
    "fixed": Cascade((Euler(1), Midpoint(1), RK4(2)), small),
    "several steps": Cascade((Euler(3), RK4(2)), small),
    "with the reference": Cascade((Euler(1), Midpoint(1), TIGHT), small),
    "an attempt that may fail": Cascade((ONE_STEP, Euler(2), TIGHT), small),
    "by the error alone": Cascade((ONE_STEP, TIGHT)),
    "tables": Dynamic((Multistep.adams(3), Multistep.adams(5, 3), Multistep.adams(8, 4)), scores),
    "tables and others": Dynamic((Multistep.adams(3), RK4(1), TIGHT), scores),
    "table": Multistep.adams(4),
    "chosen": Dynamic((Euler(1), RK4(1), TIGHT), scores),
    "single": RK4(3),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t1", [2.0, -1.5, torch.linspace(0.5, 2, 12, dtype=torch.float64)], ids=["1", "-1", "each"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_states_are_those_of_solve(tanh_field, starts, policy, t1, dtype):
    block = NeuralODE(tanh_field(3, dtype=dtype), policy, t0=0.5, t1=t1)
    y0 = starts(12, 3, dtype=dtype)
    expected = block.solve(y0).y
    assert torch.equal(block(y0), expected)
    with torch.no_grad():
        assert torch.allclose(block(y0), expected, rtol=1e-6, atol=1e-6)
        if isinstance(t1, float):
            assert torch.equal(block(y0[:0]), y0[:0])


@torch.no_grad()
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_sample_alone_has_its_state_in_the_batch(tanh_field, starts, policy):
    block, y0 = NeuralODE(tanh_field(3), policy, t0=0.5, t1=2.0), starts(12, 3)
    together = block(y0)
    for i in range(len(y0)):
        torch.testing.assert_close(block(y0[i : i + 1]), together[i : i + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("number", [1, 7, FEW, FEW + 1])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_batches_decided_by_a_list_and_by_operators(tanh_field, starts, number, share):
    seen = []

    def accept(y):
        seen.append(y.clone())
        return torch.arange(len(y)) >= share * len(y)

    block, y0 = NeuralODE(tanh_field(3), Cascade((Euler(1), Midpoint(1), RK4(2)), accept), t1=2.0), starts(number, 3)
    with torch.no_grad():
        states, once = block(y0), len(seen)
        expected = block.solve(y0)
    assert torch.equal(states, expected.y)
    assert [y.tolist() for y in seen[:once]] == [y.tolist() for y in seen[once:]]
    assert (expected.choice == 0).sum() == number - math.ceil(share * number)


def test_a_rule_keeps_the_states_that_it_judged(tanh_field, starts):
    seen = []

    def accept(y):
        seen.append((y, y.clone()))
        return small(y)

    block = NeuralODE(tanh_field(3), Cascade((Euler(1), Midpoint(1), RK4(2)), accept), t1=2.0)
    with torch.no_grad():
        block(starts(12, 3))
    assert len(seen) == 2
    assert all(torch.equal(kept, judged) for kept, judged in seen)


@torch.no_grad()
def test_a_hooked_head_is_called_for_each_judgement():
    head, seen = nn.Linear(2, 3), []
    head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    rule = Confidence(head, 0.2, measure="gap")
    y0 = torch.randn(20, 2)
    answer = NeuralODE(lambda t, y: y, Cascade((Euler(1), RK4(1)), rule))(y0)
    assert seen == [20]
    accepted = rule(2 * y0)  # Euler's answers to y' = y
    assert 0 < int(accepted.sum()) < 20
    factor = torch.where(accepted, 2.0, 1 + 1 + 1 / 2 + 1 / 6 + 1 / 24)
    torch.testing.assert_close(answer, factor[:, None] * y0)


def test_a_failure_is_that_of_solve():
    class Field(nn.Module):
        def forward(self, t, y):
            return torch.where(y > 2, torch.nan, y)

    y0 = torch.tensor([[1.0], [3.0], [1.0]])
    policy = Cascade((Euler(1), RK4(1)), lambda y: y[:, 0] > 0)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context, pytest.raises(SolveError, match=r"first: sample 1 .* NON_FINITE"):
            NeuralODE(Field(), policy)(y0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("integrator", [Euler(1), Euler(3), RK4(2)], ids=str)
def test_no_field_reaches_the_times_of_other_solves(mode, integrator):
    class Field(nn.Module):
        def forward(self, t, y):
            value = t * torch.ones_like(y)
            t.data.add_(1)  # unnoticed: no version changes
            return value

    y0 = torch.zeros(2, 1, dtype=torch.float64)
    block = NeuralODE(Field(), integrator, t0=0.25, t1=1.5)
    with mode():
        first, second = block(y0), block(y0)
        assert torch.equal(first, second)
    # midpoints are exact for y' = t, and Euler's error is half a step times the span
    error = 0.0 if isinstance(integrator, RK4) else 1.25**2 / (2 * integrator.steps)
    torch.testing.assert_close(first, torch.full_like(y0, (1.5**2 - 0.25**2) / 2 - error), rtol=1e-12, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("integrator", [Euler(400), Midpoint(20), RK4(5)], ids=str)
def test_blocks_map_over_parameters_of_the_field(integrator):
    rates, y0 = torch.linspace(-1, 1, 5, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    ends = torch.func.vmap(lambda w: NeuralODE(lambda t, y: w * y, integrator)(y0))(rates)
    torch.testing.assert_close(ends, rates.exp()[:, None, None].expand(5, 3, 2), rtol=2e-3, atol=0)
    with pytest.raises(ValueError, match="integrator: a choice for each sample depends on values"):
        torch.func.vmap(lambda w: NeuralODE(lambda t, y: w * y, Cascade((integrator, RK4(9)), small))(y0))(rates)


def test_a_zero_keeps_its_sign():
    def f(t, y):
        return torch.copysign(torch.ones_like(y), t)

    y0 = torch.zeros(2, 1, dtype=torch.float64)
    with torch.no_grad():
        for zero in (0.0, -0.0):
            block = NeuralODE(f, Euler(1), t0=zero, t1=1.0)
            assert torch.equal(block(y0), block.solve(y0).y)


def test_a_solve_in_inference_mode_before_training(tanh_field, starts):
    block, y0 = NeuralODE(tanh_field(3), RK4(2), t0=0.125, t1=0.875), starts(4, 3)
    with torch.inference_mode():
        inferred = block(y0)
    y0.requires_grad_()
    trained = block(y0)
    trained.sum().backward()
    assert torch.equal(inferred, trained)
    assert y0.grad is not None


def test_modes_of_all_modules_below():
    inner = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    f = nn.Sequential(inner, nn.ReLU(), inner)
    assert training_modes((f,)) == (True,) * 5
    inner[1].eval()
    assert sorted(training_modes((f, 1.0))) == [False, True, True, True, True]
    assert sorted(training_modes((lambda t, y: f(y),))) == [False, True, True, True, True]


def test_a_wrapped_field_with_a_quadrature():
    class Field(nn.Module):
        def forward(self, t, state):
            y, _ = state
            return torch.cos(4 * t) * y, torch.sin(20 * t) * y

        def without_quadrature(self, t, y):
            return torch.cos(4 * t) * y

    class Wrapper(nn.Module):  # as torch.compile's
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def __getattr__(self, name):
            return super().__getattr__(name) if name == "inner" else getattr(self.inner, name)

        def forward(self, t, state):
            return self.inner(t, state)

    y0 = torch.ones(3, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    block = NeuralODE(Wrapper(Field()), Dopri5(rtol=1e-3, atol=1e-3), t1=2.0)
    with torch.no_grad():
        for found, expected in zip(block(y0), block.solve(y0).y, strict=True):
            assert torch.equal(found, expected)
