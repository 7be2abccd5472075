"""Log-densities by Gauss's rule in each step, beside those by the integrator's stages and closed forms."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import dise
from dise import (
    RK4,
    Adams,
    Bosh3,
    Cascade,
    DiagonalNormal,
    Dopri5,
    Dopri8,
    Dynamic,
    Euler,
    ExactDivergence,
    Flow,
    HeunEuler,
    HutchinsonDivergence,
    StepDoubling,
    Tsit5,
)
from dise.integrate.output.quadrature import NODES, RULES

DOUBLE = torch.float64
METHODS = {
    "Dopri5": Dopri5(rtol=1e-8, atol=1e-8),
    "Tsit5": Tsit5(rtol=1e-8, atol=1e-8),
    "Dopri8": Dopri8(rtol=1e-8, atol=1e-8),
    "Bosh3": Bosh3(rtol=1e-7, atol=1e-7),
    "HeunEuler": HeunEuler(rtol=1e-6, atol=1e-6),
}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Path(nn.Module):
    """The straight path's field for data N(0, diag(deviation²)), which also counts the points it is evaluated at."""

    def __init__(self, dim=3):
        super().__init__()
        self.deviation = nn.Parameter(torch.linspace(0.3, 1.4, dim, dtype=DOUBLE))
        self.points, self.with_graph = 0, 0

    def forward(self, t, x, *conditions):
        self.points += x[..., 0].numel()
        self.with_graph += x[..., 0].numel() * x.requires_grad
        variance = (t * self.deviation) ** 2 + (1 - t) ** 2
        return (t * self.deviation**2 - (1 - t)) / variance * x + sum(conditions)

    def log_prob(self, x):
        zero = torch.zeros_like(self.deviation)
        return torch.distributions.Independent(torch.distributions.Normal(zero, self.deviation), 1).log_prob(x)


def standard(dim=3):
    return DiagonalNormal(torch.zeros(dim, dtype=DOUBLE), torch.ones(dim, dtype=DOUBLE))


def flow(f, integrator, **options):
    return Flow(f, standard(), integrator, **({"divergence": ExactDivergence(), "quadrature": "gauss"} | options))


# ---- the rules


def test_the_rule_is_gausss():
    nodes, weights = np.polynomial.legendre.leggauss(len(NODES))
    assert np.allclose(NODES, (nodes + 1) / 2, atol=1e-15)
    assert np.allclose(RULES[0], weights / 2, atol=1e-15)


@pytest.mark.parametrize(("rule", "order"), list(zip(RULES, (10, 4, 2), strict=True)))
def test_orders_of_the_rules(rule, order):
    for power in range(order + 1):
        error = abs(sum(w * x**power for w, x in zip(rule, NODES, strict=True)) - 1 / (power + 1))
        assert (error < 1e-14) == (power < order)


# ---- values


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_log_densities_are_those_of_the_closed_form(method):
    f = Path()
    x = noise(20, 3) * f.deviation.detach()
    found, solution = flow(f, method).solve(x)
    assert_close(found, f.log_prob(x), atol=300 * method.rtol, rtol=0)
    assert solution.y[1].shape == (20, 1)


def test_the_error_test_holds_log_densities_where_points_are_exact():
    class Turning(nn.Module):
        """A field with f = 0 on the axis and a divergence that oscillates there."""

        def forward(self, t, x):
            return torch.sin(40 * t) * x

    x = torch.zeros(4, 3, dtype=DOUBLE)  # points stay there: their error is 0
    exact = standard().log_prob(x) + 3 * (np.cos(40) - 1) / 40 * 1
    errors, steps = [], []
    for tol in (1e-3, 1e-6, 1e-9):
        found, solution = flow(Turning(), Dopri5(rtol=tol, atol=tol)).solve(x)
        errors.append(float((found - exact).detach().abs().max()))
        steps.append(int(solution.n_steps.max()))
    assert all(error <= tol for error, tol in zip(errors, (1e-3, 1e-6, 1e-9), strict=True))
    assert steps[0] < steps[1] < steps[2]


def test_the_tolerance_of_log_densities_counts():
    f, x = Path(), noise(8, 3)
    loose, tight = (
        flow(f, Dopri5(rtol=1e-3, atol=1e-3), log_prob_tolerance=tolerance).solve(x)[1] for tolerance in (1e-2, 1e-10)
    )
    assert (tight.n_steps > loose.n_steps).all()


# ---- evaluations


@pytest.mark.parametrize("method", [Dopri5, Dopri8])
def test_stages_evaluate_f_alone_and_five_divergences_a_step_are_counted(method):
    f, x = Path(), noise(6, 3)
    with torch.no_grad():
        density = flow(f, method(rtol=1e-6, atol=1e-6))
        density.log_prob(x)  # compares f among all rows and some, once
        f.points = f.with_graph = 0
        _, solution = density.solve(x)
    assert f.points == int(solution.nfe.sum())
    if method is Dopri5:
        assert_close(solution.nfe, 2 + (6 + 5) * solution.n_steps)
    # the first evaluations choose the first step, with the divergence
    assert f.with_graph == 5 * int(solution.n_steps.sum()) + 2 * len(x)


def test_k1_at_the_end_is_unknown():
    _, solution = flow(Path(), Dopri5()).solve(noise(3, 3))
    assert torch.cat([part.flatten() for part in solution.k1]).isnan().all()


@pytest.mark.parametrize("integrator", [RK4(steps=4), Euler(steps=3), Adams(rtol=1e-5), StepDoubling(RK4(4))])
def test_methods_that_do_not_choose_steps_by_stages_use_their_stages(integrator):
    f, x = Path(), noise(5, 3)
    found, by_stages = (flow(f, integrator, quadrature=how).solve(x) for how in ("gauss", "stages"))
    assert torch.equal(found[0], by_stages[0])
    assert torch.equal(found[1].nfe, by_stages[1].nfe)


@pytest.mark.parametrize(
    "options", [{"save_at": [0.7, 0.2]}, {"dense": True}, {"accumulate": lambda step: step.y.square().sum(1)}]
)
def test_what_looks_into_a_step_sees_the_log_density_there(options):
    f, x = Path(), noise(5, 3)
    found, by_stages = (
        flow(f, Dopri5(rtol=1e-7, atol=1e-7), quadrature=how).block.solve(
            (x, torch.zeros(5, 1, dtype=DOUBLE)), **options
        )
        for how in ("gauss", "stages")
    )
    assert torch.equal(found.nfe, by_stages.nfe)
    assert torch.equal(found.y[1], by_stages.y[1])


# ---- wherever flows go


@pytest.mark.parametrize("divergence", [None, ExactDivergence(chunk=2), ExactDivergence(mode="forward")])
def test_any_exact_divergence(divergence):
    f, x = Path(), noise(5, 3)
    found = flow(f, Dopri5(rtol=1e-8, atol=1e-8), divergence=divergence).log_prob(x)
    assert_close(found, f.log_prob(x), atol=1e-6, rtol=0)


def test_hutchinsons_directions_are_fixed_over_a_solve():
    f, x = Path(), noise(5, 3)  # a diagonal Jacobian: ±1 directions are exact
    found = flow(f, Dopri5(rtol=1e-8, atol=1e-8), divergence=HutchinsonDivergence()).log_prob(x)
    assert_close(found, f.log_prob(x), atol=1e-6, rtol=0)


def test_conditions_have_the_rows_of_their_points():
    f, x, c = Path(), noise(7, 3), noise(7, 3, seed=1)
    whole = flow(f, Dopri5(rtol=1e-7, atol=1e-7)).solve(x, c)
    for i in range(7):
        alone = flow(f, Dopri5(rtol=1e-7, atol=1e-7)).solve(x[i : i + 1], c[i : i + 1])
        assert_close(alone[0], whole[0][i : i + 1], atol=1e-12, rtol=0)
        assert alone[1].nfe == whole[1].nfe[i]


@pytest.mark.parametrize("batched", [True, False])
def test_sets_of_points(batched):
    f, x = Path(), noise(4, 6, 3)
    found = flow(f, Dopri5(rtol=1e-8, atol=1e-8), batched=batched).log_prob(x)
    assert_close(found, f.log_prob(x), atol=1e-6, rtol=0)


def test_samples_with_their_log_densities():
    f = Path()
    torch.manual_seed(0)
    x, found = flow(f, Dopri8(rtol=1e-9, atol=1e-9)).sample(6, with_log_prob=True)
    assert_close(found, f.log_prob(x).detach(), atol=1e-7, rtol=0)


def test_spans_of_their_own():
    f, x, ends = Path(), noise(3, 3), torch.tensor([0.3, 0.6, 1.0], dtype=DOUBLE)
    whole = flow(f, Dopri5(rtol=1e-7, atol=1e-7)).until(ends)
    assert whole.quadrature == "gauss"
    found = whole.log_prob(x)
    for i, end in enumerate(ends.tolist()):
        alone = flow(f, Dopri5(rtol=1e-7, atol=1e-7)).until(end).log_prob(x[i : i + 1])
        assert_close(alone, found[i : i + 1], atol=1e-12, rtol=0)


def test_jumps_end_steps():
    class Jumping(nn.Module):
        def forward(self, t, x):
            return torch.where(t < 0.4, 1.0, -2.0) * x

    x = noise(4, 3)
    found = flow(Jumping(), Dopri5(rtol=1e-9, atol=1e-9), jump_at=[0.4]).log_prob(x)
    change = 0.4 - 1.2  # ∫ of the slopes
    assert_close(found, standard().log_prob(x * np.exp(-change)) - 3 * change, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    "policy",
    [
        Dynamic((Euler(steps=2), Dopri5(rtol=1e-7, atol=1e-7), RK4(steps=3)), lambda h0, k1: noise(len(h0), 3)),
        Cascade((RK4(steps=2), Dopri5(rtol=1e-7, atol=1e-7)), lambda y: y[0][:, 0] > 0),
    ],
    ids=["Dynamic", "Cascade"],
)
def test_policies_give_each_row_its_candidates_density(policy):
    f, x = Path(), noise(9, 3)
    found, solution = flow(f, policy).solve(x)
    assert len(set(solution.choice.tolist())) > 1
    for i, choice in enumerate(solution.choice.tolist()):
        alone = flow(f, policy.candidates[choice]).log_prob(x[i : i + 1])
        assert_close(alone, found[i : i + 1], atol=1e-12, rtol=0)


# ---- gradients


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
def test_gradients_are_those_of_the_closed_form(gradient):
    f = Path()
    x = noise(5, 3).requires_grad_()
    tight = Dopri8(rtol=1e-10, atol=1e-10)
    (flow(f, tight, gradient=gradient).log_prob(x).sum()).backward()
    found = x.grad.clone(), f.deviation.grad.clone()
    x.grad = f.deviation.grad = None
    f.log_prob(x).sum().backward()
    assert_close(found, (x.grad, f.deviation.grad), atol=1e-6, rtol=0)


def test_another_quadrature_is_refused():
    with pytest.raises(ValueError, match="quadrature: expected 'stages' or 'gauss', got 'simpson'"):
        flow(Path(), Dopri5(), quadrature="simpson")


def test_a_field_of_the_wrong_shape_is_named():
    class Wrong(nn.Module):
        def forward(self, t, x):
            return x[..., :2]

    with pytest.raises(ValueError, match="f: expected dz/dt of shape"):
        flow(Wrong(), Dopri5()).log_prob(noise(2, 3))


def test_single_precision():
    f = Path().float()
    base = DiagonalNormal(torch.zeros(3), torch.ones(3))
    x = noise(5, 3).float()
    found = dise.Flow(f, base, Dopri5(rtol=1e-5, atol=1e-5), quadrature="gauss").log_prob(x)
    assert found.dtype == torch.float32
    assert_close(found, f.log_prob(x), atol=1e-3, rtol=0)
