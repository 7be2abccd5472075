"""Models of several inputs get policies: each sample's condition follows it, whoever integrates it."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import (
    RK4,
    Bosh3,
    Cascade,
    ClassificationCost,
    CostSelector,
    DiagonalNormal,
    Dopri5,
    Dynamic,
    Euler,
    Flow,
    FlowSampler,
    Midpoint,
    NeuralODE,
    PooledNetwork,
    calibrate,
    collect_costs,
    load_policy,
    make_dynamic,
    profile_candidates,
    run_candidates,
    save_policy,
    solve,
)
from dise.select import Committee, OutputDeviation, RiskCost, cross_fit, find_head, nfe_with_overhead, selector_choice
from dise.select.make_dynamic.samples import collect_samples
from dise.select.make_dynamic.stem import without_stem
from dise.select.model.inputs import Inputs

REFERENCE = Dopri5(rtol=1e-6, atol=1e-6)


class Turn(nn.Module):
    """Points that turn by an angle per sample: dy/dt = rate · (−y₂, y₁)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.weight.weight.copy_(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))

    def forward(self, t, y, rate):
        return rate[:, None] * self.weight(y)


class Turned(nn.Module):
    """(x, rate) → the turned point, or logits of it."""

    def __init__(self, *, head=None):
        super().__init__()
        self.stem = nn.Identity()
        self.block = NeuralODE(Turn(), REFERENCE)
        self.head = head or nn.Identity()

    def forward(self, x, rate):
        return self.head(self.block(self.stem(x), sample_args=(rate,)))


class ByCondition(nn.Module):
    """Scores by the condition alone: Euler for slow samples, RK4 for others, DOPRI for the fastest."""

    conditional = True

    def forward(self, h0, k1, rate):
        kind = (rate.abs() > 0.3).long() + (rate.abs() > 1.2).long()
        return 1 - nn.functional.one_hot(kind, 3).to(h0.dtype)


CANDIDATES = (Euler(1), RK4(2), Dopri5(rtol=1e-5, atol=1e-5))


def points(number, seed=0):
    draw = torch.Generator().manual_seed(500 + seed)
    x = torch.randn(number, 2, dtype=torch.float64, generator=draw)
    return x, 2 * torch.rand(number, dtype=torch.float64, generator=draw)


def exact(x, rate):
    """The turned points in closed form."""
    cos, sin = rate.cos(), rate.sin()
    return torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], 1)


def test_candidates_are_run_with_the_conditions_of_each_sample():
    model, (x, rate) = Turned().eval(), points(60)
    for data in ((x, rate), [(x[:7], rate[:7]), (x[7:], rate[7:])], {"rate": rate, "x": x}, [((x, rate), rate)]):
        outcomes = run_candidates(model, data, CANDIDATES)
        assert_close(outcomes.output[:, -1], exact(x, rate), rtol=0, atol=1e-4)
        assert_close(outcomes.output[:, 0], x + rate[:, None] * torch.stack([-x[:, 1], x[:, 0]], 1))
        assert_close(outcomes.k1, rate[:, None] * torch.stack([-x[:, 1], x[:, 0]], 1))
        assert torch.equal(outcomes.conditions[0], rate)


def test_conditions_of_other_shapes_in_other_batches_are_left_out():
    class Padded(Turned):
        def forward(self, x, sequence):
            return self.block(x, sample_args=(sequence,))

    model, (x, rate) = Padded().eval(), points(20)
    model.block.f.forward = lambda t, y, sequence: sequence.sum(1, keepdim=True) * y
    data = [(x[:8], rate[:8, None]), (x[8:], torch.stack([rate[8:], 0 * rate[8:]], 1))]
    outcomes = run_candidates(model, data, CANDIDATES)
    assert outcomes.conditions == ()
    assert_close(outcomes.output[:, -1], rate.exp()[:, None] * x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "policy",
    [
        Dynamic(CANDIDATES, ByCondition()),
        Dynamic(CANDIDATES, lambda h0, k1: torch.stack([k1.norm(dim=1), 1 - h0[:, 0], h0[:, 1]], 1)),
        Cascade(
            (Bosh3(rtol=1e-2, atol=1e-2, first_step="span", max_steps=1), Dynamic(CANDIDATES[1:], ByCondition())),
            lambda y: y[:, 0] > 0,
        ),
        Cascade((Euler(1), Midpoint(2), REFERENCE), lambda y: (3 * y.sum(1)).sin() > 0),
    ],
    ids=["selector of conditions", "selector of states", "nested", "cascade"],
)
def test_a_policy_gives_each_sample_what_its_candidate_gives_it_alone(policy):
    if policy.candidates[-1].chooses:  # two candidates for a selector of three scores
        policy = Cascade((policy.candidates[0], Dynamic(CANDIDATES, ByCondition())), policy.accept)
    model, (x, rate) = Turned().eval(), points(50, seed=1)
    rate[3], rate[4] = 0.0, 0.29
    with model.block.using(policy), model.block.recording() as records:
        together = model(x, rate)
        alone = torch.cat([model(x[i : i + 1], rate[i : i + 1]) for i in range(50)])
    assert_close(together, alone, rtol=1e-12, atol=1e-12)
    whole, *single = (record.solution for record in records)
    assert torch.equal(whole.nfe, torch.cat([solution.nfe for solution in single]))
    assert torch.equal(whole.choice, torch.cat([solution.choice for solution in single]))
    assert len(whole.choice.unique()) > 1


def test_a_selector_of_conditions_is_given_the_rows_that_it_scores():
    seen = []

    class Watching(ByCondition):
        def forward(self, h0, k1, rate):
            seen.append((h0, k1, rate))
            return super().forward(h0, k1, rate)

    model, (x, rate) = Turned().eval(), points(9)
    policy = Cascade((Euler(1), Dynamic(CANDIDATES, Watching())), lambda y: y[:, 0] > 0)
    left = (x + model.block.f(0, x, rate))[:, 0] <= 0
    with model.block.using(policy):
        model(x, rate)
    ((h0, k1, condition),) = seen
    assert torch.equal(h0, x[left])
    assert torch.equal(condition, rate[left])
    assert torch.equal(k1, model.block.f(0, x, rate)[left])


def test_a_whole_batch_may_be_decided_by_its_conditions():
    model, (x, rate) = Turned().eval(), points(9)
    policy = Dynamic(CANDIDATES, ByCondition(), granularity="batch")
    with model.block.using(policy), model.block.recording() as records:
        model(x, 0 * rate)
        model(x, 0 * rate + 1.5)
    assert [record.solution.choice.unique().tolist() for record in records] == [[0], [2]]


def test_selectors_are_fitted_to_conditions_that_states_do_not_show():
    """At h0 = 0 and k1 = 0 only the condition tells the samples apart."""

    class Late(nn.Module):
        def forward(self, t, y, rate):
            return (t > 0) * rate[:, None] + 0 * y

    block = NeuralODE(Late(), Midpoint(1))
    hidden = torch.rand(400, generator=torch.Generator().manual_seed(1)).round()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, condition):
            return self.block(torch.zeros(len(condition), 1), sample_args=(condition,))

    model = Model().eval()
    rule = RiskCost(risk=OutputDeviation(0.1), alpha=1.0, M=3)
    costs = collect_costs(model, hidden, (Euler(1), Midpoint(1)), rule)
    network = PooledNetwork(1, 2, condition_channels=1)
    selector = CostSelector.fit(network, costs, max_epochs=40, learning_rate=1e-2)
    assert selector.conditional
    assert torch.equal(selector_choice(selector, costs), hidden.long())
    blind = CostSelector.fit(PooledNetwork(1, 2), costs, max_epochs=3)
    assert len(selector_choice(blind, costs).unique()) == 1
    committee, choice = cross_fit(costs, lambda: PooledNetwork(1, 2, condition_channels=1), folds=3)
    assert committee.conditional
    assert torch.equal(choice, hidden.long())
    assert not Committee([blind]).conditional
    policy = Dynamic(costs.candidates, committee)
    with block.using(policy), block.recording() as records:
        assert torch.equal(model(hidden)[:, 0], hidden)
    assert torch.equal(records[0].solution.choice, hidden.long())


def test_the_overhead_of_a_selector_of_conditions_is_counted():
    network = PooledNetwork(2, 3, condition_channels=1)
    model, (x, rate) = Turned().eval().float(), points(9)
    policy = Dynamic(CANDIDATES, CostSelector(network, candidates=3))
    with model.block.using(policy), model.block.recording() as records:
        model(x.float(), rate.float())
        nfe = nfe_with_overhead(model.block, policy, records)
    # (8 + 2) features → 32 → 3, beside the field's 2 × 2
    assert_close(nfe, records[0].solution.nfe.double() + (10 * 32 + 32 * 3) / 4)


def test_time_is_measured_with_conditions():
    model, (x, rate) = Turned().eval(), points(8)
    profile = profile_candidates(model, [(x, rate)], CANDIDATES[:2], batches=(1, 3), repeats=2)
    assert profile.nfe.tolist() == [[1, 8], [1, 8]]


def test_the_model_without_its_stem_keeps_conditions():
    head = nn.Linear(2, 3, dtype=torch.float64)
    model, (x, rate) = Turned(head=head).eval(), points(40)
    found = find_head(model, model.block, (x, rate))
    assert found is head
    samples = collect_samples("data", [((x, rate), None)], model)
    short, (without,) = without_stem(model, model.block, head, REFERENCE, [samples])
    assert short is not model
    assert_close(without.inputs.call(short), model(x, rate))


def test_a_classifier_with_a_condition_is_made_dynamic(tmp_path):
    torch.manual_seed(1)
    head = nn.Linear(2, 3, dtype=torch.float64)
    model, (x, rate), label = Turned(head=head).eval(), points(400), torch.arange(400) % 3
    more = points(600, seed=2)
    by_name = {"rate": more[1], "x": more[0]}
    make_dynamic(model, ((x, rate), label), epsilon=0.02, learn_from=by_name, candidates=CANDIDATES)
    report = model.block.report
    assert report.nfe < 0.5 * report.reference_nfe
    assert report.score.name == "accuracy"
    assert report.timing is not None
    assert "selector on the state's channels and the condition" in report.families
    new = points(2000, seed=3)
    with torch.no_grad():
        dynamic = model(*new)
        with model.block.using(REFERENCE):
            full = model(*new)
    assert (dynamic.argmax(1) != full.argmax(1)).double().mean() <= 0.02
    save_policy(model, tmp_path)
    again = Turned(head=nn.Linear(2, 3, dtype=torch.float64))
    again.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("block.policy")})
    load_policy(again, tmp_path)
    assert torch.equal(again(*new), dynamic)


def test_a_model_whose_inputs_do_not_agree_is_refused_by_name():
    model, (x, rate) = Turned().eval(), points(400)
    arguments = {"risk": OutputDeviation(0.1), "epsilon": 0.1}
    with pytest.raises(ValueError, match=r"data: the model's forward.* missing a required argument: 'rate'"):
        make_dynamic(model, x, **arguments)
    with pytest.raises(ValueError, match=r"learn_from: .*got 400 in input 1, 7 in input 2"):
        make_dynamic(model, ((x, rate), None), learn_from=((x, rate[:7]), None), **arguments)
    with pytest.raises(ValueError, match=r"data: expected input 2 of one shape in all batches, got samples of"):
        make_dynamic(model, [((x, rate), None), ((x, rate[:, None]), None)], **arguments)
    with pytest.raises(ValueError, match="same number of rows, got 400 in input 1, 3 in input 2"):
        calibrate(model, [Euler()], ((x, rate[:3]), None), reference=REFERENCE, **arguments)


def test_a_block_on_torchdiffeq_that_takes_a_condition_is_refused():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.span = Turn(), torch.tensor([0.0, 1.0])

        def forward(self, x, rate):
            return solve(self.f, x, 0.0, 1.0, RK4(4), sample_args=(rate,)).y

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Block()

        def forward(self, x, rate):
            return self.inner(x, rate)

    x, rate = points(400)
    with pytest.raises(ValueError, match="block: a block on torchdiffeq can be replaced if it is called with a state"):
        make_dynamic(Model(), ((x, rate), None), block="inner", risk=OutputDeviation(0.1), epsilon=0.1)


class Stretch(nn.Module):
    """Transports N(0, 1) to N(m, s²) with condition (m, log s): x(t) = t·m + sᵗ·z, harder the larger |log s|."""

    def forward(self, t, x, condition):
        mean, log_scale = condition[:, :1], condition[:, 1:]
        return mean + log_scale * (x - t * mean)


def noise(number, seed):
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(number, 2, generator=draw)
    return z, torch.stack([torch.randn(number, generator=draw), 4 * torch.rand(number, generator=draw) ** 3], 1)


def test_a_conditional_sampler_is_certified_on_free_noise(tmp_path):
    flow = Flow(Stretch(), DiagonalNormal(torch.zeros(2), torch.ones(2)), Dopri5(rtol=1e-4, atol=1e-4))
    sampler, risk = FlowSampler(flow), OutputDeviation(0.05)
    candidates = (Euler(1), Midpoint(1), RK4(1), RK4(2), RK4(4))
    data = noise(2000, 1), None
    make_dynamic(sampler, data, risk=risk, epsilon=0.05, candidates=candidates)
    report, policy = sampler.block.report, sampler.block.integrator
    assert report.family == "selector on the state's channels and the condition"
    assert report.nfe < 0.85 * report.families["one candidate for all"] < report.reference_nfe

    z, condition = noise(5000, 2)
    with torch.no_grad(), sampler.block.recording() as records:
        x = sampler(z, condition)
    exact = condition[:, :1] + condition[:, 1:].exp() * z
    with torch.no_grad(), sampler.block.using(flow.block.integrator):
        reference = sampler(z, condition)
    assert_close(reference, exact, rtol=1e-3, atol=1e-3)
    assert risk(x, reference, None).mean() <= 0.05
    choice = records[0].solution.choice
    for index, candidate in enumerate(policy.candidates):
        rows = choice == index
        with torch.no_grad(), sampler.block.using(candidate):
            assert_close(x[rows], sampler(z[rows], condition[rows]), rtol=1e-5, atol=1e-5)
    assert len(choice.unique()) >= 3

    save_policy(sampler, tmp_path)
    again = load_policy(FlowSampler(flow), tmp_path)
    with torch.no_grad():
        assert torch.equal(again(z, condition), x)
    torch.manual_seed(0)
    drawn = again.sample(500, condition[:1])
    torch.manual_seed(0)
    assert_close(drawn, exact_sample(flow, condition[:1], 500), rtol=0, atol=0.2)
    assert flow.block.integrator == Dopri5(rtol=1e-4, atol=1e-4)


def exact_sample(flow, condition, number):
    return condition[:, :1] + condition[:, 1:].exp() * flow.base.sample((number,))


def test_a_sampler_refuses_what_is_no_condition():
    flow = Flow(Stretch(), DiagonalNormal(torch.zeros(2), torch.ones(2)), Euler())
    z, condition = noise(5, 0)
    with pytest.raises(ValueError, match="condition: expected 5 rows or one for all"):
        FlowSampler(flow)(z, condition[:3])
    with pytest.raises(TypeError, match="condition: expected a tensor"):
        FlowSampler(flow)(z, "fast")
    with pytest.raises(ValueError, match="may be an input or the target"):
        run_candidates(FlowSampler(flow), [(z, condition)], (Euler(),))


def test_a_risk_with_labels_of_a_conditional_model():
    head = nn.Linear(2, 3, dtype=torch.float64)
    model, (x, rate) = Turned(head=head).eval(), points(30)
    costs = collect_costs(model, (x, rate, torch.zeros(30, dtype=torch.long)), CANDIDATES, ClassificationCost())
    assert torch.equal(costs.adequate[:, -1], model(x, rate).argmax(1) == 0)
    assert torch.equal(costs.take(torch.tensor([4, 2])).conditions[0], rate[[4, 2]])
    assert Inputs.of((x, rate)).device == x.device
