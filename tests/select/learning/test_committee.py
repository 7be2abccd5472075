from itertools import combinations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import RK4, ClassificationCost, Euler, PooledNetwork
from dise.select import Committee, ConfidenceNetwork, Costs, CostSelector, cross_fit, selector_choice
from dise.select.learning import committee as module


def samples(number, *, seed=0):
    """RK4 is always right; Euler where the state's first feature is above 0.3."""
    h0 = torch.rand(number, 2, generator=torch.Generator().manual_seed(seed))
    error = torch.stack([(h0[:, 0] <= 0.3).float(), torch.zeros(number)], 1)
    return Costs((Euler(), RK4()), h0, -h0, torch.tensor([1, 4]).expand(number, 2), error, ClassificationCost())


def network():
    return PooledNetwork(2, 2)


def selector(seed):
    """Of random weights and its own standardisation."""
    torch.manual_seed(seed)
    made = CostSelector(network(), candidates=2)
    for buffer in made.buffers():
        buffer.copy_(torch.rand_like(buffer) + 0.5)
    return made


# ---- Committee


@pytest.mark.host
def test_a_committee_predicts_the_mean_of_its_members():
    members, costs = [selector(seed) for seed in range(3)], samples(7)
    with torch.no_grad():
        mean = sum(member(costs.h0, costs.k1) for member in members) / 3
        assert_close(Committee(members)(costs.h0, costs.k1), mean)


class Plain(nn.Module):
    """No FeatureNetwork."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, h0, k1):
        return self.layer(h0 + 2 * k1)


@pytest.mark.host
def test_any_network_will_do():
    torch.manual_seed(0)
    members, costs = [CostSelector(Plain(), candidates=2) for _ in range(2)], samples(5)
    with torch.no_grad():
        mean = (members[0](costs.h0, costs.k1) + members[1](costs.h0, costs.k1)) / 2
        assert_close(Committee(members)(costs.h0, costs.k1), mean)


@pytest.mark.host
def test_the_members_share_one_evaluation_of_the_head():
    calls = []

    class Head(nn.Linear):
        def forward(self, h):
            calls.append(len(h))
            return super().forward(h)

    head = Head(2, 3)
    committee = Committee(CostSelector(ConfidenceNetwork(head, 2, classes=3), candidates=2) for _ in range(4))
    assert committee(torch.zeros(6, 2), torch.zeros(6, 2)).shape == (6, 2)
    assert calls == [6]


@pytest.mark.host
def test_weights_of_a_committee_can_be_restored():
    one, other = (Committee(selector(seed + i) for i in range(2)) for seed in (0, 9))
    costs = samples(5)
    assert not torch.equal(one(costs.h0, costs.k1), other(costs.h0, costs.k1))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(costs.h0, costs.k1), other(costs.h0, costs.k1))


def test_a_committee_has_members():
    with pytest.raises(ValueError, match="members: expected at least one selector"):
        Committee([])


# ---- cross_fit


@pytest.fixture
def fits(monkeypatch):
    """Samples (by their row) that each member is fitted to. A member's answer tells nothing but who it is."""
    seen = []

    def fit(network, costs, *, seed):
        member = CostSelector(network, candidates=2)
        member.seen = set(costs.h0[:, 0].tolist())
        seen.append((member.seen, seed))
        return member

    monkeypatch.setattr(module.CostSelector, "fit", fit)
    return seen


def numbered(number):
    """Samples that know their row."""
    h0 = torch.arange(number, dtype=torch.float32).unsqueeze(1).expand(number, 2).contiguous()
    return Costs((Euler(), RK4()), h0, h0, torch.tensor([1, 4]).expand(number, 2), 0 * h0, ClassificationCost())


@pytest.mark.parametrize("folds", [3, 4, 5])
def test_each_member_leaves_two_parts_out_and_decides_for_no_sample_that_it_has_seen(fits, monkeypatch, folds):
    decided = []

    def record(selector, costs):
        decided.append((selector.members, set(costs.h0[:, 0].tolist())))
        return torch.zeros(len(costs), dtype=torch.int64)

    monkeypatch.setattr(module, "selector_choice", record)
    committee, choice = cross_fit(numbered(22), network, folds=folds)
    assert len(committee.members) == len(fits) == folds * (folds - 1) // 2
    assert torch.equal(choice, torch.zeros(22, dtype=torch.int64))
    parts = [part for _, part in decided]
    assert set.union(*parts) == set(range(22))
    assert sum(map(len, parts)) == 22
    left_out = [set(range(22)) - seen for seen, _ in fits]
    assert left_out == [one | other for one, other in combinations(parts, 2)]
    for members, part in decided:
        assert len(members) == folds - 1
        assert not any(member.seen & part for member in members)
    # members begin from weights of their own
    assert len({seed for _, seed in fits}) == len(fits)


def test_choices_are_those_of_the_members_that_have_not_seen_the_sample():
    costs = samples(60)
    committee, choice = cross_fit(costs, network, folds=3, seed=5)
    parts = torch.randperm(60, generator=torch.Generator().manual_seed(5)).tensor_split(3)
    for part, members in zip(parts, [(0, 1), (0, 2), (1, 2)], strict=True):
        unaware = Committee(committee.members[i] for i in members)
        assert torch.equal(choice[part], selector_choice(unaware, costs.take(part)))


@pytest.mark.host
def test_what_can_be_learnt_is_learnt():
    costs = samples(400)
    committee, choice = cross_fit(costs, network)
    assert not any(part.training for part in committee.modules())
    fresh = samples(1000, seed=1)
    for seen, routed in ((costs, choice), (fresh, selector_choice(committee, fresh))):
        hard = seen.h0[:, 0] <= 0.3
        # a wrong answer costs 13 times as much as going from Euler to RK4, so it is taken near the border, too
        assert routed[hard].double().mean() > 0.97
        assert routed[~hard].double().mean() < 0.35


@pytest.mark.host
def test_a_cross_fit_depends_on_its_seed_alone():
    costs, before = samples(80), torch.get_rng_state()
    first, chosen = cross_fit(costs, network, folds=3, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again, repeated = cross_fit(costs, network, folds=3, seed=3)
    assert torch.equal(chosen, repeated)
    weights = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


@pytest.mark.parametrize("folds", [2, 21])
def test_folds_that_do_not_work(folds):
    with pytest.raises(ValueError, match="folds: expected 3 to 20"):
        cross_fit(samples(20), network, folds=folds)


# ---- route


def test_nan_never_wins_a_sample():
    """Of more samples than are scored at once."""
    costs = samples(1100)
    nan = costs.h0[:, 0] < 0.5

    def scores(h0, k1):
        cheap = torch.where(h0[:, 0] < 0.5, torch.nan, 0.0)
        return torch.stack([cheap, torch.ones(len(h0))], 1)

    assert torch.equal(selector_choice(scores, costs), nan.long())
