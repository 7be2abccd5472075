"""f's own memory and the solver's."""

import math

import pytest
import torch

from dise import RK4, Bosh3, Dopri5, Dopri8, Euler, resume, solve
from dise.torchdiffeq import odeint

INTEGRATORS = [RK4(50), Dopri5(rtol=1e-6, atol=1e-6)]


def scales_t(t, y):
    """y' = −y cos 2t, from a function that changes its t."""
    t *= 2
    return -y * torch.cos(t)


EXACT = math.exp((math.sin(1) - math.sin(3)) / 2)  # from 1 at t = 0.5 to t = 1.5


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=str)
def test_a_change_of_t_is_an_error(integrator):
    with pytest.raises(RuntimeError, match="f: changed t in place; work on a copy"):
        solve(scales_t, torch.ones(3, 1), 0.5, 1.5, integrator)


@pytest.mark.parametrize(
    ("integrator", "options"),
    [*((integrator, {}) for integrator in INTEGRATORS), (INTEGRATORS[1], {"compile": {"backend": "aot_eager"}})],
    ids=str,
)
def test_where_changes_are_not_counted_f_has_a_copy_of_t(integrator, options):
    with torch.inference_mode(not options):
        y = solve(scales_t, torch.ones(3, 1), 0.5, 1.5, integrator, **options).y
    assert y.flatten().tolist() == pytest.approx([EXACT] * 3, rel=1e-5)


# ---- derivatives in y that f takes


def hamiltonian(*, marks):
    """y' = J ∇H of H = (q² + p²)/2, a rotation; its derivatives by autograd."""

    def f(t, y):
        with torch.enable_grad():
            y = y.requires_grad_() if marks else y.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(y.square().sum() / 2, y, create_graph=marks)
        return torch.stack([gradient[:, 1], -gradient[:, 0]], 1)

    return f


@pytest.mark.parametrize("integrator", [*INTEGRATORS, Bosh3(), Euler(3), Dopri8()], ids=str)
@pytest.mark.parametrize("way", [solve, lambda *problem: odeint(problem[0], problem[1], torch.tensor(problem[2:4]))])
def test_derivatives_inside_f_leave_no_trace(integrator, way):
    y0 = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    with torch.no_grad():
        marked = way(hamiltonian(marks=True), y0, 0.0, 1.0, integrator)
        clean = way(hamiltonian(marks=False), y0, 0.0, 1.0, integrator)
    assert not y0.requires_grad
    assert y0.grad is None
    if way is not solve:
        assert not marked.requires_grad
        return
    assert not any(x.requires_grad for x in (marked.y, marked.k1, marked.error, marked.t, marked.dt))
    assert torch.equal(marked.y, clean.y)
    resumed = resume(marked, hamiltonian(marks=True), 2.0, integrator)
    assert not y0.requires_grad
    assert resumed.y.isfinite().all()


def test_what_the_caller_marked_stays_marked():
    y0 = torch.tensor([[1.0, 0.0]], requires_grad=True)
    with torch.no_grad():
        assert not solve(hamiltonian(marks=True), y0, 0.0, 1.0, Dopri5()).y.requires_grad
    assert y0.requires_grad
    (slope,) = torch.autograd.grad(solve(hamiltonian(marks=True), y0, 0.0, 1.0, RK4(50)).y[:, 0].sum(), y0)
    assert slope.flatten().tolist() == pytest.approx([math.cos(1), math.sin(1)], abs=1e-5)
