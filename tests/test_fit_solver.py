"""`fit_solver`, against closed forms, formulas of the literature and the table that a fit starts from."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import dise
from dise import RK4, Dopri5, Euler, Flow, Heun, Midpoint, Multistep, MultistepTable, NeuralODE, fit_solver, grids
from dise.flow import DiagonalNormal, SolverErrors
from dise.flow.fitting.classical import classical
from dise.flow.fitting.parameters import TableParameters

DOUBLE = torch.float64
TIGHT, LOOSER = Dopri5(rtol=1e-9, atol=1e-9), Dopri5(rtol=1e-6, atol=1e-6)
MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], dtype=DOUBLE)


class Growth(nn.Module):
    """dx/dt = a(t) x, so that x(1) = x(0) exp ∫ a dt."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, t, x):
        return self.rate(t) * x


class Mixture(nn.Module):
    """The flow-matching field from a standard normal to three normals with standard deviation s, in closed form."""

    def __init__(self, s=0.5):
        super().__init__()
        self.s = nn.Parameter(torch.tensor(s, dtype=DOUBLE))

    def forward(self, t, x, shift=None):
        if shift is not None:
            return self(t, x - t * shift) + shift
        t, x, means = t.unsqueeze(-1), x.unsqueeze(1), MEANS.to(x)
        variance = (t * self.s) ** 2 + (1 - t) ** 2
        weights = (-(x - t * means).square().sum(-1, keepdim=True) / (2 * variance)).softmax(1)
        return (weights * (means + (t * self.s**2 - (1 - t)) / variance * (x - t * means))).sum(1).to(x)


def flow_of(f, dim=2, **options):
    return Flow(f, DiagonalNormal(torch.zeros(dim, dtype=DOUBLE), torch.ones(dim, dtype=DOUBLE)), TIGHT, **options)


def log_density(x, s=0.5):
    """log p of the mixture's data."""
    squares = (x.unsqueeze(1) - MEANS).square().sum(-1) / (2 * s**2)
    return (-squares).logsumexp(1) - math.log(3) - math.log(2 * math.pi * s**2)


ROWS = ((), (0.2,), (0.2, 0.3), (0.2, 0.3, 0.2), (0.2, 0.3, 0.2, 0.3))
SCALED = Multistep(MultistepTable((0.0, 0.2, 0.5, 0.7), (1.0, 1.0, 1.0, 1.0, 0.5), ROWS))
STARTS = [*(Multistep.adams(grids.sway(5), order) for order in (1, 2, 3, 4)), *map(Multistep.of, (RK4(2), Heun(3)))]


@pytest.mark.parametrize("start", STARTS, ids=str)
def test_a_fit_starts_as_the_table_itself(start):
    table = TableParameters(start.table).table(None)
    assert_close(torch.tensor(table.times), torch.tensor(start.table.times), atol=1e-5, rtol=0)
    for row, expected in zip(table.weights, start.table.weights, strict=True):
        assert_close(torch.tensor(row), torch.tensor(expected), atol=1e-5, rtol=0)


def test_free_rows_start_as_a_table_that_scales_the_state():
    """But for the first time, which is a little later."""
    start = Multistep.dpmpp2m(5, dise.StraightPath()).table
    table = TableParameters(start, "free").table(start.span)
    assert_close(table.scales, start.scales)
    assert_close(table.times[1:], start.times[1:])
    assert 0 < table.times[0] < 0.05
    assert all(map(lambda a, b: torch.allclose(torch.tensor(a), torch.tensor(b)), table.weights, start.weights))


def test_free_rows_start_at_a_given_first_time():
    table = MultistepTable((0.3, 0.4), (1.0, 1.0, 1.0), ((), (0.4,), (0.5, 0.5)))
    assert_close(TableParameters(table, "free").table(None).times, table.times)


@pytest.mark.parametrize("first", [0.0, 0.1])
def test_consistent_rows_keep_constants_exact_whatever_the_parameters(first):
    given = Multistep.adams(6, 3).table
    parameters = TableParameters(replace(given, times=(first, *given.times[1:])))
    assert_close(parameters.table(None).weights[-1], given.weights[-1], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for p in parameters.parameters():
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    table = parameters.table(None)
    assert list(table.times) == sorted(table.times)
    assert (table.times[0], table.times[-1] < 1) == (first, True)
    for row, time in zip(table.weights, (0.0, *table.times[1:], 1.0), strict=True):
        assert sum(row) == pytest.approx(time, abs=1e-12)
    y0 = torch.zeros(1, 1, dtype=DOUBLE)
    end = dise.solve(lambda t, y: torch.full_like(y, 3.0), y0, 1.0, 3.0, Multistep(table)).y
    assert float(end) == pytest.approx(6.0, abs=1e-12)


def test_consistent_rows_are_the_form_of_differentiable_solver_search():
    """x += Δ_i [Σ_{j<i} c_ij v_j + (1 − Σ_j c_ij) v_i] of Wang et al., 2025 (arXiv:2505.21114), by hand."""
    n, draw = 5, torch.Generator().manual_seed(1)
    gaps = torch.randn(n, generator=draw, dtype=DOUBLE).softmax(0)
    c = torch.randn(n, n, generator=draw, dtype=DOUBLE).tril(-1)
    f, x0 = Mixture(), torch.randn(7, 2, generator=draw, dtype=DOUBLE)
    x, t, values = x0, 0.0, []
    for i in range(n):
        values.append(f(torch.full((7, 1), t, dtype=DOUBLE), x))
        x = x + gaps[i] * (sum(c[i, j] * values[j] for j in range(i)) + (1 - c[i].sum()) * values[i])
        t += float(gaps[i])
    parameters = TableParameters(Multistep.adams(n, 1).table)
    with torch.no_grad():
        parameters.gap_logits.copy_(gaps.log())
        parameters.increments.copy_(gaps[:, None] * c)
    assert_close(dise.solve(f, x0, 0.0, 1.0, Multistep(parameters.table(None))).y, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", range(1, 13))
def test_classical_tables_have_n_evaluations(n):
    for backwards in (False, True):
        found = classical(n, backwards=backwards)
        assert {solver.table.evaluations for solver in found} == {n}
        assert len({solver.table for solver in found}) == len(found)


def test_two_evaluations_are_exact_for_a_linear_field():
    """x(1) = e^−2 x(0): the end of consistent rows, 1 + λ + B₁ t₁ λ², can be anything."""
    fit = fit_solver(flow_of(Growth(lambda t: -2.0)), 2, draws=16, reference=TIGHT)
    assert fit.before.rms > 1e-2
    assert fit.after.rms < 1e-7
    x = torch.randn(5, 2, dtype=DOUBLE)
    end = dise.solve(Growth(lambda t: -2.0), x, 0.0, 1.0, fit.solver).y
    assert_close(end, x * math.exp(-2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", ["mse", "log"])
def test_free_rows_of_a_field_that_does_not_depend_on_time(loss):
    """Evaluation times make no difference, and f no gradients in them."""
    flow = flow_of(Growth(lambda t: -2.0))
    fit = fit_solver(flow, 2, draws=16, reference=TIGHT, rows="free", loss=loss, start=Midpoint(1))
    assert fit.after.rms < 1e-3 * fit.before.rms


@pytest.fixture(scope="module")
def mixture_fit():
    return fit_solver(flow_of(Mixture()), 6, draws=256, reference=LOOSER, iterations=30)


def test_fitted_is_better_on_draws_of_ones_own(mixture_fit):
    f, noise = Mixture(), torch.randn(1000, 2, generator=torch.Generator().manual_seed(9), dtype=DOUBLE)
    with torch.no_grad():
        tight, start, fitted = (
            dise.solve(f, noise, 0.0, 1.0, solver).y for solver in (TIGHT, mixture_fit.start, mixture_fit.solver)
        )
    before, after = ((y - tight).square().mean(1).sqrt() for y in (start, fitted))
    assert after.square().mean() < 0.25 * before.square().mean()
    assert mixture_fit.improved
    assert float(before.median()) == pytest.approx(mixture_fit.before.median, rel=0.3)
    assert float(after.median()) == pytest.approx(mixture_fit.after.median, rel=0.3)
    assert mixture_fit.gain == pytest.approx(20 * math.log10(mixture_fit.before.rms / mixture_fit.after.rms))


def test_the_start_is_the_best_of_the_classical_tables(mixture_fit):
    f, noise = Mixture(), torch.randn(1000, 2, generator=torch.Generator().manual_seed(9), dtype=DOUBLE)
    with torch.no_grad():
        tight = dise.solve(f, noise, 0.0, 1.0, TIGHT).y
        errors = {
            s.table: float((dise.solve(f, noise, 0.0, 1.0, s).y - tight).square().mean().sqrt()) for s in classical(6)
        }
    assert errors[mixture_fit.start.table] <= 1.1 * min(errors.values())


def test_the_report_names_both_solvers_and_what_was_spent(mixture_fit):
    text = str(mixture_fit)
    for part in (str(mixture_fit.start), "64 fresh draws", "128 draws to fit on, 64 to stop on", "dB better", "99 %"):
        assert part in text
    assert mixture_fit.to_json()["after"]["q99"] == mixture_fit.after.q99


def test_the_same_seed_gives_the_same_table_and_leaves_generators_alone():
    def fit(seed):
        flow = flow_of(Mixture())
        return fit_solver(flow, 4, draws=64, reference=LOOSER, start=Multistep.adams(4), iterations=5, seed=seed).solver

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (fit(seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert first not in (other, Multistep.adams(4))


def test_the_start_is_kept_where_nothing_can_be_gained():
    fit = fit_solver(flow_of(Growth(lambda t: 0.0)), 3, draws=32, start=Euler(3))
    assert fit.solver is fit.start
    assert not fit.improved
    assert fit.gain == 0
    assert "the start is kept" in str(fit)


@pytest.mark.parametrize("start", [Midpoint(2), RK4(1), Multistep.adams(4, 1)], ids=str)
def test_never_worse_than_the_given_start(start):
    fit = fit_solver(flow_of(Mixture()), 4, draws=64, reference=LOOSER, start=start, iterations=10)
    assert fit.after.rms <= fit.before.rms
    assert str(start) in str(fit.start)


def test_free_rows_from_a_table_that_scales_the_state():
    start = Multistep.dpmpp2m(4, dise.StraightPath())
    fit = fit_solver(flow_of(Mixture()), 4, draws=128, reference=LOOSER, start=start, rows="free", iterations=30)
    assert fit.after.rms < 0.8 * fit.before.rms
    assert fit.solver.table.scaled


def test_free_rows_evaluate_the_start_at_a_later_time():
    """There f is the mean of the data less the noise: the field at the start tells nothing of where a draw will go."""
    given = {"draws": 256, "reference": LOOSER, "loss": "log", "iterations": 40}
    consistent, free = (fit_solver(flow_of(Mixture()), 4, rows=rows, **given) for rows in ("consistent", "free"))
    assert consistent.solver.table.times[0] == 0
    assert 0.02 < free.solver.table.times[0] < free.solver.table.times[1]
    assert free.after.geometric_mean < 0.8 * consistent.after.geometric_mean


@pytest.mark.slow
def test_logarithms_make_the_geometric_mean_small():
    fits = [
        fit_solver(
            flow_of(Mixture()), 5, draws=256, reference=LOOSER, start=Multistep.adams(5), loss=loss, iterations=60
        )
        for loss in ("mse", "log")
    ]
    assert fits[1].after.geometric_mean < fits[0].after.geometric_mean
    assert fits[0].after.rms < fits[1].after.rms
    assert fits[1].gain == pytest.approx(20 * math.log10(fits[1].before.geometric_mean / fits[1].after.geometric_mean))


@pytest.mark.slow
def test_a_tolerance_brings_more_draws_within_it():
    f, tolerance = Mixture(0.2), 0.02
    noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(9), dtype=DOUBLE)
    with torch.no_grad():
        tight = dise.solve(f, noise, 0.0, 1.0, LOOSER).y
    within = {}
    for name, given in {"mse": {}, "log": {"loss": "log"}, "τ": {"loss": "log", "tolerance": tolerance}}.items():
        fit = fit_solver(flow_of(f), 5, draws=256, reference=LOOSER, iterations=60, **given)
        with torch.no_grad():
            end = dise.solve(f, noise, 0.0, 1.0, fit.solver).y
        within[name] = float(((end - tight).square().mean(1).sqrt() <= tolerance).double().mean())
    assert within["τ"] > max(within["mse"], within["log"])


def test_with_a_tolerance_the_means_are_of_what_is_fitted():
    given = {"draws": 64, "reference": LOOSER, "start": Multistep.adams(4), "iterations": 10, "loss": "log"}
    fit = fit_solver(flow_of(Mixture()), 4, tolerance=0.1, **given)
    assert fit.before.geometric_mean > 0.1
    assert fit.gain == pytest.approx(20 * math.log10(fit.before.geometric_mean / fit.after.geometric_mean))
    assert "geometric mean of √(e² + 0.1²), with errors e" in str(fit)
    assert fit.to_json()["tolerance"] == 0.1


def test_conditions_are_drawn_once_and_used():
    asked = []

    def shifts(number):
        asked.append(number)
        return torch.randn(number, 2, dtype=DOUBLE)

    flow = flow_of(Mixture())
    fit = fit_solver(flow, 4, condition=shifts, draws=128, reference=TIGHT, iterations=30)
    assert asked == [128]
    assert fit.after.rms < 0.8 * fit.before.rms
    flow.block.integrator = fit.solver
    shift = torch.tensor([[5.0, 0.0]], dtype=DOUBLE)
    z = torch.randn(20, 2, dtype=DOUBLE)
    # the field moves with the shift, and a constant added to f is integrated exactly
    assert_close(flow.transport(z, 0.0, 1.0, shift), flow.transport(z, 0.0, 1.0, 0 * shift) + shift)


def test_images_in_single_precision():
    base = DiagonalNormal(torch.zeros(1, 2, 2), torch.ones(1, 2, 2))
    flow = Flow(Growth(lambda t: -t.sin() * 3), base, Dopri5())
    fit = fit_solver(flow, 3, draws=32, batch=5, iterations=20)
    assert fit.after.rms < fit.before.rms
    flow.block.integrator = fit.solver
    assert flow.sample(3).shape == (3, 1, 2, 2)


def test_weights_of_the_density_are_fitted():
    flow = flow_of(Mixture())
    fit = fit_solver(flow, 6, density=True, draws=256, start=Multistep.adams(6), reference=LOOSER, iterations=20)
    assert fit.after.rms < 0.7 * fit.before.rms
    assert fit.solver.table.quadrature is not None
    assert sum(fit.solver.table.quadrature) == pytest.approx(1)  # constant divergences stay exact
    x = MEANS[torch.arange(300) % 3] + 0.5 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0)).double()
    errors = []
    with torch.no_grad():
        for flow.block.integrator in (fit.start, fit.solver):
            errors.append((flow.log_prob(x) - log_density(x)).square().mean().sqrt())
    start, fitted = errors
    assert fitted < 0.8 * start


def test_the_divergence_alone_is_a_least_squares_problem():
    """dx/dt = a(t) x with ∫ a = 0 to first order: states end well, and log p needs the integral of 2 a(t)."""
    flow = flow_of(Growth(lambda t: (6 * t).cos() / 2))
    fit = fit_solver(flow, 4, density=True, draws=64, reference=TIGHT, rows="free", iterations=40)
    x = torch.randn(50, 2, dtype=DOUBLE)
    growth = math.sin(6) / 12
    expected = flow.base.log_prob(x * math.exp(-growth)) - 2 * growth
    flow.block.integrator = fit.solver
    assert_close(flow.log_prob(x), expected, rtol=0, atol=1e-5)


def test_solvers_are_for_one_direction_alone(mixture_fit):
    flow = flow_of(Mixture())
    flow.block.integrator = mixture_fit.solver
    with pytest.raises(ValueError, match="t0: this grid or table is for solves from 0 to 1 only, got t0=1"):
        flow.log_prob(torch.zeros(3, 2, dtype=DOUBLE))
    with pytest.raises(ValueError, match="for solves from 0 to 1 only"):
        flow.transport(torch.zeros(3, 2, dtype=DOUBLE), 0.0, 0.5)


def test_a_fitted_table_is_a_candidate(mixture_fit, tmp_path):
    """Chosen with a guarantee, saved, loaded and exported, and each row as alone."""
    block = NeuralODE(Mixture(), TIGHT)
    model = nn.Sequential(block, nn.Identity()).eval()
    noise = torch.randn(800, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(4))
    risk = dise.select.OutputDeviation(0.2)
    dise.make_dynamic(model, noise, epsilon=0.05, risk=risk, settings=[mixture_fit.solver])
    assert block.integrator == mixture_fit.solver
    dise.save_policy(model, tmp_path / "policy")
    loaded = nn.Sequential(NeuralODE(Mixture(), TIGHT), nn.Identity()).eval()
    dise.load_policy(loaded, tmp_path / "policy")
    assert loaded[0].integrator == mixture_fit.solver
    with torch.no_grad():
        batch = model(noise)
        assert torch.equal(loaded(noise), batch)
        for i in range(3):
            assert_close(model(noise[i : i + 1])[0], batch[i], rtol=1e-12, atol=1e-12)
    dise.export_policy(model, noise[:2], tmp_path / "graphs")
    graph = torch.export.load(tmp_path / "graphs" / "model.pt2").module()
    assert_close(graph(noise), batch, rtol=1e-12, atol=1e-12)


def test_the_flow_is_left_as_it_was():
    flow = flow_of(Mixture())
    flow.block.f.eval()
    fit_solver(flow, 2, draws=16, iterations=1)
    assert (flow.training, flow.block.f.training, flow.block.integrator) == (True, False, TIGHT)
    assert all(p.grad is None and p.requires_grad for p in flow.parameters())


def test_errors_of_a_solver_are_summed_up():
    errors = SolverErrors.of(torch.arange(1.0, 101.0))
    assert (errors.median, errors.q90, errors.q99) == (50, 90, 99)
    assert errors.rms == pytest.approx((101 * 201 / 6) ** 0.5)
    assert errors.geometric_mean == pytest.approx(math.exp(math.lgamma(101) / 100))
    assert SolverErrors.of(torch.tensor([0.0, 3.0]), 4.0).geometric_mean == pytest.approx(20**0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ValueError, "n: expected a whole number"),
        ({"draws": 8}, ValueError, "draws: expected at least 16, got 8"),
        ({"batch": 0}, ValueError, "batch: expected a whole number"),
        ({"rows": "any"}, ValueError, "rows: expected 'consistent' or 'free', got 'any'"),
        ({"loss": "mae"}, ValueError, "loss: expected 'mse' or 'log', got 'mae'"),
        ({"tolerance": 0.0, "loss": "log"}, ValueError, "tolerance: expected a finite number above 0"),
        ({"tolerance": 0.1}, ValueError, "tolerance: expected None unless"),
        ({"tolerance": 0.1, "loss": "log", "density": True}, ValueError, "tolerance: expected None unless"),
        ({"density": 1}, TypeError, "density: expected True or False, got 1"),
        ({"start": []}, ValueError, "start: expected at least one method"),
        ({"start": Dopri5()}, TypeError, "start: expected Multistep or fixed-step methods, got Dopri5"),
        ({"start": Multistep.adams(5)}, ValueError, r"start: expected methods of n = 4 evaluations, got AB2.* of 5"),
        ({"start": Multistep.adams(grids.of([0, 1, 2, 3, 4]))}, ValueError, "is for solves from 0 to 4 only"),
        ({"start": SCALED}, ValueError, "take rows='free'"),
        ({"start": SCALED, "density": True}, ValueError, "scales the state, so it has no log-density"),
        ({"condition": lambda n: torch.zeros(3, 2)}, ValueError, "condition: expected 16 rows or one for all"),
        ({"condition": 3}, TypeError, "condition: expected a function of the number of draws, got int"),
        ({"reference": "dopri5"}, TypeError, "reference: expected an integrator such as"),
        ({"seed": "a"}, TypeError, "seed: expected a whole number, got 'a'"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        fit_solver(flow_of(Mixture()), **({"n": 4, "draws": 16} | arguments))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_fit_is_the_same_where_gradients_are_off(context):
    flow = flow_of(Mixture())
    expected = fit_solver(flow, 2, draws=16, iterations=10).solver
    with context():
        assert fit_solver(flow, 2, draws=16, iterations=10).solver == expected


def test_flows_that_cannot_be_fitted_are_refused():
    with pytest.raises(TypeError, match=r"flow: expected a dise\.Flow, got Mixture"):
        fit_solver(Mixture(), 4)
    with pytest.raises(ValueError, match="flow: expected one with batched=True"):
        fit_solver(flow_of(Mixture(), batched=False), 4)
    with pytest.raises(ValueError, match="the same for all rows"):
        fit_solver(flow_of(Mixture(), t1=torch.tensor([1.0, 2.0])), 4)
