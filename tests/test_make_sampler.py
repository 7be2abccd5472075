"""`make_sampler`, on fields in closed form whose draws differ in how many evaluations they need."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import dise
from dise import Adams, DiagonalNormal, Dopri5, Euler, Flow, FlowDensity, FlowSampler, Midpoint, Multistep, make_sampler
from dise.flow.certified import prepare
from dise.flow.certified.candidates import default_candidates
from dise.flow.certified.choice import Trial, worth_testing
from dise.flow.certified.exactness import tighter
from dise.flow.certified.families import Material, mean_oracle, most_useful
from dise.flow.certified.fitted_tables import draws_to_fit
from dise.select import Costs, LogProbDeviation, OutputDeviation, RiskCost, StateNetwork, disagreement
from dise.select.make_dynamic.comparison import Comparison
from dise.select.make_dynamic.families import ONE_FOR_ALL, Family

TOLERANCE, EPSILON = 0.03, 0.05
TABLES = tuple(Multistep.adams(n) for n in (1, 2, 4, 8, 16, 32))
TIGHT = Dopri5(rtol=1e-6, atol=1e-6)
FEW = {"draws": 2000, "epsilon": EPSILON, "candidates": TABLES, "reference": TIGHT}


class Rotation(nn.Module):
    """y' = ω J y with ω per draw: a turn by ω until t = 1."""

    def __init__(self):
        super().__init__()
        self.unit = nn.Parameter(torch.ones(()))

    def forward(self, t, y, speed):
        return self.unit * speed[:, None] * torch.stack([-y[:, 1], y[:, 0]], dim=1)


class Decay(nn.Module):
    """y' = −ω y with ω per draw."""

    def forward(self, t, y, rate):
        return -rate[:, None] * y


class Swing(nn.Module):
    """y' = cos 5t, whatever y: all draws have the same error."""

    def forward(self, t, y):
        return (5 * t).cos().expand_as(y)


def flow_of(f, **options):
    return Flow(f, DiagonalNormal(torch.zeros(2), torch.ones(2)), Euler(3), **options)


def speeds(number):
    """Half of the draws hardly move."""
    return torch.where(torch.rand(number) < 0.5, 0.01, 1 + 2 * torch.rand(number))


def turned(z, speed):
    cos, sin = speed.cos(), speed.sin()
    return torch.stack([cos * z[:, 0] - sin * z[:, 1], sin * z[:, 0] + cos * z[:, 1]], dim=1)


@pytest.fixture(scope="module")
def sampler():
    return make_sampler(flow_of(Rotation()), risk=OutputDeviation(TOLERANCE), condition=speeds, **FEW)


def test_draws_get_their_own_budget_within_the_risk(sampler):
    """Against the closed form, on fresh draws."""
    torch.manual_seed(7)
    z, speed = torch.randn(20_000, 2), speeds(20_000)
    with torch.no_grad(), sampler.block.recording() as records:
        error = (sampler(z, speed) - turned(z, speed)).square().mean(1).sqrt()
    assert isinstance(sampler, FlowSampler)
    assert float((error > TOLERANCE).double().mean()) <= EPSILON
    nfe = records[0].solution.nfe.double()
    report = sampler.report
    assert float(nfe.mean()) == pytest.approx(report.nfe - report.comparison.overhead, rel=0.02)
    # half of the draws need one evaluation, no single table below 16 is adequate for the others
    assert float(nfe.mean()) < 0.7 * report.comparison.single_nfe
    assert float(nfe[speed < 0.1].mean()) < 1.5


def test_the_report_compares_with_the_best_single_candidate_and_the_oracle(sampler):
    report, comparison = sampler.report, sampler.report.comparison
    assert comparison.draws == (1000, 200, 800)
    assert report.samples == 800
    assert comparison.oracle <= 1.1 * report.nfe  # the policy may lose a part of ε, and its draws are others
    assert report.nfe <= comparison.single_nfe
    assert comparison.single in map(str, TABLES)
    assert 0.5 < comparison.share(report.nfe) < 1.1
    assert comparison.model_calls == pytest.approx(report.nfe - comparison.overhead, rel=0.1)
    text = str(report)
    parts = ("best single candidate certified", "oracle:", "calls of the network", "1000 to learn from", "milliseconds")
    assert all(part in text for part in parts)
    assert type(report).of_json(report.to_json(), report.policy, report.reference) == report


def test_one_table_may_win():
    """Nothing is there to choose, and the report says so."""
    made = make_sampler(flow_of(Swing()), risk=OutputDeviation(TOLERANCE), **FEW)
    assert made.report.family == ONE_FOR_ALL
    assert made.block.integrator in TABLES
    assert made.report.nfe == made.report.comparison.single_nfe
    assert "all draws have one integrator" in str(made.report)


def test_without_families_single_candidates_are_compared_alone():
    made = make_sampler(flow_of(Rotation()), risk=OutputDeviation(TOLERANCE), condition=speeds, families=(), **FEW)
    assert not made.block.integrator.chooses


def test_tables_with_a_later_first_time_cost_one_evaluation_more_in_policies(sampler):
    """The field does not depend on time, so nothing else changes."""
    late = [Multistep(replace(method.table, times=(1e-3, *method.table.times[1:]))) for method in TABLES]
    made = make_sampler(
        flow_of(Rotation()), risk=OutputDeviation(TOLERANCE), condition=speeds, **FEW | {"candidates": late}
    )
    report, expected = made.report, sampler.report
    assert report.nfe == pytest.approx(expected.nfe + 1, abs=0.1)
    assert report.families[report.family] == pytest.approx(expected.families[expected.family] + 1, abs=0.1)
    assert report.families[ONE_FOR_ALL] == expected.families[ONE_FOR_ALL]
    assert report.comparison.single_nfe == expected.comparison.single_nfe
    assert report.comparison.oracle == pytest.approx(expected.comparison.oracle + 1, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_the_result_never_costs_more_than_the_best_certified_single_candidate(seed):
    made = make_sampler(
        flow_of(Rotation()), risk=OutputDeviation(TOLERANCE), condition=speeds, **FEW | {"draws": 1000}, seed=seed
    )
    assert made.report.nfe <= made.report.comparison.single_nfe


def test_a_risk_that_nothing_meets_leaves_the_reference():
    made = make_sampler(
        flow_of(Rotation()), risk=OutputDeviation(1e-9), condition=speeds, **FEW | {"candidates": TABLES[:2]}
    )
    assert made.block.integrator is TIGHT
    assert made.report.family == "reference"
    assert made.report.comparison.single is None
    assert "Nothing was certified" in str(made.report)


def test_a_reference_that_is_not_exact_is_told():
    """Beside the closed form: the draws that a loose reference loses, which no candidate can be certified on."""
    loose, flow = Dopri5(rtol=1e-2, atol=1e-2), flow_of(Rotation())
    options = FEW | {"condition": speeds, "families": ()}
    torch.manual_seed(7)
    z, speed = torch.randn(2000, 2), speeds(2000)
    with torch.no_grad():
        ends = dise.solve(flow.f, z, 0.0, 1.0, loose, sample_args=(speed,)).y
    error = (ends - turned(z, speed)).square().mean(1).sqrt()
    tolerance = float(error.quantile(0.8))
    made = make_sampler(flow, risk=OutputDeviation(tolerance), **options | {"reference": loose})
    told = re.search(r"reference itself loses (\d+) of (\d+) draws", str(made.report))
    lost, number = map(int, told.groups())
    assert number == 200
    assert 0.1 < lost / number < 0.3
    exact = make_sampler(flow, risk=OutputDeviation(TOLERANCE), **options | {"reference": loose})
    assert "reference itself" not in str(exact.report)


@pytest.mark.parametrize(
    ("reference", "dtype", "expected"),
    [
        (Dopri5(rtol=1e-5, atol=1e-4), torch.float32, Dopri5(rtol=1e-6, atol=1e-5)),
        (Adams(rtol=1e-6, atol=1e-6), torch.float64, Adams(rtol=1e-7, atol=1e-7)),
        (Dopri5(rtol=1e-6, atol=1e-6), torch.float32, None),
        (Dopri5(rtol=1e-3, atol=(1e-3, 1e-2)), torch.float32, None),
        (Euler(100), torch.float64, None),
    ],
    ids=str,
)
def test_references_have_tighter_ones_down_to_rounding(reference, dtype, expected):
    found = tighter(reference, dtype)
    assert type(found) is type(expected)
    if found is not None:
        assert (found.rtol, found.atol) == pytest.approx((expected.rtol, expected.atol))


def test_own_steps_and_tables_are_candidates_together():
    given = (*TABLES, *(Adams(3, rtol=t, atol=t) for t in (0.3, 0.1, 0.03, 0.01, 0.003)))
    made = make_sampler(
        flow_of(Rotation()), risk=OutputDeviation(TOLERANCE), condition=speeds, **FEW | {"candidates": given}
    )
    assert {"selector over tables", "selector over own steps", "selector over both"} < set(made.report.families)
    assert made.report.risk <= EPSILON


def test_log_densities_get_a_guarantee_of_their_own():
    """log p(x) = log N(x e^ω) + 2 ω; the flow's own samples are not changed."""
    flow = flow_of(Decay())
    made = make_sampler(flow, risk=LogProbDeviation(0.05), condition=lambda n: speeds(n) / 2, **FEW)
    assert isinstance(made, FlowDensity)
    torch.manual_seed(7)
    rate = speeds(5000) / 2
    x = torch.randn(5000, 2) * (-rate).exp()[:, None]
    with torch.no_grad(), made.block.recording() as records:
        found = made.log_prob(x, rate)
    exact = DiagonalNormal(torch.zeros(2), torch.ones(2)).log_prob(x * rate.exp()[:, None]) + 2 * rate
    assert float(((found - exact).abs() > 0.05).double().mean()) <= EPSILON
    assert float(records[0].solution.nfe.double().mean()) < made.report.reference_nfe / 3
    assert "nats" in str(made.report)
    assert flow.block.integrator == Euler(3)


def test_saved_and_loaded_samplers_draw_the_same(sampler, tmp_path):
    dise.save_policy(sampler, tmp_path)
    other = FlowSampler(flow_of(sampler.block.f))
    other.block.integrator = TIGHT
    dise.load_policy(other, tmp_path)
    z, speed = torch.randn(50, 2), speeds(50)
    assert torch.equal(other(z, speed), sampler(z, speed))
    assert replace(other.report, policy=sampler.block.integrator) == sampler.report


@pytest.mark.long
def test_samplers_over_tables_are_exported(sampler, tmp_path):
    dise.export_policy(sampler, (torch.randn(8, 2), speeds(8)), tmp_path, head=nn.Identity())
    assert (tmp_path / "serve.json").exists()


def test_a_seed_fixes_the_result_and_leaves_the_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    made = [
        make_sampler(flow_of(Rotation()), risk=OutputDeviation(TOLERANCE), condition=speeds, **FEW, seed=5)
        for _ in range(2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert made[0].report.nfe == made[1].report.nfe
    assert made[0].report.families == made[1].report.families


def test_a_family_of_ones_own_is_judged_by_running_it():
    seen = []

    def halves(material):
        assert isinstance(material, Material)
        seen.append(len(material.costs))
        return Family("halved steps", (Midpoint(32), Midpoint(4), Midpoint(3), Midpoint(2)))

    made = make_sampler(
        flow_of(Rotation()), risk=OutputDeviation(TOLERANCE), condition=speeds, families=(halves,), **FEW
    )
    assert seen == [1000]
    assert made.report.families["halved steps"] in {2 * n for n in (32, 4, 3, 2)}


def test_any_function_is_a_risk():
    """Samples as logits of two classes: which coordinate is larger."""
    made = make_sampler(flow_of(Rotation()), risk=disagreement, condition=speeds, **FEW)
    assert made.report.risk <= EPSILON
    assert made.report.nfe < made.report.reference_nfe / 3


# ---- tables fitted to the flow


@pytest.fixture(scope="module")
def fitted():
    return make_sampler(flow_of(Rotation()), risk=OutputDeviation(TOLERANCE), condition=speeds, fitted=(4, 6), **FEW)


def test_fitted_tables_save_evaluations_within_the_risk(fitted, sampler):
    """Against the closed form, on fresh draws."""
    torch.manual_seed(8)
    z, speed = torch.randn(20_000, 2), speeds(20_000)
    with torch.no_grad():
        error = (fitted(z, speed) - turned(z, speed)).square().mean(1).sqrt()
    assert float((error > TOLERANCE).double().mean()) <= EPSILON
    assert fitted.report.nfe < 0.8 * sampler.report.nfe
    assert "Fitted(6" in str(fitted.report)


def test_the_report_says_what_the_fits_took(fitted, sampler):
    comparison = fitted.report.comparison
    assert (comparison.draws, comparison.fitted, comparison.fit_draws) == ((1000, 200, 800), 2, 200)
    assert comparison.fit_seconds > 0
    assert "200 more for 2 fitted tables" in str(fitted.report)
    assert "fitted tables" not in str(sampler.report)


def test_samplers_with_fitted_tables_are_saved_loaded_and_exported(fitted, tmp_path):
    dise.save_policy(fitted, tmp_path / "policy")
    other = FlowSampler(flow_of(fitted.block.f))
    other.block.integrator = TIGHT
    dise.load_policy(other, tmp_path / "policy")
    z, speed = torch.randn(50, 2), speeds(50)
    assert torch.equal(other(z, speed), fitted(z, speed))
    assert other.report.comparison == fitted.report.comparison
    dise.export_policy(fitted, (torch.randn(8, 2), speeds(8)), tmp_path / "graphs", head=nn.Identity())
    assert (tmp_path / "graphs" / "serve.json").exists()


@pytest.mark.parametrize("policy", [1.0, 3.0])
def test_for_batches_of_a_size_the_faster_is_taken(monkeypatch, policy):
    """By a clock in which the single candidate takes 2 ms."""
    sizes = set()

    def time_served(model, block, policies, batches):
        sizes.update(map(len, batches))
        return {"policy": policy, "single": 2.0}

    monkeypatch.setattr(prepare, "time_served", time_served)
    made = make_sampler(flow_of(Rotation()), risk=OutputDeviation(TOLERANCE), condition=speeds, batch_size=3000, **FEW)
    assert sizes == {3000}
    assert made.report.timing.batch == 3000
    one = made.block.integrator in TABLES
    assert one == (policy > 2)
    assert ("which is faster than the policy of" in str(made.report)) == one
    assert made.report.comparison.single_nfe == made.report.nfe if one else made.report.family != ONE_FOR_ALL


def test_a_batch_size_is_a_whole_number():
    with pytest.raises(ValueError, match="batch_size: expected"):
        make_sampler(flow_of(Swing()), risk=OutputDeviation(TOLERANCE), batch_size=0, **FEW)


def test_tables_are_fitted_to_draws_that_are_used_for_nothing_else(monkeypatch):
    asked, seen = [], {}

    def condition(number):
        asked.append(number)
        return speeds(number)

    def fit_tables(flow, noise, conditions, evaluations, **options):
        seen["fitting"], seen["tables"] = noise, evaluations
        return fitting(flow, noise, conditions, evaluations, **options)

    def spy(material):
        seen["learning"] = material.costs.h0

    fitting = prepare.fit_tables
    monkeypatch.setattr(prepare, "fit_tables", fit_tables)
    prepared = prepare.prepare(
        flow_of(Rotation()),
        (1000, 200, 800),
        risk=OutputDeviation(TOLERANCE),
        condition=condition,
        reference=TIGHT,
        candidates=TABLES,
        fitted=(2,),
        families=(spy,),
        epsilon=EPSILON,
        batch=300,
        seed=0,
        log=lambda line: None,
    )
    assert (asked, seen["tables"], len(seen["fitting"]), len(seen["learning"])) == ([2200], (2,), 200, 1000)
    test = torch.cat([batch.inputs.positional[0] for batch in prepared.test])
    every = torch.cat([seen["fitting"], seen["learning"], test])
    assert len(every.unique(dim=0)) == 2000


def test_a_seed_fixes_the_fitted_tables():
    given = {"risk": OutputDeviation(TOLERANCE), "condition": speeds, "families": (), "fitted": (6,)} | FEW
    first, again, other = (make_sampler(flow_of(Rotation()), seed=seed, **given) for seed in (5, 5, 6))
    assert first.block.integrator == again.block.integrator
    assert "Fitted(6" in str(first.block.integrator)
    assert first.block.integrator != other.block.integrator


def test_tight_risks_get_methods_of_high_order():
    tight, loose = (default_candidates(OutputDeviation(tolerance)) for tolerance in (1e-5, TOLERANCE))
    orders = [{c.order for c in candidates if isinstance(c, Adams)} for candidates in (tight, loose)]
    assert orders == [{4, 6}, {3, 4}]
    options = {"risk": OutputDeviation(1e-5), "condition": speeds, "draws": 500, "epsilon": EPSILON, "families": ()}
    options |= {"reference": Adams(6, rtol=1e-7, atol=1e-7), "fitted": ()}
    low = [c for c in tight if not isinstance(c, Adams) or c.order == 4]
    given, without = (make_sampler(flow_of(Rotation()).double(), candidates=c, **options).block for c in (tight, low))
    assert given.integrator.order == 6
    assert given.report.comparison.single_nfe < without.report.comparison.single_nfe


def test_tables_are_fitted_beside_the_default_candidates_alone():
    options = {"risk": OutputDeviation(TOLERANCE), "condition": speeds, "draws": 1000, "epsilon": EPSILON}
    options |= {"families": (), "reference": TIGHT}
    by_default = make_sampler(flow_of(Rotation()), **options).report.comparison
    assert (by_default.fitted, by_default.fit_draws) == (6, 100)
    assert make_sampler(flow_of(Rotation()), **options, fitted=()).report.comparison.fitted == 0
    assert make_sampler(flow_of(Rotation()), **options, candidates=TABLES).report.comparison.fitted == 0


def test_fits_of_densities_are_possible():
    made = make_sampler(
        flow_of(Decay()), risk=LogProbDeviation(0.05), condition=lambda n: speeds(n) / 2, fitted=(4,), **FEW
    )
    assert made.report.comparison.fitted == 1
    assert made.report.risk <= EPSILON


def test_a_field_without_gradients_has_no_fitted_tables_and_the_report_says_so():
    class Foreign(Rotation):
        @torch.inference_mode()
        def forward(self, t, y, speed):
            return super().forward(t, y, speed)

    made = make_sampler(flow_of(Foreign()), risk=OutputDeviation(TOLERANCE), condition=speeds, fitted=(3,), **FEW)
    assert made.report.comparison.fitted == 0
    assert "No table was fitted: Inference tensors" in str(made.report)
    assert made.report.nfe < made.report.reference_nfe / 3


def test_fits_leave_out_draws_that_fail():
    class Holes(Rotation):
        def forward(self, t, y, speed):
            return torch.where(speed[:, None] > 2.9, torch.nan, super().forward(t, y, speed))

    def made(condition):
        given = {"condition": condition, "families": (), "fitted": (6,), **FEW}
        return make_sampler(flow_of(Holes()), risk=OutputDeviation(TOLERANCE), **given)

    assert "Fitted(6" in str(made(speeds).block.integrator)
    most_fail = made(lambda number: 2.8 + 2 * torch.rand(number))
    assert re.search(r"No table was fitted: the reference integrates \d+ of 200 draws\.", str(most_fail.report))


@pytest.mark.parametrize(("draws", "size", "expected"), [(100, 2, 16), (2000, 2, 200), (60_000, 2, 2048)])
def test_small_draws_need_more_of_them_to_fit(draws, size, expected):
    flow = Flow(Rotation(), DiagonalNormal(torch.zeros(size), torch.ones(size)), Euler())
    assert draws_to_fit(draws, flow) == expected
    images = Flow(Rotation(), DiagonalNormal(torch.zeros(1, 28, 28), torch.ones(1, 28, 28)), Euler())
    assert draws_to_fit(draws, images) == min(96, max(16, draws // 10))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"fitted": (0,)}, "fitted: expected a whole number"),
        ({"fitted": (True,)}, "fitted: expected a whole number"),
        ({"fitted": 4}, "fitted: expected numbers of evaluations"),
        ({"fitted": "34"}, "fitted: expected numbers of evaluations"),
        ({"draws": 100}, "draws: expected at least"),
        ({"draws": 1.5}, "draws: expected a whole number"),
        ({"risk": 0.03}, "risk: expected a function"),
        ({"reference": 1e-6}, "reference: expected an integrator"),
        ({"batch": 0}, "batch: expected a whole number"),
        ({"epsilon": 0.0}, "epsilon: expected a number between 0 and 1"),
        ({"candidates": ()}, "candidates: expected at least one integrator"),
        ({"candidates": (3,)}, "candidates: expected a list of integrators"),
        ({"candidates": Euler()}, "candidates: expected a list of integrators"),
        ({"risk": OutputDeviation}, "risk: expected a function"),
        ({"delta": -1.0}, "delta: expected a number between 0 and 1, got -1"),
        ({"families": 3}, "families: expected a list of functions"),
        ({"families": (3,)}, "families: expected a list of functions"),
        ({"seed": None}, "seed: expected a whole number, got None"),
        ({"log": 3}, "log: expected a function, got int"),
        ({"condition": lambda n: torch.ones(n + 1)}, "condition: expected"),
        ({"condition": torch.ones(2000)}, "condition: expected a function"),
    ],
)
def test_bad_arguments_are_named(change, error):
    given = {"risk": OutputDeviation(TOLERANCE), "condition": speeds, **FEW, **change}
    with pytest.raises((TypeError, ValueError), match=error):
        make_sampler(flow_of(Rotation()), **given)


def test_flows_with_jumps_get_methods_that_stop_there():
    """dy/dt is 0 until t = 0.3, then 5: exact with a step there."""

    class Late(nn.Module):
        def forward(self, t, y):
            return torch.where(t < 0.3, 0.0, 5.0).expand_as(y)

    made = make_sampler(
        flow_of(Late(), jump_at=[0.3]), risk=OutputDeviation(1e-3), draws=1000, epsilon=EPSILON, families=()
    )
    assert made.report.risk == 0
    assert made.report.comparison.fitted == 0
    assert made.report.nfe < 6
    z = torch.randn(5, 2)
    assert_close(made(z), z + 3.5, atol=1e-3, rtol=0)


def test_double_precision_and_draws_that_fail():
    """Draws whose field is not finite fail in all methods alike, so none loses them; the report counts them."""

    class Holes(Rotation):
        def forward(self, t, y, speed):
            return torch.where(speed[:, None] > 2.9, torch.nan, super().forward(t, y, speed))

    base = DiagonalNormal(torch.zeros(2).double(), torch.ones(2).double())
    made = make_sampler(
        Flow(Holes().double(), base, Euler()),
        risk=OutputDeviation(TOLERANCE),
        condition=lambda n: speeds(n).double(),
        **FEW,
    )
    assert made.report.risk <= EPSILON
    assert "The reference fails on" in str(made.report)


def test_flows_that_cannot_be_used_are_refused():
    with pytest.raises(TypeError, match=r"flow: expected a dise\.Flow"):
        make_sampler(Rotation(), risk=OutputDeviation(0.1))
    with pytest.raises(ValueError, match="flow: expected one with batched=True"):
        make_sampler(flow_of(Rotation(), batched=False), risk=OutputDeviation(0.1))
    with pytest.raises(ValueError, match="flow: expected exact divergences"):
        FlowDensity(flow_of(Rotation(), divergence=dise.HutchinsonDivergence()))


# ---- the parts


def table(nfe, error):
    nfe, error = torch.tensor(nfe), torch.tensor(error)
    candidates = tuple(Euler(i + 1) for i in range(nfe.shape[1]))
    states = torch.zeros(len(nfe), 1)
    return Costs(candidates, states, states, nfe, error, RiskCost(risk=OutputDeviation(1.0)))


def test_the_most_useful_candidates_by_hand():
    """Column 0 serves the first draw, column 1 no further one, column 2 all; the reference is the last."""
    costs = table([[1, 2, 4, 9]] * 3, [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    assert most_useful(costs, [0, 1, 2]) == [0, 2]
    assert most_useful(costs, [0, 1, 2], most=1) == [2]
    assert most_useful(costs, [0, 1], most=1) == [0]
    assert most_useful(costs, []) == []
    assert float(mean_oracle(costs)) == pytest.approx((1 + 4 + 4) / 3)


def test_the_settings_that_are_worth_a_test():
    trials = [Trial(Euler(n), n, risk) for n, risk in ((9, 0.0), (8, 0.01), (7, 0.06), (6, 0.1), (5, 0.16), (4, 0.5))]
    assert worth_testing(trials, 0.1) == (Euler(8), Euler(7), Euler(6))
    assert worth_testing(trials[-1:], 0.1) == (Euler(4),)


def test_the_share_of_the_oracles_gain():
    comparison = Comparison("a", 10.0, 4.0, 0.1, 7.0, (1, 2, 3))
    assert comparison.share(7.0) == 0.5
    assert Comparison(None, None, 4.0, 0.1, 7.0, (1, 2, 3)).share(7.0) is None
    assert Comparison("a", 4.0, 4.0, 0.1, 7.0, (1, 2, 3)).share(4.0) is None


def test_features_of_states_labels_and_images():
    labels = torch.tensor([0, 2, 1])
    small = StateNetwork.like(torch.zeros(3, 2), [labels, torch.zeros(3, 4)], 5)
    h0, k1, c = torch.rand(3, 2), torch.rand(3, 2), torch.rand(3, 4)
    expected = torch.cat([h0, k1, torch.eye(3)[labels], c], dim=1)
    assert_close(small.features(h0, k1, labels, c), expected)
    assert small(h0[:0], k1[:0], labels[:0], c[:0]).shape == (0, 5)
    assert small.features(h0, k1, labels + 7, c)[:, 4:7].abs().sum() == 0
    images = torch.full((2, 1, 28, 28), -3.0)
    large = StateNetwork.like(images, [], 5)
    assert_close(large.features(images, images), torch.tensor([-3.0, 3.0] * 2).repeat_interleave(49).expand(2, -1))
    with pytest.raises(ValueError, match="conditions: expected 2, got 0"):
        small.features(h0, k1)
    with pytest.raises(ValueError, match="features, got"):
        small.features(h0[:, :1], k1, labels, c)


def test_tolerances_in_decibels_and_nats():
    assert OutputDeviation.of_decibels(20, span=2.0) == OutputDeviation(0.2)
    assert math.isclose(OutputDeviation.of_decibels(6, span=1.0).tolerance, 0.501, rel_tol=1e-3)
    x = torch.tensor([0.0, 1.0])
    assert LogProbDeviation(0.1)(x, x + torch.tensor([0.05, 0.2]), None).tolist() == [0, 1]
    assert LogProbDeviation(0.1) != OutputDeviation(0.1)
