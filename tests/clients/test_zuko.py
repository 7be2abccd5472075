"""zuko's flows and its odeint on dise, against zuko itself and closed forms."""

import copy
import pickle
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import dise

zuko = pytest.importorskip("zuko")
client = import_module("dise.clients.zuko")

DOUBLE = torch.float64


def cnf(**options):
    """A continuous flow of two features under a context of three, whose rows need different numbers of steps."""
    torch.manual_seed(0)
    flow = zuko.flows.CNF(2, 3, hidden_features=(16,), **options).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter *= 1.5
    return flow


def data(*shape):
    return torch.randn(*shape, 2, dtype=DOUBLE), torch.randn(*shape, 3, dtype=DOUBLE)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_densities_and_transforms_are_zukos(shape):
    flow, (x, c) = cnf(atol=1e-8, rtol=1e-8), data(*shape)
    expected, moved = flow(c).log_prob(x), flow.transform(c)(x)
    client.use(flow)
    assert_close(flow(c).log_prob(x), expected, rtol=0, atol=1e-4)
    assert_close(flow.transform(c)(x), moved, rtol=0, atol=1e-5)
    assert_close(flow.transform(c).inv(moved), x, rtol=0, atol=1e-5)
    assert_close(
        flow.transform(c).log_abs_det_jacobian(x, moved), expected - flow.base().log_prob(moved), rtol=0, atol=1e-4
    )


def test_samples_are_zukos_and_have_their_density():
    flow, (_, c) = cnf(atol=1e-8, rtol=1e-8), data(4)
    torch.manual_seed(1)
    expected = flow(c).sample((3,))
    client.use(flow)
    torch.manual_seed(1)
    x, log_prob = flow(c).rsample_and_log_prob((3,))
    assert_close(x, expected, rtol=0, atol=1e-5)
    assert_close(flow(c).log_prob(x), log_prob, rtol=0, atol=1e-4)


def test_one_context_for_all_and_none():
    flow, (x, c) = cnf(), data(4)
    client.use(flow, dise.Dopri5(rtol=1e-9, atol=1e-9))
    assert_close(flow(c[0]).log_prob(x), flow(c[:1].expand(4, 3)).log_prob(x))
    assert flow(c[0]).sample((5,)).shape == (5, 2)
    free = zuko.flows.CNF(2).double()
    expected = free().log_prob(x)
    client.use(free)
    assert_close(free().log_prob(x), expected, rtol=0, atol=1e-3)


def test_a_row_alone_is_the_row_in_the_batch():
    flow, (x, c) = cnf(), data(8)
    client.use(flow)
    log_prob, moved = flow(c).log_prob(x), flow.transform(c)(x)
    for i in range(8):
        assert_close(flow(c[i]).log_prob(x[i]), log_prob[i], rtol=0, atol=1e-6)
        assert_close(flow.transform(c[i])(x[i]), moved[i], rtol=0, atol=1e-6)


def test_gradients_are_zukos():
    flow, (x, c) = cnf(atol=1e-8, rtol=1e-8), data(4)

    def gradients(flow):
        context = c.clone().requires_grad_()
        loss = -flow(context).log_prob(x).mean()
        return torch.autograd.grad(loss, [*flow.parameters(), context])

    expected = gradients(flow)
    client.use(flow)
    for actual, theirs in zip(gradients(flow), expected, strict=True):
        assert_close(actual, theirs, rtol=1e-2, atol=5e-3)  # zuko's are those of steps back without error control


def test_gradients_are_those_of_differences():
    flow, (x, c) = cnf(), data(4)
    client.use(flow, dise.RK4(10))  # equal steps, so that differences see no change of step sizes
    weight = flow.transform.ode[0].weight
    direction = torch.randn_like(weight)
    (gradient,) = torch.autograd.grad(flow(c).log_prob(x).sum(), weight)

    @torch.no_grad()
    def at(step):
        moved = copy.deepcopy(flow)
        moved.transform.ode[0].weight += step * direction
        return moved(c).log_prob(x).sum()

    assert_close((gradient * direction).sum(), (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-4, atol=1e-4)


def test_any_integrator_and_the_estimated_trace():
    flow, (x, c) = cnf(exact=False), data(2000)
    client.use(flow, dise.RK4(20))
    estimated = flow(c).log_prob(x)
    flow.transform.exact = True
    exact = flow(c).log_prob(x)
    assert not torch.equal(estimated, exact)
    assert (estimated - exact).mean().abs() < 4 * (estimated - exact).std() / 2000**0.5
    client.use(flow, dise.Multistep.adams(40, 2))
    assert_close(flow(c).log_prob(x), exact, rtol=0, atol=0.2)


def test_a_flow_in_use_is_copied_saved_and_switched_again():
    flow, (x, c) = cnf(), data(3)
    names = list(flow.state_dict())
    client.use(flow, dise.RK4(4))
    assert list(flow.state_dict()) == names
    expected = flow(c).log_prob(x)
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert_close(other(c).log_prob(x), expected)
        with torch.no_grad():
            other.transform.ode[0].weight.zero_()
        assert not torch.equal(other(c).log_prob(x), expected)
    assert_close(flow(c).log_prob(x), expected)
    client.use(flow, dise.RK4(8))
    assert not torch.equal(flow(c).log_prob(x), expected)


def test_what_is_no_flow_is_refused():
    with pytest.raises(TypeError, match=r"flow: expected a module such as zuko.flows.CNF, got function"):
        client.use(lambda: None)
    with pytest.raises(ValueError, match=r"flow: expected a module with a zuko.flows.FFJTransform"):
        client.use(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="integrator: expected an integrator"):
        client.use(cnf(), "dopri5")
    with pytest.raises(ValueError, match="log_prob_tolerance: expected a finite number above 0, got -1"):
        client.use(cnf(), log_prob_tolerance=-1)


# ---- odeint


@pytest.mark.parametrize("backwards", [False, True])
def test_odeint_is_zukos(backwards):
    matrix = torch.randn(3, 3, dtype=DOUBLE)

    def solved(odeint):
        A, x = matrix.clone().requires_grad_(), torch.ones(4, 3, dtype=DOUBLE, requires_grad=True)
        ends = [torch.tensor(t, dtype=DOUBLE, requires_grad=True) for t in ((1.0, 0.0) if backwards else (0.0, 1.0))]
        y = odeint(lambda t, x: torch.tanh(x @ A) + t, x, *ends, (A,), atol=1e-9, rtol=1e-9)
        return [y, *torch.autograd.grad(y.square().sum(), [A, x, *ends])]

    *actual, start, end = solved(client.odeint)
    *expected, their_start, their_end = solved(zuko.utils.odeint)
    assert_close([*actual, end], [*expected, their_end], rtol=1e-6, atol=1e-7)
    assert_close(start, -their_start, rtol=1e-6, atol=1e-7)  # zuko 1.6 returns it with the wrong sign, see below


def test_gradient_in_the_start_time():
    """x(1) = exp(t0 − 1) of dx/dt = −x."""
    t0 = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    y = client.odeint(lambda t, x: -x, torch.ones(1, dtype=DOUBLE), t0, 1.0, atol=1e-9, rtol=1e-9)
    assert_close(torch.autograd.grad(y.sum(), t0)[0], (t0 - 1).exp().detach(), rtol=1e-7, atol=0)


def test_odeint_takes_several_tensors():
    x = torch.ones(4, 3, dtype=DOUBLE), torch.ones((), dtype=DOUBLE)
    actual = client.odeint(lambda t, a, b: (-a, b * t), x, 0.0, 1.0)
    expected = zuko.utils.odeint(lambda t, a, b: (-a, b * t), x, 0.0, 1.0)
    assert_close(tuple(actual), tuple(expected), rtol=1e-4, atol=1e-5)


def test_odeint_in_the_place_of_zukos(monkeypatch):
    flow, (x, c) = cnf(atol=1e-8, rtol=1e-8), data(4)
    expected = flow(c).log_prob(x)
    monkeypatch.setattr(zuko.transforms, "odeint", client.odeint)
    assert_close(flow(c).log_prob(x), expected, rtol=0, atol=1e-4)
    flow(c).log_prob(x).sum().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())
