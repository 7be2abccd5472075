"""Every policy on a flow whose density is known.

dz/dt = z/2 on [0, 2]: a point x of the data was x·r of the base N(0, 0.1·I), with r = e^(−1); an integrator says
another r, but the change of the log-density, 2, it integrates exactly. So with m the mean of |x|² over a row's points,

    NLL = r² m / 0.2 + log(0.2 π) + 2.
"""

import math

import pytest
import torch
from torch.nn.functional import one_hot

from dise import RK4, Dopri5, Dynamic, Euler, Midpoint
from dise.select import Costs, Outcomes, TaskErrorCost, oracle
from dise_experiments.circles import evaluate
from dise_experiments.circles.evaluate import Reference, batches, policy_rows
from dise_experiments.circles.points import sets
from dise_experiments.circles.task import likelihood_gap

VARIANCE = 0.1
EULER, HALFWAY, CLASSICAL, LOOSE, TIGHT = CANDIDATES = (
    Euler(3),
    Midpoint(5),
    RK4(1),
    Dopri5(rtol=1e-2, atol=1e-2),
    Dopri5(rtol=1e-5, atol=1e-5),
)
# what a step of length h makes of x: the Taylor polynomial of e^(−h/2)
FACTORS = {
    EULER: (1 - 1 / 3) ** 3,
    HALFWAY: (1 - 1 / 5 + 1 / 50) ** 5,
    CLASSICAL: 1 - 1 + 1 / 2 - 1 / 6 + 1 / 24,
    LOOSE: None,
    TIGHT: math.exp(-1),
}
NFE = {EULER: 3, HALFWAY: 10, CLASSICAL: 4}
RULE = TaskErrorCost(0.03, 1000, task_error=likelihood_gap, beta=0.02, resolution=0.02)
X = sets("circles", 20, "test")[:, :4]  # a small test of 16 sets, a large one of 4
UNITS = ("set", "point")
every_unit = pytest.mark.parametrize("unit", UNITS)


def nll(factor, squares, span=2.0):
    """NLL of rows with mean |x|² `squares`; `span`: ∫ div f dt."""
    return factor**2 * squares / (2 * VARIANCE) + math.log(2 * math.pi * VARIANCE) + span


def squares(unit):
    """[N] each row's mean |x|²."""
    each = X.double().square().sum(-1)
    return each.mean(1) if unit == "set" else each.flatten()


def parts(unit):
    small = 16 * (1 if unit == "set" else 4)
    return {"small": slice(None, small), "large": slice(small, None)}


def scores(choice):
    return -one_hot(choice, len(CANDIDATES)).float()


def by_side(h0, k1):
    """By the first point alone: RK4 on the left, Midpoint on the right, DOPRI far on the right."""
    first = h0[..., 0].reshape(len(h0), -1)[:, 0]
    return scores(torch.where(first < 0, 2, torch.where(first < 0.9, 1, 4)))


def choice_by_hand(unit):
    first = X[:, 0, 0] if unit == "set" else X[..., 0].flatten()
    return [2 if x < 0 else 1 if x < 0.9 else 4 for x in first.tolist()]


def euler_alone(h0, k1):
    return scores(torch.zeros(len(h0), dtype=torch.int64))


@pytest.fixture(scope="module")
def flow(linear_flow):
    return linear_flow(0.5)


@pytest.fixture(scope="module")
def tables(flow):
    dynamics = {"side": Dynamic(CANDIDATES, by_side), "euler": Dynamic(CANDIDATES, euler_alone)}
    macs = {"side": 0.25, "euler": 0.5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "CHUNK", 12)  # the small test ends within a chunk
        return {unit: policy_rows(flow, CANDIDATES, RULE, dynamics, macs, X, unit) for unit in UNITS}


@pytest.fixture(scope="module")
def rows(tables):
    """Rows by unit and policy."""
    return {unit: {row["policy"]: row for row in table} for unit, table in tables.items()}


@pytest.fixture(scope="module")
def alone(flow):
    """NLL and NFE [N] of each candidate, row by row in a solve of its own."""

    def solve(candidate, unit):
        data = X.unsqueeze(1) if unit == "set" else X.reshape(-1, 1, 2)
        with torch.no_grad(), flow.block.using(candidate):
            solved = [flow.solve(x) for x in data]
        return torch.stack([-log_p.mean() for log_p, _ in solved]).double(), torch.cat([s.nfe for _, s in solved])

    return {unit: {candidate: solve(candidate, unit) for candidate in (LOOSE, TIGHT)} for unit in UNITS}


# ---- what there is


@every_unit
def test_policies(tables, unit):
    assert [row["policy"] for row in tables[unit]] == [
        *map(str, CANDIDATES),
        "oracle",
        *("DISE (side)", "random, mix of side", "DISE (euler)", "random, mix of euler"),
    ]
    assert {row["unit"] for row in tables[unit]} == {unit}


def test_without_selectors(flow):
    table = policy_rows(flow, CANDIDATES[:1], RULE, {}, {}, X[:17], "set")
    assert [row["policy"] for row in table] == ["Euler(steps=3)", "oracle"]


def test_rows_can_be_written_as_json(tables):
    for row in (row for table in tables.values() for row in table):
        numbers = [value for part in ("small", "large") for value in row[part].values()]
        assert {type(value) for value in numbers} == {float, bool}
        assert all(math.isfinite(value) for value in numbers)


# ---- candidates alone


@every_unit
@pytest.mark.parametrize("candidate", [EULER, HALFWAY, CLASSICAL, TIGHT], ids=str)
def test_likelihoods_are_the_closed_form(rows, candidate, unit):
    ours, exact = (nll(factor, squares(unit)) for factor in (FACTORS[candidate], math.exp(-1)))
    for part, where in parts(unit).items():
        found = rows[unit][str(candidate)][part]
        assert found["nll"] == pytest.approx(ours[where].mean().item(), abs=2e-5)
        assert found["reference"] == pytest.approx(exact[where].mean().item(), abs=2e-6)
        assert found["largest_gap"] == pytest.approx((ours - exact)[where].abs().max().item(), abs=2e-4)


@every_unit
@pytest.mark.parametrize("candidate", NFE, ids=str)
def test_nfe_of_fixed_steps_is_their_stages(rows, candidate, unit):
    row, count = rows[unit][str(candidate)], NFE[candidate]
    rows_of = {"small": 16, "large": 4} if unit == "set" else {"small": 64, "large": 16}
    assert row["nfe"] == count
    for part, number in rows_of.items():
        assert (row[part]["nfe"], row[part]["nfe_sum"]) == (count, count * number)


@every_unit
@pytest.mark.parametrize("candidate", [LOOSE, TIGHT], ids=str)
def test_adaptive_candidates_are_what_each_row_does_alone(rows, alone, candidate, unit):
    expected, nfe = alone[unit][candidate]
    assert ((nfe - 2) % 6 == 0).all()
    row = rows[unit][str(candidate)]
    assert row["nfe"] == pytest.approx(nfe.double().mean().item())
    for part, where in parts(unit).items():
        assert row[part]["nll"] == pytest.approx(expected[where].mean().item(), abs=1e-5)
        assert row[part]["nfe_sum"] == nfe[where].sum()
        assert row[part]["nfe"] == pytest.approx(nfe[where].double().mean().item())


def test_a_point_takes_its_own_steps(sine_flow):
    """A set takes those that its points need together."""
    data = 2 * X[:17]
    (of_sets, _), (of_points, _) = (policy_rows(sine_flow, (TIGHT,), RULE, {}, {}, data, unit) for unit in UNITS)
    with torch.no_grad(), sine_flow.block.using(TIGHT):
        alone = torch.cat([sine_flow.solve(x)[1].nfe for x in data.reshape(-1, 1, 2)])
    assert of_points["nfe"] == pytest.approx(alone.double().mean().item())
    assert of_sets["nfe"] != pytest.approx(of_points["nfe"])
    assert of_sets["small"]["nll"] == pytest.approx(of_points["small"]["nll"], abs=1e-4)


@pytest.mark.parametrize("candidate", NFE, ids=str)
def test_sets_and_points_have_the_same_likelihood(rows, candidate):
    for part in ("small", "large"):
        of_sets, of_points = (rows[unit][str(candidate)][part] for unit in UNITS)
        assert of_sets["nll"] == pytest.approx(of_points["nll"], abs=1e-5)
        assert of_sets["reference"] == pytest.approx(of_points["reference"], abs=1e-5)
        # a set's gap is the mean of its points', of one sign here
        assert of_sets["largest_gap"] < of_points["largest_gap"]


# ---- flags


def test_a_likelihood_that_the_model_does_not_have_is_flagged(rows):
    """Euler's r is too small: e^(−h/2) > 1 − h/2. Midpoint's and RK4's are too large."""
    for unit in UNITS:
        for part in ("small", "large"):
            flagged = {policy for policy, row in rows[unit].items() if row[part]["flagged"]}
            assert flagged == {"Euler(steps=3)", "DISE (euler)", "random, mix of euler"}
            assert rows[unit]["Euler(steps=3)"][part]["nll"] < rows[unit]["Euler(steps=3)"][part]["reference"] - 0.05


@pytest.mark.parametrize(
    ("rate", "candidate", "flagged"),
    [
        # a step x → (Taylor polynomial of e^(−rate·h)) x; the first term left out has the sign of (−rate)^(order + 1)
        (0.5, Euler(50), True),
        (-0.5, Euler(50), True),
        (0.5, Midpoint(4), False),
        (-0.5, Midpoint(4), True),
        (0.5, RK4(1), False),
        (-0.5, RK4(1), True),
        # less than the threshold
        (0.01, Euler(50), False),
        (0.5, TIGHT, False),
        (-0.5, TIGHT, False),
    ],
    ids=str,
)
def test_which_candidates_overstate_the_likelihood(linear_flow, rate, candidate, flagged):
    (row, *_) = policy_rows(linear_flow(rate), (candidate,), RULE, {}, {}, X[:18], "set")
    assert row["small"]["flagged"] == row["large"]["flagged"] == flagged
    assert (row["small"]["nll"] < row["small"]["reference"] - 1e-3) == flagged


@pytest.mark.parametrize(("above", "flagged"), [(-0.0011, True), (-0.0009, False), (0.5, False)])
def test_the_threshold_is_a_thousandth(above, flagged):
    """A part is flagged by its own mean: on the large test this policy is better by 1."""
    target = torch.zeros(20, 2)
    output = -torch.full((20, 1, 2), above)
    output[16:] = 1.0
    outcomes = Outcomes((EULER,), target, target, torch.ones(20, 1, dtype=torch.int64), output, target)
    costs = Costs.of(outcomes, RULE)
    row = evaluate._Table(outcomes.output, outcomes.target, 16, "set").row(oracle(costs))
    assert (row["small"]["flagged"], row["large"]["flagged"]) == (flagged, True)


# ---- the oracle


@every_unit
def test_the_oracle_is_the_cheapest_within_beta(rows, unit):
    """Adequate: |r² − e^(−2)| m / 0.2 ≤ 0.02 nats; of the tight DOPRI always."""
    m = squares(unit)
    gaps = {c: (FACTORS[c] ** 2 - math.exp(-2)) * m / (2 * VARIANCE) for c in (EULER, CLASSICAL, HALFWAY)}
    assert all((gap.abs() - 0.02).abs().min() > 1e-5 for gap in gaps.values())  # none is a matter of rounding
    expected = {"nfe": [], "gap": []}
    for i in range(len(m)):
        # by NFE 3, 4, 10; one of them is adequate on every row
        chosen = next(c for c in gaps if abs(gaps[c][i]) <= 0.02)
        expected["nfe"].append(NFE[chosen])
        expected["gap"].append(gaps[chosen][i].item())
    assert set(expected["nfe"]) == {4, 10}  # Euler is adequate for none
    for part, where in parts(unit).items():
        row = rows[unit]["oracle"][part]
        assert row["nfe_sum"] == sum(expected["nfe"][where])
        gap = sum(expected["gap"][where]) / len(expected["gap"][where])
        assert row["nll"] - row["reference"] == pytest.approx(gap, abs=2e-5)


# ---- selectors as executed


@every_unit
def test_a_selector_does_what_its_choices_do_alone(rows, alone, unit):
    choice, m, (tight, nfe) = choice_by_hand(unit), squares(unit), alone[unit][TIGHT]
    by_choice = {2: nll(FACTORS[CLASSICAL], m), 1: nll(FACTORS[HALFWAY], m), 4: tight}
    nfes = {2: [4] * len(m), 1: [10] * len(m), 4: nfe.tolist()}
    expected = torch.stack([by_choice[k][i] for i, k in enumerate(choice)])
    spent = torch.tensor([float(nfes[k][i]) for i, k in enumerate(choice)])
    assert set(choice) == {1, 2, 4}
    row = rows[unit]["DISE (side)"]
    assert row["shares"] == {str(c): pytest.approx(choice.count(k) / len(m)) for k, c in enumerate(CANDIDATES)}
    assert row["selector_macs"] == 0.25
    assert row["nfe"] == pytest.approx(spent.mean().item())
    for part, where in parts(unit).items():
        assert row[part]["nll"] == pytest.approx(expected[where].mean().item(), abs=2e-5)
        assert row[part]["nfe_sum"] == spent[where].sum()
        gaps = (expected - nll(math.exp(-1), m))[where]
        assert row[part]["largest_gap"] == pytest.approx(gaps.abs().max().item(), abs=2e-4)


@every_unit
def test_a_selector_of_one_candidate_is_that_candidate(rows, unit):
    row, alone = rows[unit]["DISE (euler)"], rows[unit]["Euler(steps=3)"]
    assert row["shares"] == {str(c): float(c == EULER) for c in CANDIDATES}
    assert (row["nfe"], row["selector_macs"]) == (3, 0.5)
    for part in ("small", "large"):
        assert row[part] == pytest.approx(alone[part], abs=1e-5)


def test_likelihood_and_nfe_are_those_of_the_execution(flow):
    """Not looked up: this selector's integrators are others than the candidates."""
    dynamic = Dynamic((Euler(1),) * 5, euler_alone)
    row = policy_rows(flow, CANDIDATES, RULE, {"other": dynamic}, {"other": 0.0}, X, "set")[6]
    assert row["policy"] == "DISE (other)"
    assert row["nfe"] == 1
    # one step of length 2 ends at 0
    for part, count in (("small", 16), ("large", 4)):
        assert row[part]["nll"] == pytest.approx(math.log(2 * math.pi * VARIANCE) + 2, abs=1e-5)
        assert (row[part]["nfe"], row[part]["nfe_sum"]) == (1, count)


# ---- random routing


@every_unit
def test_random_routing_at_the_selectors_mix(rows, unit):
    shares = rows[unit]["DISE (side)"]["shares"]
    row = rows[unit]["random, mix of side"]
    assert {"selector_macs", "shares"}.isdisjoint(row)
    for part in ("small", "large"):
        for key in ("nll", "nfe", "nfe_sum"):
            mixed = sum(share * rows[unit][name][part][key] for name, share in shares.items())
            assert row[part][key] == pytest.approx(mixed, rel=1e-5)
        assert row[part]["reference"] == rows[unit]["oracle"][part]["reference"]


# ---- the reference


@pytest.mark.parametrize("shape", [(7, 2), (3, 32, 2)])
def test_the_reference_of_a_linear_flow(linear_flow, shape):
    """dz/dt = A z with A = [[0, 1], [−1, 0]] turns, and [[1/2, 0], [0, −1]] stretches; e^(A·2) by hand."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for A, back in (
        ([[0.0, 1.0], [-1.0, 0.0]], [[math.cos(2), -math.sin(2)], [math.sin(2), math.cos(2)]]),
        ([[0.5, 0.0], [0.0, -1.0]], [[math.exp(-1), 0], [0, math.exp(2)]]),
    ):
        z = x.double() @ torch.tensor(back, dtype=torch.float64).T
        expected = -z.square().sum(-1) / 0.2 - math.log(0.2 * math.pi) - 2 * (A[0][0] + A[1][1])
        found = Reference(linear_flow(A))(x)
        assert found.shape == shape[:-1]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_reference_where_the_divergence_varies(sine_flow, dtype):
    """dz/dt = sin z has tan(z/2) = e^t tan(z0/2), so dz0/dz = sin z0 / sin z."""
    x = torch.rand(4, 32, 2, generator=torch.Generator().manual_seed(0), dtype=dtype) * 4 - 2
    z0 = 2 * ((x.double() / 2).tan() / math.e).atan()
    log_p = -z0.square() / 2 - math.log(2 * math.pi) / 2 + (z0.sin() / x.double().sin()).log()
    found = Reference(sine_flow)(x)
    assert found.dtype == dtype
    tolerance = 2e-6 if dtype == torch.float32 else 5e-7
    torch.testing.assert_close(found.double(), log_p.sum(-1), rtol=0, atol=tolerance)
    # the flow's own integrator is not as good
    with torch.no_grad(), sine_flow.block.using(Dopri5(rtol=1e-3, atol=1e-3)):
        assert (sine_flow(x.float()).double() - log_p.sum(-1)).abs().max() > 1e-5


def test_the_reference_does_not_care_how_the_flow_is_integrated(linear_flow):
    flow = linear_flow(0.5)
    expected = Reference(flow)(X)
    flow.block.integrator = Euler(1)
    assert torch.equal(Reference(flow)(X), expected)


def test_nothing_is_left_behind_on_the_flow(linear_flow):
    flow = linear_flow(0.5)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    policy_rows(flow, CANDIDATES, RULE, {"euler": Dynamic(CANDIDATES, euler_alone)}, {"euler": 0.0}, X[:17], "set")
    assert flow.block.integrator == TIGHT
    assert flow.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    assert {value.dtype for value in flow.state_dict().values()} == {torch.float32}
    assert flow.f.A.grad is None


# ---- batches


def test_batches_of_sets_and_of_points(flow, monkeypatch):
    monkeypatch.setattr(evaluate, "CHUNK", 12)
    of_sets, of_points = (list(batches(flow, X, unit)) for unit in UNITS)
    assert [tuple(x.shape) for x, _ in of_sets] == [(12, 4, 2), (8, 4, 2)]
    assert [tuple(x.shape) for x, _ in of_points] == [(12 * 4, 2), (8 * 4, 2)]
    assert torch.equal(torch.cat([x for x, _ in of_sets]), X)
    for (x, target), (point, of_point) in zip(of_sets, of_points, strict=True):
        assert torch.equal(x.flatten(0, 1), point)
        assert torch.equal(target.flatten(), of_point)
        assert not target.requires_grad
        expected = -nll(math.exp(-1), x.double().square().sum(-1))
        torch.testing.assert_close(target.double(), expected, rtol=1e-6, atol=1e-6)


def test_64_sets_are_evaluated_at_once(flow):
    assert [len(x) for x, _ in batches(flow, sets("circles", 130, "test"), "set")] == [64, 64, 2]
