import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import RK4, Cascade, Dopri5, Dynamic, Euler, HeunEuler, Midpoint
from dise.select import Costs, Outcomes, RiskCost
from dise.select.make_dynamic.families import FACTORS, families, gap_cascades, one_for_all

REFERENCE = Dopri5()
CANDIDATES = (Euler(1), Midpoint(1), RK4(1), RK4(2), REFERENCE)
NFE = torch.tensor([1, 2, 4, 8, 14])


def made(off, *, number=400, seed=0):
    """Outcomes of a classifier of two classes whose gap each candidate is off the reference's by off[k], up or down."""
    draw = torch.Generator().manual_seed(seed)
    gap = 4 * torch.randn(number, 1, generator=draw)
    sign = torch.randint(2, (number, len(off)), generator=draw) * 2 - 1
    logits = torch.stack([torch.zeros(number, len(off)), gap + sign * torch.tensor(off)], 2)
    h0 = torch.randn(number, 3, generator=draw)
    candidates = (*CANDIDATES[: len(off) - 1], REFERENCE)
    nfe = torch.cat([NFE[: len(off) - 1], NFE[-1:]]).expand(number, len(off))
    return Outcomes(candidates, h0, -h0, nfe, logits, torch.zeros(number))


def costs_of(outcomes):
    return Costs.of(outcomes, RiskCost())


def test_single_candidates_are_those_nearer_the_reference_than_all_that_are_cheaper():
    """RK4 is farther off than Midpoint; none of the others loses a sample, and still they are told apart."""
    outcomes = made([1e-3, 1e-5, 1e-4, 1e-6, 0.0])
    assert costs_of(outcomes).adequate.double().mean() > 0.999
    assert one_for_all(costs_of(outcomes), outcomes.output).settings == (RK4(2), Midpoint(1), Euler(1))


def test_a_cascades_thresholds_are_in_proportion_to_what_its_candidates_are_off_by():
    outcomes = made([1.0, 0.25, 0.0])
    family = gap_cascades(outcomes, nn.Identity())
    assert family.name == "cascade Euler → Midpoint → Dopri5"
    assert len(family.settings) == len(FACTORS)
    thresholds = torch.tensor([[rule.threshold for rule in setting.accept] for setting in family.settings])
    # the gap is a distance from 0, so a sample near 0 may be off by less
    assert_close(thresholds, torch.tensor(FACTORS)[:, None] * torch.tensor([1.0, 0.25]), rtol=1e-3, atol=0)
    assert (thresholds[:-1] > thresholds[1:]).all()
    assert {setting.candidates for setting in family.settings} == {outcomes.candidates}


@pytest.mark.parametrize("classifies", [True, False])
def test_the_families_of_a_model(classifies):
    outcomes = made([1.0, 0.25, 0.0])
    found = families(
        costs_of(outcomes),
        outcomes,
        nn.Linear(3, 2),
        classifies=classifies,
        epsilon=0.01,
        span=1.0,
        device=torch.device("cpu"),
    )
    names = [family.name for family in found]
    assert "one candidate for all" in names
    assert ("cascade Euler → Midpoint → Dopri5" in names) == classifies
    assert ("selector on the head's confidence" in names) == classifies
    assert [family.learnt for family in found] == [name.startswith(("selector", "forecast")) for name in names]
    probes = next(family for family in found if family.name == "embedded error of HeunEuler")
    first, last = probes.settings[0].candidates
    assert (type(first), first.max_steps, first.first_step, last) == (HeunEuler, 1, "span", REFERENCE)
    kinds = {type(setting) for family in found for setting in family.settings}
    assert {Cascade, Dynamic} <= kinds


def test_a_selectors_settings_share_it_and_differ_in_its_dial():
    outcomes = made([1.0, 0.25, 0.0])
    options = {"classifies": False, "epsilon": 0.01, "span": 1.0, "device": torch.device("cpu")}
    found = families(costs_of(outcomes), outcomes, None, **options)
    (family,) = [family for family in found if family.learnt]
    dials = [setting.selector.dial for setting in family.settings]
    assert dials == sorted(dials, reverse=True)
    assert len({id(setting.selector.network) for setting in family.settings}) == 1


def test_too_few_samples_for_a_selector():
    outcomes = made([1.0, 0.25, 0.0], number=100)
    options = {"classifies": False, "epsilon": 0.01, "span": 1.0, "device": torch.device("cpu")}
    assert not any(f.learnt for f in families(costs_of(outcomes), outcomes, None, **options))
