"""Policies whose solves are under autocast, certified against a reference that is not."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import dise
from dise import (
    RK4,
    Backsolve,
    Cascade,
    DiagonalNormal,
    Dopri5,
    Dynamic,
    Euler,
    Exact,
    Flow,
    FlowSampler,
    Midpoint,
    NeuralODE,
    SolveOptions,
    solve,
)
from dise.select import LogProbDeviation, OutputDeviation

HALF = torch.bfloat16
TIGHT = Dopri5(rtol=1e-5, atol=1e-5)
SERVE = Path(__file__).parents[1] / "examples" / "serve.py"


class Turn(nn.Module):
    """y' = ω J y with ω per draw, as a matrix product, which autocast rounds; notes the dtypes of its products."""

    def __init__(self):
        super().__init__()
        self.turn = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.turn.weight.copy_(torch.tensor([[0.3, -1.1], [1.1, 0.3]]))
        self.dtypes = set()

    def forward(self, t, y, speed):
        product = self.turn(y)
        self.dtypes.add(product.dtype)
        return speed[:, None] * product


def speeds(number):
    return torch.where(torch.rand(number) < 0.5, 0.01, 0.5 + torch.rand(number))


def flow_of():
    return Flow(Turn(), DiagonalNormal(torch.zeros(2), torch.ones(2)), TIGHT)


def dtypes_of(f, call):
    f.dtypes.clear()
    call()
    return set(f.dtypes)


@pytest.fixture
def start():
    torch.manual_seed(3)
    return torch.randn(6, 2), speeds(6)


@pytest.fixture
def block():
    block = NeuralODE(Turn(), RK4(2))
    block.autocast = HALF
    return block


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)])
def test_solves_are_those_of_the_users_own_autocast(block, start, compiled):
    y0, speed = start
    if compiled:
        block.options = SolveOptions(compile=True)
    with torch.no_grad(), torch.autocast("cpu", HALF):
        expected = solve(block.f, y0, 0, 1, RK4(2), sample_args=(speed,), compile=compiled).y
        k1 = block.f(torch.zeros(6, 1), y0, speed)
    with torch.no_grad():
        ends = block(y0, sample_args=(speed,)), block.solve(y0, sample_args=(speed,)).y
        assert torch.equal(block.first_stage(y0, sample_args=(speed,)), k1)
    assert all(torch.equal(end, expected) for end in ends)
    assert not torch.equal(solve(block.f, y0, 0, 1, RK4(2), sample_args=(speed,)).y, expected)
    assert ends[0].dtype == torch.float32


@pytest.mark.parametrize("options", [{}, pytest.param({"compile": True}, marks=pytest.mark.long)])
def test_an_exact_integrator_is_not_under_autocast(block, start, options):
    y0, speed = start
    block.options = SolveOptions(**options)
    with torch.no_grad(), block.using(Exact(TIGHT)):
        expected = solve(block.f, y0, 0, 1, TIGHT, sample_args=(speed,), **options)
        solution = block.solve(y0, sample_args=(speed,))
        assert torch.equal(block.first_stage(y0, sample_args=(speed,)), block.f(0, y0, speed))
    assert torch.equal(solution.y, expected.y)
    assert torch.equal(solution.nfe, expected.nfe)
    with block.autocasting(None):
        assert dtypes_of(block.f, lambda: NeuralODE.solve(block, y0, sample_args=(speed,))) <= {torch.float32}
    assert block.autocast is HALF


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["dynamic", "cascade"])
def test_a_policy_may_fall_back_on_an_exact_candidate(block, start, compiled, kind):
    """Each sample ends as with its candidate alone: rounded, or exact at the price of one more evaluation."""
    y0, speed = start
    slow = speed < 0.1
    candidates = (RK4(2), Exact(Dopri5(rtol=1e-6, atol=1e-6)))
    if kind == "dynamic":
        block.integrator = Dynamic(candidates, lambda h0, k1: torch.stack([~slow, slow], 1).float())
    else:
        block.integrator = Cascade(candidates, lambda h1: slow)
    block.options = SolveOptions(compile=compiled)
    with torch.no_grad():
        got = block.solve(y0, sample_args=(speed,))
        rounded = solve_alone(block, RK4(2), y0, speed)
        exact = solve(block.f, y0, 0, 1, candidates[1].integrator, sample_args=(speed,), compile=compiled)
    assert_close(got.y, torch.where(slow[:, None], rounded.y, exact.y), rtol=0, atol=1e-6)
    before = 1 if kind == "dynamic" else 8  # k1, or all evaluations of the candidate that was tried
    assert torch.equal(got.nfe, torch.where(slow, 8, before + exact.nfe))
    if not compiled:
        assert dtypes_of(block.f, lambda: block(y0, sample_args=(speed,))) == {HALF, torch.float32}


def solve_alone(block, integrator, y0, speed):
    with block.using(integrator):
        return block.solve(y0, sample_args=(speed,))


def test_an_exact_block_leaves_the_users_own_autocast(block, start):
    y0, speed = start
    f, block.autocast, block.integrator = block.f, None, Exact(RK4(2))
    with torch.no_grad():
        expected = solve(f, y0, 0, 1, RK4(2), sample_args=(speed,)).y
        with torch.autocast("cpu", HALF):
            ends = block(y0, sample_args=(speed,)), block.solve(y0, sample_args=(speed,)).y
            assert not torch.equal(block.first_stage(y0, sample_args=(speed,)), f(0, y0, speed))
            assert not torch.equal(solve(f, y0, 0, 1, RK4(2), sample_args=(speed,)).y, expected)
    assert all(torch.equal(end, expected) for end in ends)


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve", Backsolve(integrator=Exact(TIGHT))])
def test_gradients_of_exact_solves_are_exact(start, gradient):
    y0, speed = start

    def gradients(integrator, autocast, gradient):
        f, y = Turn(), y0.clone().requires_grad_()
        with torch.autocast("cpu", HALF, enabled=autocast):
            end = solve(f, y, 0, 1, integrator, sample_args=(speed,), gradient=gradient).y
        end.square().sum().backward()
        return f.turn.weight.grad, y.grad

    plain = gradient if isinstance(gradient, str) else "backsolve"
    for found, expected in zip(gradients(Exact(TIGHT), True, gradient), gradients(TIGHT, False, plain), strict=True):
        assert torch.equal(found, expected)


def test_an_exact_backward_solve_calls_f_without_autocast(start):
    y0, speed = start
    f, gradient = Turn(), Backsolve(integrator=Exact(TIGHT))
    with torch.autocast("cpu", HALF):
        end = solve(f, y0, 0, 1, RK4(2), sample_args=(speed,), gradient=gradient).y
    assert f.dtypes == {HALF}
    assert dtypes_of(f, end.sum().backward) == {torch.float32}


def test_statistics_of_exact_candidates_call_f_without_autocast(block, start):
    y0, speed = start
    dtypes = set()

    def slope(step, field):
        dtypes.update(dtypes_of(block.f, lambda: field(step.t, step.y_next)))
        return step.dt

    slope.calls_field = True
    block.integrator = Dynamic((Exact(TIGHT),), lambda h0, k1: torch.zeros(len(h0), 1))
    with torch.no_grad():
        block.solve(y0, sample_args=(speed,), accumulate=slope)
    assert dtypes == {torch.float32}


def test_without_autocast_exact_is_the_integrator_itself(start):
    y0, speed = start
    f = Turn()
    with torch.no_grad():
        got, expected = (solve(f, y0, 0, 1, m, sample_args=(speed,)) for m in (Exact(TIGHT), TIGHT))
        policy = Dynamic((Exact(TIGHT),), lambda h0, k1: torch.zeros(len(h0), 1))
        chosen = solve(f, y0, 0, 1, policy, sample_args=(speed,))
    assert torch.equal(got.y, expected.y)
    assert torch.equal(got.nfe, expected.nfe)
    assert torch.equal(chosen.nfe, expected.nfe)


def test_exact_changes_and_turns_round_what_it_consists_of():
    grid = dise.Multistep.adams(dise.grids.sway(4, 0.5), 2)
    assert Exact(grid).reversed() == Exact(grid.reversed())
    assert Exact(RK4(2)).mapped(lambda method: RK4(3)) == Exact(RK4(3))
    assert Exact(Exact(RK4(2))) == Exact(RK4(2))
    assert str(Exact(RK4(2))) == "Exact(RK4(steps=2))"
    with pytest.raises(TypeError, match="integrator: expected an integrator"):
        Exact("RK4")


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", TypeError), (torch.float32, ValueError)])
def test_other_precisions_are_named(dtype, error):
    with pytest.raises(error, match=r"autocast: expected torch\.bfloat16 or torch\.float16, got"):
        NeuralODE(Turn(), Euler()).autocast = dtype
    with pytest.raises(error, match="autocast: expected"):
        dise.make_sampler(flow_of(), risk=OutputDeviation(0.1), condition=speeds, autocast=dtype)
    with pytest.raises(error, match="autocast: expected"):
        dise.make_dynamic(NeuralODE(Turn(), Euler()), [torch.zeros(4, 2)], autocast=dtype)


@pytest.mark.parametrize("integrator", [RK4(2), Exact(RK4(2))])
def test_what_is_no_state_is_named(block, integrator):
    block.integrator = integrator
    with pytest.raises(TypeError, match="y0: expected"):
        block("state")


def test_decisions_of_an_exact_policy_are_counted(start):
    """A selector with as many multiply-adds as f costs one evaluation."""
    y0, speed = start
    selector = nn.Linear(2, 2, bias=False)
    policy = Dynamic((RK4(1), RK4(2)), lambda h0, k1: selector(h0))
    found = []
    for integrator in (policy, Exact(policy)):
        block = NeuralODE(Turn(), integrator)
        with torch.no_grad(), block.recording() as records:
            block(y0, sample_args=(speed,))
        found.append(dise.select.nfe_with_overhead(block, integrator, records))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], records[0].solution.nfe + 1.0)


def test_selectors_are_fitted_to_the_slopes_that_they_will_see(start):
    y0, seen, candidates = start[0], [], (Exact(RK4(1)), RK4(2))
    block = NeuralODE(Plain(), Dynamic(candidates, lambda h0, k1: seen.append(k1) or torch.zeros(len(h0), 2)))
    block.autocast = HALF
    with torch.no_grad():
        block(y0)
    outcomes = dise.select.run_candidates(block, y0, candidates)
    assert torch.equal(outcomes.k1, seen[0])


def sampler_of(tolerance, **options):
    tables = (Euler(), Midpoint(1), RK4(1), RK4(2))
    usual = {"reference": TIGHT, "candidates": tables, "draws": 2000, "epsilon": 0.05, "autocast": HALF}
    return dise.make_sampler(flow_of(), risk=OutputDeviation(tolerance), condition=speeds, **usual | options)


@pytest.fixture(scope="module")
def sampler():
    return sampler_of(0.05)


def fresh(f, number=20_000):
    """Noise, conditions and the exact ends."""
    torch.manual_seed(11)
    z, speed = torch.randn(number, 2), speeds(number)
    exact = torch.matrix_exp(speed[:, None, None] * f.turn.weight.detach()) @ z[:, :, None]
    return z, speed, exact[:, :, 0]


def test_a_sampler_keeps_its_risk_with_rounding(sampler):
    """Against the closed form, on fresh draws."""
    z, speed, exact = fresh(sampler.block.f)
    with torch.no_grad():
        assert dtypes_of(sampler.block.f, lambda: sampler(z, speed)) == {HALF}
        error = (sampler(z, speed) - exact).square().mean(1).sqrt()
    assert float((error > 0.05).double().mean()) <= 0.05
    assert sampler.report.nfe < sampler.report.reference_nfe
    assert "Solves are under autocast in bfloat16, those with the reference are not." in sampler.report.notes


def test_rounding_counts_as_loss():
    """RK4 is exact to the tolerance here, its products in bfloat16 are not: nothing can be certified."""
    options = {"candidates": (RK4(4),), "reference": Dopri5(rtol=1e-6, atol=1e-6)}
    plain, half = (sampler_of(2e-3, autocast=dtype, **options) for dtype in (None, HALF))
    assert plain.block.integrator == RK4(4)
    assert half.report.family == "reference"
    assert "try autocast=None" in str(half.report)
    assert half.block.integrator == half.report.policy == half.report.reference == options["reference"]
    assert half.block.autocast is None
    z, speed, _ = fresh(half.block.f, 5)
    with torch.no_grad():
        assert dtypes_of(half.block.f, lambda: half(z, speed)) == {torch.float32}


def test_a_saved_policy_keeps_its_precision(sampler, tmp_path):
    z, speed, _ = fresh(sampler.block.f, 200)
    dise.save_policy(sampler, tmp_path)
    other = dise.load_policy(FlowSampler(flow_of()), tmp_path)
    assert other.block.autocast is sampler.block.autocast is HALF
    with torch.no_grad():
        assert torch.equal(other(z, speed), sampler(z, speed))


@pytest.mark.long
def test_an_exported_policy_keeps_its_precision(sampler, tmp_path):
    z, speed, exact = fresh(sampler.block.f, 200)
    dise.export_policy(sampler, (z, speed), tmp_path)
    spec = importlib.util.spec_from_file_location("serve", SERVE)
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    with torch.no_grad():
        expected = sampler(z, speed)
        assert_close(serve.Served(tmp_path)(z, speed), expected, rtol=0, atol=1e-6)
        assert not torch.allclose(expected, exact, rtol=0, atol=1e-4)


def test_densities_keep_their_risk_with_rounding():
    options = {"condition": speeds, "reference": TIGHT, "draws": 2000, "epsilon": 0.05, "autocast": HALF}
    made = dise.make_sampler(flow_of(), risk=LogProbDeviation(0.2), candidates=(RK4(1), RK4(2)), **options)
    assert made.block.integrator in (RK4(1), RK4(2))
    z, speed, x = fresh(made.flow.f, 5000)
    with torch.no_grad():
        assert dtypes_of(made.flow.f, lambda: made(x, speed)) == {HALF}
        exact = made.flow.base.log_prob(z) - 0.6 * speed  # the trace
        assert float(((made(x, speed) - exact).abs() > 0.2).double().mean()) <= 0.05


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = NeuralODE(Plain(), TIGHT)
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.block(x))


class Plain(Turn):
    def forward(self, t, y):
        return super().forward(t, y, torch.ones(len(y)))


def test_make_dynamic_certifies_against_full_precision():
    torch.manual_seed(0)
    model, x = Classifier(), torch.randn(4000, 2)
    with torch.no_grad():
        exact = model(x).argmax(1)
        reference_nfe = model.block.solve(x).nfe.double().mean()  # rounded values cost twice as many
    made = dise.make_dynamic(model, x.split(500), epsilon=0.02, risk=dise.select.disagreement, autocast=HALF)
    assert made.block.report.family != "reference"
    assert made.block.report.reference_nfe == pytest.approx(float(reference_nfe), rel=0.02)
    assert made.block.autocast is HALF
    with torch.no_grad():
        assert dtypes_of(made.block.f, lambda: made(x)) == {HALF, torch.float32}  # few fall back on the reference
        assert float((made(x).argmax(1) != exact).double().mean()) <= 0.02
    assert "under autocast in bfloat16" in str(made.block.report)


@pytest.mark.parametrize("autocast", [None, HALF])
def test_make_dynamic_counts_rounding_as_loss(autocast):
    """RK4 is exact to the tolerance here, its products in bfloat16 are not."""
    model, x = NeuralODE(Plain(), Dopri5(rtol=1e-6, atol=1e-6)), torch.randn(400, 2)
    usual = {"settings": (RK4(4),), "risk": OutputDeviation(2e-3), "epsilon": 0.05, "autocast": autocast}
    dise.make_dynamic(model, x, **usual)
    assert model.integrator == (Dopri5(rtol=1e-6, atol=1e-6) if autocast else RK4(4))
    assert model.autocast is None
    with torch.no_grad():
        assert dtypes_of(model.f, lambda: model(x)) == {torch.float32}


def test_make_dynamic_keeps_a_certified_exact_setting_exact():
    cheaper = Exact(Dopri5(rtol=1e-4, atol=1e-4, first_step="span"))
    model, x = NeuralODE(Plain(), Dopri5(rtol=1e-6, atol=1e-6)), torch.randn(400, 2)
    dise.make_dynamic(model, x, settings=(cheaper,), risk=OutputDeviation(2e-3), epsilon=0.05, autocast=HALF)
    assert model.integrator == model.report.policy == cheaper
    with torch.no_grad():
        assert dtypes_of(model.f, lambda: model(x)) == {torch.float32}
