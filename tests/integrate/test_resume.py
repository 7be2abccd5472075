"""One step in the open, and solves that go on."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import RK45
from torch.testing import assert_close

from dise import (
    RK4,
    RKC1,
    Adams,
    Bosh3,
    Cascade,
    Dopri5,
    Dynamic,
    Euler,
    Fehlberg2,
    NeuralODE,
    PIController,
    StepDoubling,
    Tsit5,
    resume,
    solve,
    step,
)

DOPRI = Dopri5(rtol=1e-6, atol=1e-6)
PARTS = ("nfe", "n_steps", "n_accepted")


def linear(t, y):
    return torch.cos(t) * y


def van_der_pol(t, y):
    return torch.stack([y[:, 1], 5 * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]], 1)


# ---- step


def test_a_step_is_scipys():
    """The same Dormand–Prince pair: state, error estimate and stages (SciPy has no first-step option for one step)."""
    y0, dt = np.array([2.0, -0.5]), 0.05
    solver = RK45(lambda t, y: np.array([y[1], 5 * (1 - y[0] ** 2) * y[1] - y[0]]), 0.0, y0, 10.0, first_step=dt)
    solver.rtol, solver.atol = 1e9, 1e9  # accepts
    solver.step()
    taken = step(van_der_pol, 0.0, torch.from_numpy(y0)[None], dt, DOPRI)
    assert solver.t == dt
    np.testing.assert_allclose(taken.y[0], solver.y, rtol=1e-13)
    np.testing.assert_allclose(taken.k1[0], solver.f, rtol=1e-13)
    # SciPy's weights are Dormand and Prince's own, Shampine's are 2/3 of them
    np.testing.assert_allclose(-taken.error[0], 2 / 3 * dt * solver.K.T @ solver.E, rtol=1e-9)


@pytest.mark.parametrize("integrator", [Euler(), RK4(), RKC1(), Bosh3(), DOPRI, StepDoubling(RK4())], ids=str)
def test_a_step_counts_its_evaluations(record, integrator):
    f, y = record(linear), torch.ones(3, 2)
    taken = step(f, 0.0, y, 0.1, integrator)
    assert f.calls == integrator.tableau.stages
    f = record(linear)
    again = step(f, 0.0, y, 0.1, integrator, k1=linear(torch.zeros(3, 1), y))
    assert f.calls == integrator.tableau.stages - 1
    assert_close(again.y, taken.y)
    assert (taken.k1 is None) == (not integrator.tableau.fsal)
    assert (taken.error is None) == taken.ratio.isnan().all() == (integrator.tableau.b_err is None)
    if taken.k1 is not None:
        assert_close(taken.k1, linear(taken.t[:, None].float(), taken.y))


def test_steps_in_a_loop_are_a_solve(starts):
    """Accept and reject, sample by sample, by hand; the last step is cut at t1."""
    y, t1 = starts(5, 2), 2.0
    integrator = Dopri5(rtol=1e-6, atol=1e-6, first_step=0.1, controller=PIController())
    expected = solve(van_der_pol, y, 0.0, t1, integrator)
    t, dt, k1, memory = torch.zeros(5).double(), torch.full((5,), 0.1).double(), None, None
    attempts = torch.zeros(5, dtype=torch.int64)
    while (running := t < t1).any():
        attempts += running
        taken = step(van_der_pol, t, y, dt.minimum(t1 - t), integrator, k1=k1, memory=memory)
        moved = taken.accept[:, None]
        start = van_der_pol(t[:, None], y) if k1 is None else k1
        t, y = torch.where(taken.accept, taken.t, t), torch.where(moved, taken.y, y)
        k1, dt, memory = torch.where(moved, taken.k1, start), taken.dt, taken.memory
    assert_close(y, expected.y, rtol=1e-9, atol=1e-9)
    assert attempts.tolist() == expected.n_steps.tolist()
    assert (expected.n_accepted < expected.n_steps).any()


def test_a_step_of_structured_states_and_one_system():
    y = {"a": torch.ones(3, 2), "b": torch.full((3,), 2.0)}
    taken = step(lambda t, y: {"a": -y["a"], "b": y["b"]}, 0.0, y, torch.tensor([0.1, 0.2, -0.1]), RK4())
    assert_close(taken.y["b"], 2 * torch.tensor([0.1, 0.2, -0.1]).exp(), rtol=1e-5, atol=0)
    one = step(lambda t, y: -y, 0.0, torch.ones(3, 2), 0.1, DOPRI, batched=False)
    assert one.t.shape == one.ratio.shape == one.accept.shape == one.dt.shape == ()


def test_a_step_has_gradients():
    y = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    dt = torch.full((2,), 0.3, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def both(y, dt, rate):
        taken = step(lambda t, y, rate: rate * y, 0.0, y, dt, Bosh3(), args=(rate,))
        return taken.y, taken.error

    assert torch.autograd.gradcheck(both, (y, dt, rate))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"integrator": Dynamic([RK4()], lambda h, k: h)}, TypeError, "integrator: expected one Runge–Kutta method"),
        ({"integrator": "rk4"}, TypeError, "integrator: expected one Runge–Kutta method"),
        ({"y": [1.0]}, TypeError, "y: expected a tensor"),
        ({"dt": math.inf}, ValueError, "dt: expected finite times"),
        ({"dt": torch.ones(4)}, ValueError, r"dt: expected a number or a tensor of shape \(3,\)"),
        ({"t": None}, TypeError, "t: expected a number"),
        ({"k1": torch.ones(4, 2)}, ValueError, "k1: expected as many samples as y has, got 4"),
        ({"k1": torch.ones(3, 3)}, ValueError, "k1: expected a state structured like y"),
        ({"k1": (torch.ones(3, 2),)}, ValueError, "k1: expected a state structured like y"),
        ({"memory": torch.ones(2)}, ValueError, "memory: expected a number or a tensor of shape"),
    ],
)
def test_bad_steps(change, error, message):
    options = {"t": 0.0, "y": torch.ones(3, 2), "dt": 0.1, "integrator": RK4()} | change
    t, y, dt, integrator = (options.pop(name) for name in ("t", "y", "dt", "integrator"))
    with pytest.raises(error, match=message):
        step(linear, t, y, dt, integrator, **options)


# ---- resume


@pytest.mark.host
@pytest.mark.parametrize("integrator", [DOPRI, Tsit5(rtol=1e-6, atol=1e-6), Bosh3(rtol=1e-5, atol=1e-5)], ids=str)
@torch.no_grad()
def test_two_parts_cost_as_much_as_one(starts, integrator):
    """But for the step that the joint cuts short, and what follows from it."""
    y0 = starts(5, 2)
    whole = solve(van_der_pol, y0, 0.0, 10.0, integrator)
    first = solve(van_der_pol, y0, 0.0, 4.0, integrator)
    second = resume(first, van_der_pol, 10.0, integrator)
    assert_close(second.y, whole.y, rtol=1e-3, atol=1e-3)
    more = first.n_steps + second.n_steps - whole.n_steps
    assert (more.abs() <= 3 + whole.n_steps // 100).all()
    assert (first.nfe + second.nfe - whole.nfe).tolist() == (more * (integrator.tableau.stages - 1)).tolist()


@pytest.mark.parametrize(("gradients", "more"), [("off", 0), ("known", 0), ("new", 1)])
def test_the_joint_costs_no_evaluation_but_for_a_gradient(record, starts, gradients, more):
    """Of a value without one f's gradient at the joint is unknown."""
    f = record(van_der_pol)
    with torch.set_grad_enabled(gradients == "known"):
        first = solve(f, starts(5, 2).requires_grad_(), 0.0, 1.0, DOPRI)
    before = f.rows
    with torch.set_grad_enabled(gradients != "off"):
        second = resume(first, f, 2.0, DOPRI)
    assert f.rows - before == second.nfe.sum()
    assert (second.nfe == 6 * second.n_steps + more).all()


def test_a_method_that_does_not_know_k1_evaluates_it(record, starts):
    f = record(linear)
    first = solve(linear, starts(5, 2), 0.0, 1.0, Fehlberg2())
    assert first.k1.isnan().all()
    second = resume(first, f, 2.0, Fehlberg2())
    assert f.rows == second.nfe.sum()
    assert torch.equal(second.nfe, 2 * second.n_steps + second.n_accepted)


def test_many_parts_backwards_and_of_structure(starts):
    y0 = {"a": starts(5, 2), "b": starts(5, 1)}

    def f(t, y):
        return {"a": torch.cos(t) * y["a"], "b": -y["b"]}

    solution = solve(f, y0, 0.0, torch.linspace(0, 1, 5).double(), DOPRI)
    for end in (2.0, 3.0, torch.tensor([3.0, 1, 4, 3, 0]).double()):
        solution = resume(solution, f, end, DOPRI)
    assert solution.t.tolist() == [3, 1, 4, 3, 0]
    assert_close(solution.y["a"], y0["a"] * solution.t.sin().exp()[:, None], rtol=1e-4, atol=1e-4)
    assert_close(solution.y["b"], y0["b"] * (-solution.t).exp()[:, None], rtol=1e-4, atol=1e-4)


def test_a_sample_that_gave_up_goes_on(starts):
    y0 = starts(5, 2)
    few = Dopri5(rtol=1e-6, atol=1e-6, max_steps=10)
    solution = solve(van_der_pol, y0, 0.0, 4.0, few, throw=False)
    assert (solution.status != 0).any()
    rounds = 0
    while (solution.status != 0).any():
        solution = resume(solution, van_der_pol, 4.0, few, throw=False)
        rounds += 1
    assert rounds > 2
    assert_close(solution.y, solve(van_der_pol, y0, 0.0, 4.0, DOPRI).y, rtol=1e-3, atol=1e-4)


def test_a_stopped_sample_goes_on_after_its_event(record):
    """k1 was evaluated at the step's end, which is not where the event is."""
    f = record(lambda t, y: -y)
    y0 = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    stopped = solve(f, y0, 0.0, 5.0, DOPRI, event=lambda t, y: y[:, 0] - 0.5)
    assert stopped.k1.isnan().all()
    assert_close(resume(stopped, f, 5.0, DOPRI).y, y0 * math.exp(-5), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
def test_gradients_reach_the_first_part(gradient):
    f = NeuralODE(Rate(), DOPRI).f
    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64, requires_grad=True)
    first = solve(f, y0, 0.0, 1.0, DOPRI, gradient=gradient)
    end = resume(first, f, 2.0, DOPRI, gradient=gradient).y
    (of_y0,) = torch.autograd.grad(end.sum(), y0, retain_graph=True)
    (of_rate,) = torch.autograd.grad(end.sum(), f.rate)
    assert_close(of_y0, torch.full_like(y0, math.exp(-1)), rtol=1e-4, atol=0)
    assert of_rate.item() == pytest.approx(6 * math.exp(-1), rel=1e-4)


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
@pytest.mark.parametrize(
    "structure", [lambda y: y, lambda y: (y, -y), lambda y: {"a": y}], ids=["one", "tuple", "dict"]
)
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("integrator", [DOPRI, Adams(rtol=1e-6, atol=1e-6), RK4(20)], ids=str)
def test_a_part_made_without_gradients_is_trained_on(gradient, structure, without, integrator):
    rate = torch.nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))

    def f(t, y):
        if isinstance(y, dict):
            return {name: rate * x for name, x in y.items()}
        return tuple(rate * x for x in y) if isinstance(y, tuple) else rate * y

    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    with without():
        first = solve(f, structure(y0), 0.0, 1.0, integrator)
    end = resume(first, f, 2.0, integrator, gradient=gradient).y
    end = end if isinstance(end, torch.Tensor) else end["a"] if isinstance(end, dict) else end[0]
    (of_rate,) = torch.autograd.grad(end.sum(), rate)
    assert of_rate.item() == pytest.approx(3 * math.exp(-1), rel=1e-4)  # the first part has no gradient


class Rate(torch.nn.Module):
    """y' = rate·y."""

    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))

    def forward(self, t, y):
        return self.rate * y


def test_integrators_that_choose_go_on(starts):
    y0 = starts(5, 2)
    dynamic = Dynamic([RK4(20), DOPRI], lambda h, k1: torch.stack([h[:, 0], -h[:, 0]], 1))
    for integrator in (dynamic, Cascade([RK4(20), DOPRI])):
        solution = resume(solve(linear, y0, 0.0, 1.0, integrator), linear, 2.0, integrator)
        assert_close(solution.y, y0 * math.exp(math.sin(2)), rtol=1e-4, atol=1e-5)
        assert solution.choice is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [({"solution": torch.ones(2, 1)}, "solution: expected what"), ({"integrator": None}, "integrator: expected an")],
)
def test_bad_resumes(change, message):
    options = {"solution": solve(linear, torch.ones(2, 1), 0.0, 1.0, DOPRI), "integrator": DOPRI} | change
    with pytest.raises(TypeError, match=message):
        resume(options["solution"], linear, 2.0, options["integrator"])
