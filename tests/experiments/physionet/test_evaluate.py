"""Every policy on a model whose answers are known.

dz/dt = −3 z, and the logit is z's first coordinate: a record that starts at z and ends at t has the logit z·e^(−3t); an
integrator with steps of length h makes of the exponential its Taylor polynomial.
"""

import json
import math

import pytest
import torch
from scipy.stats import mannwhitneyu
from torch import nn
from torch.nn.functional import one_hot

from dise import RK4, Bosh3, Dopri5, Dynamic, Euler, solve
from dise_experiments.physionet.evaluate import published_test, quality, with_ode, without_ode
from dise_experiments.physionet.model import LATENT, LatentODE
from dise_experiments.physionet.starts import Starts

RATE, BETA = 3.0, 0.02
EULER, CLASSICAL, LOOSE, REFERENCE = CANDIDATES = (
    Euler(1),
    RK4(1),
    Bosh3(rtol=1e-2, atol=1e-3, first_step="span"),
    Dopri5(rtol=1e-6, atol=1e-6),
)
BASELINE = Dopri5(rtol=1e-1, atol=1e-2)
SIZES = (30, 25)


class Decay(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate, self.calls = nn.Parameter(torch.tensor(RATE)), []

    def forward(self, t, y):
        self.calls.append(len(y))
        return -self.rate * y


class First(nn.Module):
    def forward(self, z):
        return z[:, :1]


@pytest.fixture(scope="module")
def model():
    model = LatentODE().eval()
    model.block.f, model.classifier = Decay(), First()
    return model


def make_batches(deviation=0.0):
    """55 records, the first without a time series, most of them short; deaths are likelier for large z."""
    draw = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(sum(SIZES), LATENT, generator=draw)
    end = torch.rand(sum(SIZES), generator=draw).square()
    end[0] = 0
    labels = (mean[:, 0] + 2 * torch.randn(sum(SIZES), generator=draw) > 2).float()
    x = Starts(mean, torch.full_like(mean, deviation), end)
    columns = (tensor.split(SIZES) for tensor in (x.mean, x.deviation, x.end, labels))
    return [(Starts(m, d, e), y) for m, d, e, y in zip(*columns, strict=True)]


BATCHES = make_batches()
Z, END, LABELS = (
    torch.cat([part[0].mean[:, 0] for part in BATCHES]).double(),
    torch.cat([part[0].end for part in BATCHES]).double(),
    torch.cat([part[1] for part in BATCHES]),
)


def probability(candidate):
    """[N] by the closed form."""
    x = -RATE * END
    factor = {
        EULER: 1 + x,
        CLASSICAL: 1 + x + x**2 / 2 + x**3 / 6 + x**4 / 24,
        REFERENCE: x.exp(),
    }[candidate]
    return (Z * factor).sigmoid()


def alone(candidate):
    """[N] probabilities and NFE of each record solved by itself."""
    solutions = [
        solve(lambda t, y: -RATE * y, x.mean[i : i + 1], 0.0, x.end[i : i + 1], candidate)
        for x, _ in BATCHES
        for i in range(len(x))
    ]
    return torch.cat([s.y[:, 0] for s in solutions]).sigmoid().double(), torch.cat([s.nfe for s in solutions])


def by_side(h0, k1):
    """RK4 where z is negative, Bosh3 up to 4, DOPRI beyond."""
    first = h0[:, 0]
    return -one_hot(torch.where(first < 0, 1, torch.where(first < 4, 2, 3)), 4).float()


def all_to_euler(h0, k1):
    return torch.tensor([[0.0, 1.0]]).expand(len(h0), 2)


@pytest.fixture(scope="module")
def table(model):
    dynamics = {"side": Dynamic(CANDIDATES, by_side), "euler": Dynamic((EULER, REFERENCE), all_to_euler)}
    return with_ode(model, CANDIDATES, (BASELINE,), dynamics, {"side": 0.25, "euler": 0.5}, BATCHES)


@pytest.fixture(scope="module")
def rows(table):
    return {row["policy"]: row for row in table}


def test_policies(table):
    assert [row["policy"] for row in table] == [
        *map(str, CANDIDATES), str(BASELINE), "oracle",
        "DISE (side)", "DISE (euler)", "random, mix of side", "random, mix of euler",
    ]  # fmt: skip


def test_rows_can_be_written_as_json(table):
    assert json.loads(json.dumps(table)) == [
        {key: list(value) if isinstance(value, tuple) else value for key, value in row.items()} for row in table
    ]
    for row in table:
        numbers = [value for key, value in row.items() if key not in ("policy", "shares")]
        assert all(math.isfinite(x) for value in numbers for x in (value if isinstance(value, tuple) else [value]))


# ---- how well probabilities rank and fit


def test_quality_by_hand():
    p, labels = torch.tensor([0.95, 0.93, 0.42, 0.35, 0.05]), torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    found = quality(p, labels)
    # of 2·3 pairs, the first positive beats all 3, the second 2
    assert found["auroc"] == pytest.approx(5 / 6)
    # precision at each positive: 1 of 1, 2 of 3
    assert found["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    # by tenths: .95 and .93 with a half of deaths; .42 with 1; .35 with 0; .05 with 0
    expected = (2 * abs(0.94 - 0.5) + abs(0.42 - 1) + 0.35 + 0.05) / 5
    assert found["ece"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("candidate", [EULER, CLASSICAL, REFERENCE], ids=str)
def test_measures_are_those_of_the_closed_form(rows, candidate):
    row, p, reference = rows[str(candidate)], probability(candidate), probability(REFERENCE)
    pairs = mannwhitneyu(p[LABELS == 1], p[LABELS == 0]).statistic
    assert row["auroc"] == pytest.approx(pairs / float(LABELS.sum() * (1 - LABELS).sum()))
    measured = quality(p, LABELS)
    assert (row["auprc"], row["ece"]) == pytest.approx((measured["auprc"], measured["ece"]), abs=1e-5)
    gap = (p - reference).abs()
    assert (gap - BETA).abs().min() > 1e-5
    assert row["gap"] == pytest.approx(gap.mean().item(), abs=1e-5)
    assert row["adequate"] == pytest.approx((gap <= BETA).double().mean().item())
    assert row["difference"] == pytest.approx(row["auroc"] - rows[str(REFERENCE)]["auroc"])


def test_the_candidates_differ(rows):
    assert rows["Euler"]["adequate"] < rows["RK4"]["adequate"] < rows[str(REFERENCE)]["adequate"] == 1
    assert rows["Euler"]["auroc"] != rows[str(REFERENCE)]["auroc"]


def test_intervals(rows):
    for row in (row for row in rows.values() if "interval" in row):
        low, high = row["interval"]
        assert low < row["auroc"] < high
        low, high = row["difference_interval"]
        assert low <= row["difference"] <= high
    assert rows[str(REFERENCE)]["difference_interval"] == (0, 0)
    # pairs tell more than two intervals
    width = {key: rows["RK4"][key][1] - rows["RK4"][key][0] for key in ("interval", "difference_interval")}
    assert width["difference_interval"] < width["interval"]


# ---- NFE


def test_nfe_of_fixed_steps_is_their_stages_but_of_a_record_that_ends_at_once(rows):
    for name, stages in (("Euler", 1), ("RK4", 4)):
        assert rows[name]["nfe"] == pytest.approx(stages * 54 / 55)
        assert rows[name]["nfe_batch"] == stages


@pytest.mark.parametrize("candidate", [LOOSE, REFERENCE, BASELINE], ids=str)
def test_adaptive_candidates_are_what_each_record_does_alone(rows, candidate):
    p, nfe = alone(candidate)
    row = rows[str(candidate)]
    assert row["nfe"] == pytest.approx(nfe.double().mean().item())
    assert row["auroc"] == pytest.approx(quality(p, LABELS)["auroc"], abs=1e-6)


def test_nfe_of_a_batch_is_that_of_one_system_up_to_its_latest_end(rows):
    for candidate in (LOOSE, REFERENCE, BASELINE):
        systems = [
            solve(lambda t, y: -RATE * y, x.mean, 0.0, float(x.end.max()), candidate, batched=False) for x, _ in BATCHES
        ]
        assert rows[str(candidate)]["nfe_batch"] == sum(int(s.nfe) for s in systems) / 2
    assert rows[str(REFERENCE)]["nfe_batch"] > rows[str(REFERENCE)]["nfe"]


# ---- policies


def test_the_oracle_is_the_cheapest_candidate_within_beta(rows):
    reference = probability(REFERENCE)
    each = [(probability(EULER), 1), (probability(CLASSICAL), 4), alone(LOOSE), (reference, alone(REFERENCE)[1])]
    each = [(p, torch.as_tensor(nfe).expand(55) * (END > 0)) for p, nfe in each]
    spent, answers = [], []
    for i in range(55):
        near = [(int(nfe[i]), p[i].item()) for p, nfe in each if abs(p[i] - reference[i]) <= BETA]
        nfe, p = min(near, key=lambda pair: pair[0])
        spent.append(nfe)
        answers.append(p)
    row = rows["oracle"]
    assert {0, 1, 4} < set(spent)
    assert row["nfe"] == pytest.approx(sum(spent) / 55)
    assert row["adequate"] == 1
    assert row["auroc"] == pytest.approx(quality(torch.tensor(answers), LABELS)["auroc"], abs=2e-3)


def test_a_selector_does_what_its_choices_do_alone(rows):
    choice = torch.where(Z < 0, 1, torch.where(Z < 4, 2, 3))
    choice[0] = -1
    of_loose, of_reference = alone(LOOSE), alone(REFERENCE)
    p = torch.where(choice == 1, probability(CLASSICAL), torch.where(choice == 2, of_loose[0], of_reference[0]))
    nfe = torch.where(choice == 1, 4, torch.where(choice == 2, of_loose[1], of_reference[1])) * (choice >= 0)
    row = rows["DISE (side)"]
    # the record with an empty span has no candidate
    expected = {str(c): (choice == k).sum().item() / 54 for k, c in enumerate(CANDIDATES)}
    assert row["shares"] == pytest.approx(expected)
    assert 0 < expected[str(REFERENCE)] < expected["RK4"]
    assert row["selector_macs"] == 0.25
    assert row["nfe"] == pytest.approx(nfe.double().mean().item())
    assert row["auroc"] == pytest.approx(quality(p, LABELS)["auroc"], abs=1e-6)
    assert row["gap"] == pytest.approx((p - probability(REFERENCE)).abs().mean().item(), abs=1e-5)


def test_nfe_of_a_routed_batch_is_its_calls_of_f(model):
    dynamic = Dynamic(CANDIDATES, by_side)
    model.block.f.calls.clear()
    with torch.no_grad(), model.block.using(dynamic):
        for x, _ in BATCHES:
            model.classify(x.mean, x.end)
    calls = len(model.block.f.calls)
    table = with_ode(model, CANDIDATES, (), {"side": dynamic}, {"side": 0.0}, BATCHES)
    (row,) = [row for row in table if row["policy"] == "DISE (side)"]
    assert row["nfe_batch"] == calls / 2


def test_a_selector_of_one_candidate_is_that_candidate(rows):
    row, euler = rows["DISE (euler)"], rows["Euler"]
    assert row["shares"] == {"Euler": 1, str(REFERENCE): 0}
    for key in ("nfe", "auroc", "auprc", "ece", "interval", "difference", "difference_interval", "gap", "adequate"):
        assert row[key] == euler[key]


def test_random_routing_at_the_selectors_mix(rows):
    row, shares = rows["random, mix of side"], rows["DISE (side)"]["shares"]
    assert {"interval", "shares", "selector_macs"}.isdisjoint(row)
    mixed = sum(share * rows[name]["nfe"] for name, share in shares.items())
    assert row["nfe"] == pytest.approx(mixed, rel=0.05)
    assert row["auroc"] == pytest.approx(rows[str(REFERENCE)]["auroc"], abs=0.05)
    # of one candidate there is only one deal
    alone = rows["random, mix of euler"]
    assert [alone[key] for key in ("nfe", "auroc", "auprc", "ece")] == pytest.approx(
        [rows["Euler"][key] for key in ("nfe", "auroc", "auprc", "ece")]
    )


def test_the_models_integrator_stays_as_it_was(model):
    before = model.block.integrator
    with_ode(model, CANDIDATES[:1], (), {"e": Dynamic((EULER, EULER), all_to_euler)}, {"e": 0.0}, BATCHES)
    assert model.block.integrator == before


# ---- without a solve, and as published


def test_a_head_that_reads_the_start_needs_no_solve():
    model = LatentODE("z0").eval()
    model.block.f, model.classifier = Decay(), First()
    (row,) = without_ode(model, BATCHES)
    assert model.block.f.calls == []
    assert (row["policy"], row["nfe"], row["gap"], row["difference"]) == ("no ODE", 0, 0, 0)
    assert row["auroc"] == pytest.approx(quality(Z.sigmoid(), LABELS)["auroc"])


def test_the_published_test_pools_three_samples_a_record(model):
    exact = quality(probability(REFERENCE), LABELS)
    with model.block.using(REFERENCE):
        certain = published_test(model, BATCHES)
        # without deviation the samples are alike; ties between them are of one label
        assert {key: certain[key] for key in ("auroc", "ece")} == pytest.approx(
            {key: exact[key] for key in ("auroc", "ece")}, abs=1e-5
        )
        unsure, again = (published_test(model, make_batches(deviation=5.0)) for _ in range(2))
    assert unsure == again
    assert unsure["auroc"] < certain["auroc"]
    for row in (certain, unsure):
        assert row["interval"][0] < row["auroc"] < row["interval"][1]


def test_the_published_test_draws_from_each_records_distribution(model):
    """z = mean + 5·noise, three times for each of the 55, batch by batch from one generator."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.cat([torch.randn(3, size, LATENT, generator=generator) for size in SIZES], dim=1)
    p = ((Z + 5 * noise[..., 0]) * (-RATE * END).exp()).sigmoid()
    with model.block.using(REFERENCE):
        found = published_test(model, make_batches(deviation=5.0))
    assert found["auroc"] == pytest.approx(quality(p.flatten(), LABELS.repeat(3))["auroc"], abs=1e-4)
