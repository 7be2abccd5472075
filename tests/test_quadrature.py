"""Log-densities by Lobatto's rule along the steps, beside those by the integrator's stages and closed forms."""

import gc
import weakref

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
from dise.integrate.output.lobatto import NODES, ROWS, error_estimate, legendre_coefficients

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
    return Flow(f, standard(), integrator, **({"divergence": ExactDivergence(), "quadrature": "lobatto"} | options))


# ---- the rules


def test_the_rule_is_lobattos():
    inner = np.polynomial.legendre.Legendre.basis(6).deriv().roots()
    nodes = np.array([-1, *inner, 1])
    assert np.allclose(NODES, (nodes + 1) / 2, atol=1e-14)
    assert np.allclose(ROWS[0], 1 / 42 / np.polynomial.legendre.Legendre.basis(6)(nodes) ** 2, atol=1e-14)
    for power in range(13):
        error = abs(np.dot(ROWS[0], np.array(NODES) ** power) - 1 / (power + 1))
        assert (error < 1e-14) == (power < 12)


def test_coefficients_are_those_of_legendre_polynomials():
    x = 2 * np.array(NODES) - 1
    fitted = np.polynomial.legendre.legfit(x, np.exp(x), len(NODES) - 1)
    found = legendre_coefficients(torch.tensor(np.exp(x))[:, None])[:, 0]
    assert np.allclose(found, fitted, atol=1e-14)


FUNCTIONS = {
    "exponential": lambda x, a: torch.exp(a * x),
    "oscillating": lambda x, a: torch.cos(a * x + 0.3),
    "even": lambda x, a: torch.cos(a * (x - 0.5)),
    "odd": lambda x, a: torch.sin(a * (x - 0.5)),
    "pole": lambda x, a: 1 / (1 + (a * (x - 0.4)) ** 2),
    "pole beside": lambda x, a: 1 / (x + 3 / a),
    "bump": lambda x, a: torch.exp(-((a * (x - 0.37)) ** 2)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_error_estimate_is_safe_and_of_high_order(name):
    function = FUNCTIONS[name]
    a = torch.logspace(0, 1, 40, dtype=DOUBLE)
    finer, weights = (torch.tensor(x / 2) for x in np.polynomial.legendre.leggauss(60))
    nodes = torch.tensor(NODES, dtype=DOUBLE)[:, None]
    coefficients = legendre_coefficients(function(nodes, a))
    error = (coefficients[0] - weights @ function(finer[:, None] + 0.5, a)).abs()
    estimate = error_estimate(coefficients)
    assert (error <= 2 * estimate + 1e-14).all()
    if "pole" not in name:  # entire functions
        half, resolved = error_estimate(legendre_coefficients(function(nodes, a / 2))), estimate < 1e-2
        assert (half[resolved] <= estimate[resolved] / 2**9 + 1e-14).all()


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
    errors, evaluations = [], []
    for tol in (1e-3, 1e-6, 1e-9):
        found, solution = flow(Turning(), Dopri5(rtol=tol, atol=tol)).solve(x)
        errors.append(float((found - exact).detach().abs().max()))
        evaluations.append(int(solution.nfe.max()))
    assert all(error <= tol for error, tol in zip(errors, (1e-3, 1e-6, 1e-9), strict=True))
    assert evaluations[0] < evaluations[1] < evaluations[2]


def test_the_tolerance_of_log_densities_counts():
    f, x = Path(), noise(8, 3)
    loose, tight = (
        flow(f, Dopri5(rtol=1e-3, atol=1e-3), log_prob_tolerance=tolerance).solve(x)[1] for tolerance in (1e-2, 1e-10)
    )
    assert (tight.nfe > loose.nfe).all()


# ---- evaluations


@pytest.mark.parametrize("method", [Dopri5, Dopri8])
def test_stages_evaluate_f_alone_and_divergences_are_counted(method):
    f, x = Path(), noise(6, 3)
    with torch.no_grad():
        density = flow(f, method(rtol=1e-6, atol=1e-6))
        density.log_prob(x)  # compares f among all rows and some, once
        f.points = f.with_graph = 0
        _, solution = density.solve(x)
    assert f.points == int(solution.nfe.sum())
    divergences = f.with_graph
    at_nodes = len(x) + 6 * int(solution.n_accepted.sum())  # a step begins at the last node of the one before
    assert divergences >= at_nodes
    assert (divergences - at_nodes) % 10 == 0  # halves have five nodes of their own, each
    if method is Dopri5:
        assert int(solution.nfe.sum()) == 2 * len(x) + 6 * int(solution.n_steps.sum()) + divergences


def test_f_is_compared_among_all_rows_and_some_once_for_all_its_flows():
    f, x = Path(), noise(6, 3)
    flow(f, Dopri5(rtol=1e-6, atol=1e-6)).log_prob(x)
    f.points = 0
    _, solution = flow(f, Dopri5(rtol=1e-6, atol=1e-6)).solve(x)
    assert f.points == int(solution.nfe.sum())


@pytest.mark.parametrize("points", [1, 3000])
def test_steps_wait_for_each_other_where_they_are_small(points):
    f, x = Path(), noise(points, 3)
    with torch.no_grad():
        _, solution = flow(f, Dopri5(rtol=1e-6, atol=1e-6, first_step=0.1), log_prob_tolerance=1.0).solve(x)
    calls = solution.calls - 1 - 6 * int(solution.n_steps.max())
    assert calls == (1 if points == 1 else int(solution.n_steps.max()))


def test_log_densities_shorten_no_step_of_points():
    f, x = Path(), noise(8, 3)
    method = Dopri8(rtol=1e-4, atol=1e-4)
    points = dise.solve(f, x, 1.0, 0.0, method)
    found = flow(f, method, log_prob_tolerance=1e-12).solve(x)[1]
    assert torch.equal(found.n_steps, points.n_steps)
    assert torch.equal(found.y[0], points.y)


def test_k1_at_the_end_is_unknown():
    _, solution = flow(Path(), Dopri5()).solve(noise(3, 3))
    assert torch.cat([part.flatten() for part in solution.k1]).isnan().all()


@pytest.mark.parametrize("integrator", [RK4(steps=4), Euler(steps=3), Adams(rtol=1e-5), StepDoubling(RK4(4))])
def test_methods_without_steps_and_dense_output_of_their_own_use_their_stages(integrator):
    f, x = Path(), noise(5, 3)
    found, by_stages = (flow(f, integrator, quadrature=how).solve(x) for how in ("lobatto", "stages"))
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
        for how in ("lobatto", "stages")
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
    assert whole.quadrature == "lobatto"
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
def test_policies_use_the_stages(policy):
    f, x = Path(), noise(9, 3)
    (found, solution), (by_stages, _) = (flow(f, policy, quadrature=how).solve(x) for how in ("lobatto", "stages"))
    assert len(set(solution.choice.tolist())) > 1
    assert torch.equal(found, by_stages)


@pytest.mark.parametrize("options", [{"drop_finished": False}, {"gradient": "checkpoint"}])
def test_what_calls_f_on_all_rows_or_again_uses_the_stages(options):
    f, x = Path(), noise(5, 3)
    found, by_stages = (flow(f, Dopri5(), quadrature=how, **options).solve(x) for how in ("lobatto", "stages"))
    assert torch.equal(found[0], by_stages[0])
    assert torch.equal(found[1].nfe, by_stages[1].nfe)


def test_rows_without_a_span():
    f, x = Path(), noise(3, 3)
    found = flow(f, Dopri8(rtol=1e-9, atol=1e-9)).until(torch.tensor([1.0, 0.0, 1.0], dtype=DOUBLE)).log_prob(x)
    exact = torch.where(torch.arange(3) == 1, standard().log_prob(x), f.log_prob(x))
    assert_close(found, exact, atol=1e-7, rtol=0)


def test_times_keep_their_gradients():
    f, x = Path(), noise(3, 3)
    end = torch.tensor([1.0, 0.0, 0.5], dtype=DOUBLE, requires_grad=True)
    gradients = []
    for how in ("lobatto", "stages"):
        found = Flow(f, standard(), Dopri8(rtol=1e-9, atol=1e-9), t1=end, quadrature=how).log_prob(x)
        gradients.append(torch.autograd.grad(found.sum(), end)[0])
    assert torch.equal(*gradients)


# ---- integrands that are hard, and failures


class Growing(nn.Module):
    """dx/dt = rate(t) x: log p of the points at 0 is an integral of the rate."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, t, x):
        return self.rate(t) * x


@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-9])
def test_the_tolerance_holds_where_the_divergence_jumps_or_has_kinks(tol):
    x = torch.zeros(2, 3, dtype=DOUBLE)
    rates = {
        "kink": (lambda t: (t - 0.3217).abs(), (0.3217**2 + (1 - 0.3217) ** 2) / 2),
        "root": (lambda t: t.sqrt(), 2 / 3),
    }
    for at in np.linspace(0.01, 0.99, 9).tolist():
        rates[f"jump at {at}"] = (lambda t, at=at: torch.where(t > at, 1.0, -2.0).to(t), 1 - at - 2 * at)
    for rate, integral in rates.values():
        with torch.no_grad():
            found, solution = flow(Growing(rate), Dopri8(rtol=tol, atol=tol)).solve(x)
        assert_close(found, standard().log_prob(x) - 3 * integral, atol=5 * tol, rtol=0)
        assert int(solution.n_steps.max()) < 10


@pytest.mark.parametrize(
    ("rate", "status"),
    [
        (lambda t: torch.where(t < 0.5, torch.nan, 1.0).to(t), "NON_FINITE"),
        (lambda t: 1 / (t - 0.3217), "STEP_UNDERFLOW"),
        (lambda t: torch.sin(1e12 * t), "MAX_STEPS"),
    ],
)
def test_a_log_density_that_cannot_be_integrated_fails_its_row_alone(rate, status):
    class Sometimes(nn.Module):
        def forward(self, t, x, hard):
            # 0, with a divergence
            return x.detach() * 0 + torch.where(hard[:, None] > 0, rate(t), 1.0) * (x - x.detach())

    x, hard = torch.zeros(2, 3, dtype=DOUBLE), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    density = flow(Sometimes(), Dopri5(rtol=1e-6, atol=1e-6, max_steps=500))
    with pytest.raises(dise.SolveError, match="1 of 2"):
        density.solve(x, hard)
    _, solution = flow(Sometimes(), Dopri5(rtol=1e-6, atol=1e-6, max_steps=500)).solve(x[:1], hard[:1])
    assert solution.status.tolist() == [0]
    failed = density.block.solve((x, x.new_zeros(2, 1)), sample_args=(hard,), throw=False)
    assert [dise.Status(code).name for code in failed.status.tolist()] == ["SUCCESS", status]
    assert_close(failed.y[1][0], torch.tensor([3.0], dtype=DOUBLE))


@pytest.mark.parametrize("tol", [10.0**-k for k in range(3, 10)])
@pytest.mark.parametrize("method", [Dopri5, Dopri8])
def test_the_error_of_the_quadrature_alone_is_near_the_tolerance(tol, method):
    """Beside 40 nodes in each step, for mixtures' fields, whose divergences have peaks."""
    f, x = Mixture(), noise(12, 3)
    fine, weights = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(40))
    with torch.no_grad():
        solved = dise.solve(f, x, 1.0, 0.0, method(rtol=tol, atol=tol), dense=True, record=True)
        ends = torch.cat([torch.ones(12, 1, dtype=DOUBLE), solved.steps.t.nan_to_num(nan=0.0)], 1)
        length = ends[:, 1:] - ends[:, :-1]
        times = (ends[:, :-1, None] + length[..., None] * (fine + 1) / 2).flatten(1)
        states = solved.evaluate(times)
        slopes = dise.divergence(f, times.reshape(-1, 1), states.flatten(0, 1)).view(12, -1, 40)
        exact = -(slopes * weights / 2 * length[..., None]).sum((1, 2))
        found = flow(f, method(rtol=tol, atol=tol)).solve(x)[1]
    assert torch.equal(found.n_steps, solved.n_steps)
    assert ((found.y[1][:, 0] - exact).abs() <= tol * (1 + exact.abs())).all()


class Mixture(nn.Module):
    """The straight path's field for data from two normal distributions."""

    def forward(self, t, x):
        centres = torch.tensor([[1.2, -0.7, 0.3], [-1.5, 0.4, 0.1]], dtype=DOUBLE)
        t = t.unsqueeze(-1)
        variance = 0.25 * t**2 + (1 - t) ** 2
        distance = x.unsqueeze(1) - t * centres
        weights = (-(distance**2 / variance).sum(-1) / 2).softmax(-1).unsqueeze(-1)
        return (weights * (centres + (0.25 * t - (1 - t)) / variance * distance)).sum(1)


# ---- gradients


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
def test_gradients_are_those_of_the_closed_form(gradient):
    f = Path()
    x = noise(5, 3).requires_grad_()
    tight = Dopri8(rtol=1e-7, atol=1e-7)
    (flow(f, tight, gradient=gradient).log_prob(x).sum()).backward()
    found = x.grad.clone(), f.deviation.grad.clone()
    x.grad = f.deviation.grad = None
    f.log_prob(x).sum().backward()
    assert_close(found, (x.grad, f.deviation.grad), atol=3e-5, rtol=0)


@pytest.mark.parametrize("divergence", [ExactDivergence(), HutchinsonDivergence()])
def test_a_flow_leaves_no_circle_of_references(divergence):
    density = flow(Path(), Dopri5(), divergence=divergence)
    seen = weakref.ref(density.block.f)
    gc.disable()
    try:
        del density
        assert seen() is None
    finally:
        gc.enable()


def test_another_quadrature_is_refused():
    with pytest.raises(ValueError, match="quadrature: expected 'stages' or 'lobatto', got 'simpson'"):
        flow(Path(), Dopri5(), quadrature="simpson")


def test_a_field_of_the_wrong_shape_is_named():
    class Wrong(nn.Module):
        def forward(self, t, x):
            return x[..., :2]

    with pytest.raises(ValueError, match="f: expected dy/dt of shape"):
        flow(Wrong(), Dopri5()).log_prob(noise(2, 3))


def test_single_precision():
    f = Path().float()
    base = DiagonalNormal(torch.zeros(3), torch.ones(3))
    x = noise(5, 3).float()
    found = dise.Flow(f, base, Dopri5(rtol=1e-5, atol=1e-5), quadrature="lobatto").log_prob(x)
    assert found.dtype == torch.float32
    assert_close(found, f.log_prob(x), atol=1e-3, rtol=0)


def test_single_precision_does_not_halve_parts_for_rounding():
    f, base = Path().float(), DiagonalNormal(torch.zeros(3), torch.ones(3))
    density = dise.Flow(f, base, Dopri8(rtol=1e-4, atol=1e-4), quadrature="lobatto", log_prob_tolerance=1e-12)
    _, solution = density.solve(noise(5, 3).float())
    assert (solution.nfe < 400).all()
