"""Every policy on eight samples whose numbers are worked out by hand.

dh/dt = −h on [0, 1]: Euler ends at 0, RK4 at 0.375·x, DOPRI near x/e. Class 1 is predicted where h(1) > 0.2, which
is never with Euler, where x > 0.5333 with RK4, and where x > 0.5437 with DOPRI.
"""

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from dise import RK4, Dopri5, Dynamic, Euler, NeuralODE, solve
from dise_experiments.mnist.evaluate import with_ode, without_ode

TOLERANCE = {"rtol": 1e-3, "atol": 1e-3}
CANDIDATES = (Euler(), RK4(), Dopri5(**TOLERANCE))
BASELINES = (Dopri5(**TOLERANCE, first_step="span"),)

X = torch.tensor([1.0, 0.1, 0.1, 0.54, 0.54, 1.0, 2.0, 1.5])[:, None]
LABELS = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1])
RIGHT = {
    "Euler": [0, 1, 0, 0, 1, 1, 0, 0],
    "RK4": [1, 1, 0, 1, 0, 0, 1, 1],
    "Dopri5": [1, 1, 0, 0, 1, 0, 1, 1],
}


class Decay(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.ones(()))

    def forward(self, t, y):
        return -self.rate * y


class Threshold(nn.Module):
    """Logits of [n, 1]: class 1 above 0.2."""

    def forward(self, h):
        return torch.cat([torch.full_like(h, 0.2), h], 1)


def model_with(integrator):
    return nn.Sequential(NeuralODE(Decay(), integrator), Threshold())


def batches():
    return list(zip(X.split(3), LABELS.split(3), strict=True))


def by_size(h0, k1):
    """Euler up to 0.5, DOPRI up to 0.9, RK4 above: 2, 2 and 4 samples."""
    size = h0[:, 0]
    choice = torch.where(size > 0.9, 1, torch.where(size > 0.5, 2, 0))
    return -one_hot(choice, 3).float()


def nothing_but_rk4(h0, k1):
    return -one_hot(torch.ones(len(h0), dtype=torch.int64), 3).float()


@pytest.fixture(scope="module")
def metrics():
    dynamics = {"size": Dynamic(CANDIDATES, by_size), "rk4": Dynamic(CANDIDATES, nothing_but_rk4)}
    macs = {"size": 0.5, "rk4": 0.25}
    return with_ode(model_with(CANDIDATES[2]), CANDIDATES, BASELINES, dynamics, macs, batches())


@pytest.fixture(scope="module")
def rows(metrics):
    return {row["policy"]: row for row in metrics["policies"]}


@torch.no_grad()
def nfe(integrator, x=X, **options):
    return solve(Decay(), x, 0.0, 1.0, integrator, **options).nfe.double()


def test_policies(metrics):
    assert [row["policy"] for row in metrics["policies"]] == [
        *("Euler", "RK4", "Dopri5", "Dopri5(first_step=span)", "oracle"),
        *("DISE (size)", "random, mix of size", "DISE (rk4)", "random, mix of rk4"),
    ]
    assert metrics["samples"] == 8


@pytest.mark.parametrize("integrator", [*CANDIDATES, *BASELINES], ids=str)
def test_single_integrators(rows, integrator):
    row = rows[str(integrator)]
    assert row["accuracy"] == sum(RIGHT[str(integrator).split("(")[0]]) / 8
    assert row["nfe"] == pytest.approx(nfe(integrator).mean().item())


@pytest.mark.parametrize("integrator", [*CANDIDATES, *BASELINES], ids=str)
def test_nfe_of_a_batch_is_that_of_one_system(rows, integrator):
    calls = [nfe(integrator, x, batched=False).item() for x, _ in batches()]
    assert rows[str(integrator)]["nfe_batch"] == pytest.approx(sum(calls) / 3)


def test_fixed_steps_cost_their_stages(rows):
    assert (rows["Euler"]["nfe_batch"], rows["RK4"]["nfe_batch"]) == (1, 4)
    assert (rows["Euler"]["nfe"], rows["RK4"]["nfe"]) == (1, 4)


def test_oracle_takes_the_cheapest_that_is_right(rows):
    # RK4, Euler, none is right (so Euler), RK4, Euler, Euler, RK4, RK4
    assert rows["oracle"]["accuracy"] == 7 / 8
    assert rows["oracle"]["nfe"] == (4 + 1 + 1 + 4 + 1 + 1 + 4 + 4) / 8


@torch.no_grad()
def test_a_selector_as_executed(rows):
    row, dopri = rows["DISE (size)"], int(nfe(CANDIDATES[2], X[3:5])[0])
    # RK4 right; Euler right, wrong; DOPRI wrong, right; RK4 wrong, right, right
    assert row["accuracy"] == 5 / 8
    assert row["nfe"] == (4 * 4 + 2 * 1 + 2 * dopri) / 8
    assert row["shares"] == {"Euler": 0.25, "RK4": 0.5, "Dopri5": 0.25}
    # in lockstep: a batch of RK4 and Euler, one with DOPRI, one of RK4
    assert row["nfe_batch"] == (4 + dopri + 4) / 3
    assert row["selector_macs"] == 0.5
    assert rows["DISE (rk4)"]["selector_macs"] == 0.25


def test_random_routing_at_the_selectors_mix(rows):
    row = rows["random, mix of size"]
    assert row["accuracy"] == pytest.approx(0.25 * 3 / 8 + 0.5 * 5 / 8 + 0.25 * 5 / 8)
    assert row["nfe"] == pytest.approx(0.25 * 1 + 0.5 * 4 + 0.25 * rows["Dopri5"]["nfe"])
    # right on some samples with a probability alone: nothing to pair
    assert "mcnemar" not in row


def test_a_mix_of_one_candidate_is_that_candidate(rows):
    alone = {key: rows["RK4"][key] for key in ("accuracy", "nfe", "mcnemar")}
    assert rows["random, mix of rk4"] == {"policy": "random, mix of rk4"} | alone
    assert rows["DISE (rk4)"]["accuracy"] == rows["RK4"]["accuracy"]
    assert rows["DISE (rk4)"]["nfe_batch"] == 4


@pytest.mark.parametrize(
    ("policy", "only_dopri", "only_other", "p"),
    [
        ("Dopri5", 0, 0, 1.0),
        ("Dopri5(first_step=span)", 0, 0, 1.0),
        ("Euler", 3, 1, 2 * (1 + 4) / 2**4),
        ("RK4", 1, 1, 1.0),
        ("oracle", 0, 2, 2 / 2**2),
        ("DISE (size)", 0, 0, 1.0),
        ("DISE (rk4)", 1, 1, 1.0),
    ],
)
def test_paired_tests_are_against_dopri(rows, policy, only_dopri, only_other, p):
    test = rows[policy]["mcnemar"]
    assert (test["only_first"], test["only_second"]) == (only_dopri, only_other)
    assert test["difference"] == pytest.approx((only_other - only_dopri) / 8)
    assert test["p"] == pytest.approx(p)


# ---- which images are wrong


@pytest.mark.parametrize(
    ("integrator", "wrong"),
    [
        (CANDIDATES[2], [2, 3, 5]),
        (CANDIDATES[1], [2, 4, 5]),
        (CANDIDATES[0], [0, 2, 3, 6, 7]),
        (BASELINES[0], [2, 3, 5]),
    ],
    ids=str,
)
def test_wrong_images_are_those_of_the_models_own_integrator(integrator, wrong):
    found = with_ode(model_with(integrator), CANDIDATES, BASELINES, {}, {}, batches())
    assert found["wrong"] == wrong
    assert [row["policy"] for row in found["policies"]] == [*map(str, (*CANDIDATES, *BASELINES)), "oracle"]


def test_the_model_is_left_as_it_was(metrics):
    model = model_with(CANDIDATES[1])
    with_ode(model, CANDIDATES, BASELINES, {"size": Dynamic(CANDIDATES, by_size)}, {"size": 0.0}, batches())
    assert model[0].integrator == CANDIDATES[1]
    assert model[0].options.batched


def test_a_model_without_an_ode():
    # the threshold alone: 1 is predicted where x > 0.2, everywhere but at samples 1 and 2
    model = nn.Sequential(nn.Linear(1, 1, bias=False), Threshold())
    nn.init.ones_(model[0].weight)
    assert without_ode(model, batches()) == {
        "samples": 8,
        "wrong": [2, 4, 5],
        "policies": [{"policy": "no ODE", "accuracy": 5 / 8}],
    }


def test_everything_right_is_an_empty_list():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), Threshold())
    nn.init.ones_(model[0].weight)
    assert without_ode(model, [(X[:2], LABELS[:2])])["wrong"] == []
