import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import RK4, Dopri5, Euler, NeuralODE, solve
from dise.select import (
    BinaryCost,
    ClassificationCost,
    Costs,
    TaskErrorCost,
    channel_means,
    collect_costs,
    find_block,
    joined,
    run_candidates,
)
from dise.select.judging.cost import device_of

# ---- Eq. 4


@pytest.mark.parametrize(
    ("alpha", "M", "nfe", "right", "expected"),
    [
        (0.5, 100.0, 4, True, 2.0),
        (0.5, 100.0, 9, True, 3.0),
        (0.5, 100.0, 4, False, 10.0),
        (1.0, 50.0, 7, True, 7.0),
        (1.0, 50.0, 7, False, 50.0),
        # the paper's α and M: 14^0.3, 1^0.3, 1000^0.3
        (0.3, 1000.0, 14, True, 2.20719),
        (0.3, 1000.0, 1, True, 1.0),
        (0.3, 1000.0, 1, False, 7.94328),
    ],
)
def test_eq4_by_hand(alpha, M, nfe, right, expected):
    cost = ClassificationCost(alpha=alpha, M=M)(torch.tensor([[nfe]]), torch.tensor([[0.0 if right else 1.0]]))
    assert cost.item() == pytest.approx(expected, rel=1e-5)


def test_eq4_is_taken_entry_by_entry():
    nfe = torch.tensor([[1, 4, 16], [1, 4, 25]])
    right = torch.tensor([[True, True, False], [False, False, True]])
    expected = torch.tensor([[1.0, 2.0, 30.0], [30.0, 30.0, 5.0]])
    assert_close(ClassificationCost(alpha=0.5, M=900)(nfe, (~right).float()), expected)


@pytest.mark.parametrize(("M", "largest"), [(14, 14), (10, 14), (2, 3)])
def test_penalty_below_an_nfe_is_refused(M, largest):
    with pytest.raises(
        ValueError, match=rf"M: expected more than the largest price of an adequate result, {largest}, got {M}"
    ):
        ClassificationCost(M=M)(torch.tensor([[1, largest]]), torch.zeros(1, 2))


@pytest.mark.parametrize("name", ["alpha", "M"])
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_alpha_and_penalty_are_positive_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected a positive number"):
        ClassificationCost(**{name: value})


def test_defaults_are_the_papers():
    assert ClassificationCost() == ClassificationCost(alpha=0.3, M=1000)


def test_no_samples_cost_nothing():
    nfe = torch.zeros(0, 3, dtype=torch.int64)
    assert ClassificationCost()(nfe, nfe.float()).shape == (0, 3)


def test_adequate_compares_every_candidates_prediction_with_the_label():
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[3.0, 2.0], [2.0, 3.0]]])
    rule = ClassificationCost()
    error = rule.error(logits, torch.tensor([1, 0]))
    assert error.tolist() == [[0, 1], [0, 1]]
    assert rule.adequate(error).tolist() == [[True, False], [True, False]]


# ---- Eq. 5


def distance(output, target):
    return (output - target[:, None]).abs()


RULE = TaskErrorCost(alpha=0.5, M=100.0, task_error=distance, beta=2.0, resolution=0.25)


def test_eq5_by_hand():
    """(Δ·Γ)^α up to β, M^α above; errors below the resolution count as it."""
    error = RULE.error(torch.tensor([[5.0, 3.0, 6.5]]), torch.tensor([5.0]))
    assert error.tolist() == [[0, 2, 1.5]]
    assert RULE.adequate(error).all()
    assert_close(RULE(torch.tensor([[16, 8, 6]]), error), torch.tensor([[2.0, 4.0, 3.0]]))
    assert RULE(torch.tensor([[16]]), torch.tensor([[2.1]])).item() == pytest.approx(10)


def test_eq5_refuses_a_price_above_the_penalty_only_where_it_counts():
    assert RULE(torch.tensor([[10**6]]), torch.tensor([[39.0]])).item() == pytest.approx(10)
    with pytest.raises(ValueError, match="M: expected more than the largest price of an adequate result, 100"):
        RULE(torch.tensor([[50]]), torch.tensor([[2.0]]))


@pytest.mark.parametrize(("beta", "resolution"), [(1.0, 2.0), (1.0, 0.0), (math.inf, 1.0), (math.nan, 1.0)])
def test_eq5_needs_a_resolution_up_to_beta(beta, resolution):
    with pytest.raises(ValueError, match="beta, resolution: expected 0 < resolution <= beta"):
        TaskErrorCost(task_error=distance, beta=beta, resolution=resolution)


def test_eq5_refuses_errors_of_the_wrong_kind():
    rule = TaskErrorCost(task_error=lambda output, target: output, beta=1.0, resolution=0.1)
    with pytest.raises(ValueError, match="task_error: expected errors of at least 0, got -3"):
        rule.error(torch.tensor([[-3.0]]), torch.zeros(1))


def test_eq5_mirrored_by_hand():
    """(Δ/Γ)^α from β up, M^α below; Γ above the resolution counts as it; below β it may be anything."""
    rule = TaskErrorCost(
        alpha=0.5, M=100, task_error=lambda output, target: output, beta=0.5, resolution=4.0, larger_is_better=True
    )
    quality = rule.error(torch.tensor([[0.25, 0.5, 2.0, 9.0, -3.0, 0.0]]), torch.zeros(1))
    assert rule.adequate(quality).tolist() == [[False, True, True, True, False, False]]
    expected = torch.tensor([[10, 8**0.5, 2**0.5, 1, 10, 10]])  # 4/0.5, 4/2, 4/4
    assert_close(rule(torch.tensor([[4] * 6]), quality), expected)


def test_eq5_mirrored_needs_a_resolution_from_beta_on():
    with pytest.raises(ValueError, match="beta, resolution: expected 0 < beta <= resolution, got beta=2, resolution=1"):
        TaskErrorCost(task_error=distance, beta=2, resolution=1, larger_is_better=True)


# ---- running the candidates

CANDIDATES = (Euler(1), Euler(2), RK4(1))


def batches(*sizes):
    """Batches of x [n, 2] that count upwards, and labels that alternate."""
    x = torch.arange(1.0, 1 + 2 * sum(sizes)).reshape(-1, 2)
    y = torch.arange(sum(sizes)) % 2
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


@pytest.mark.parametrize("sizes", [(5,), (2, 3), (2, 2, 1)])
def test_outcomes_of_a_model_worked_out_by_hand(toy_model, sizes):
    x = torch.arange(1.0, 11.0).reshape(5, 2)
    outcomes = run_candidates(toy_model, batches(*sizes), CANDIDATES)
    assert len(outcomes) == 5
    assert outcomes.candidates == CANDIDATES
    assert_close(outcomes.h0, 2 * x)
    assert_close(outcomes.k1, -2 * x)
    assert outcomes.nfe.tolist() == [[1, 2, 4]] * 5
    assert_close(outcomes.output, torch.stack([0 * x, 6 * x / 4, 6 * x * 0.375], 1))
    assert outcomes.target.tolist() == [0, 1, 0, 1, 0]


def test_nfe_and_output_of_dopri_are_those_of_solving_alone(toy_model):
    (x, y), candidate = batches(3)[0], Dopri5(rtol=1e-6, atol=1e-6)
    outcomes = run_candidates(toy_model, [(x, y)], [Euler(), candidate])
    alone = solve(lambda t, y: -y, 2 * x, 0.0, 1.0, candidate)
    assert torch.equal(outcomes.nfe[:, 1], alone.nfe)
    assert_close(outcomes.output[:, 1], 6 * x / math.e, rtol=1e-5, atol=0)


class Late:
    """An input that is no tensor: states [B, 1] and the times [B] at which they start."""

    def __init__(self, y0, t0):
        self.y0, self.t0, self.device = y0, t0, y0.device

    def __len__(self):
        return len(self.y0)

    def to(self, device):
        return Late(self.y0.to(device), self.t0.to(device))


def test_inputs_that_are_no_tensors_and_start_when_they_say():
    class Field(nn.Module):
        def forward(self, t, y):
            return t * y

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.scale = NeuralODE(Field(), Euler(), t1=3.0), nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.scale * self.block(x.y0, t0=x.t0)

    x = Late(torch.tensor([[1.0], [10.0]]), torch.tensor([1.0, 2.0]))
    outcomes = run_candidates(Model(), [(x, torch.zeros(2)), (x, torch.ones(2))], (Euler(1), Euler(2)))
    assert_close(outcomes.k1, torch.tensor([[1.0], [20.0]] * 2))  # t·y at their own start
    # y + (3 − t0)·t0·y; two steps: y (1 + h t0)(1 + h (t0 + h)) of h = (3 − t0)/2
    expected = torch.tensor([[[3.0], [2.0 * 3.0]], [[30.0], [10.0 * 2.0 * 2.25]]])
    assert_close(outcomes.output, 2 * torch.cat([expected, expected]))
    assert outcomes.target.tolist() == [0, 0, 1, 1]


def test_running_candidates_leaves_the_model_as_it_was(toy_model):
    run_candidates(toy_model, batches(2), CANDIDATES)
    assert find_block(toy_model).integrator == Euler()


def test_outcomes_need_no_gradient(toy_model):
    outcomes = run_candidates(toy_model, batches(2), CANDIDATES)
    assert not any(x.requires_grad for x in (outcomes.output, outcomes.h0, outcomes.k1))


def test_costs_of_a_model_worked_out_by_hand(toy_model):
    # the second of two growing features is always larger where it is scaled by a positive number: prediction 1;
    # one Euler step gives zeros: prediction 0
    costs = collect_costs(toy_model, batches(2, 2), CANDIDATES, ClassificationCost(alpha=0.5, M=100))
    assert costs.adequate.tolist() == [[True, False, False], [False, True, True]] * 2
    assert_close(costs.cost, torch.tensor([[1, 10, 10], [10, 2**0.5, 2]] * 2))
    assert costs.rule == ClassificationCost(alpha=0.5, M=100)
    assert len(costs) == 4


def test_costs_are_eq4s_with_the_papers_settings_by_default(toy_model):
    outcomes = run_candidates(toy_model, batches(3), CANDIDATES)
    costs = collect_costs(toy_model, batches(3), CANDIDATES)
    assert_close(costs.cost, Costs.of(outcomes, ClassificationCost(alpha=0.3, M=1000)).cost)
    assert costs.rule == ClassificationCost()


def test_among_keeps_some_candidates_and_everything_a_selector_sees(toy_model):
    costs = collect_costs(toy_model, batches(3), CANDIDATES)
    some = costs.among((2, 0))
    assert some.candidates == (CANDIDATES[2], CANDIDATES[0])
    for name in ("nfe", "adequate", "cost"):
        assert torch.equal(getattr(some, name), getattr(costs, name)[:, [2, 0]])
    assert some.h0 is costs.h0
    assert some.k1 is costs.k1
    assert some.rule == costs.rule


def test_binary_answers_are_yes_above_the_threshold():
    """Probabilities 0.1, 0.3, 0.6 against a no and a yes; the log-odds are exact enough."""
    logits = torch.tensor([0.1, 0.3, 0.6]).logit().expand(2, 3)
    error = BinaryCost(threshold=0.25).error(logits, torch.tensor([0.0, 1.0]))
    assert error.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert BinaryCost().error(logits, torch.tensor([0.0, 1.0])).tolist() == [[0, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 2, float("nan")])
def test_a_threshold_that_is_no_probability(threshold):
    with pytest.raises(ValueError, match="threshold: expected a number between 0 and 1"):
        BinaryCost(threshold=threshold)


# ---- errors


def test_no_candidates(toy_model):
    with pytest.raises(ValueError, match="candidates: expected at least one integrator"):
        run_candidates(toy_model, batches(1), [])


def test_no_data(toy_model):
    with pytest.raises(ValueError, match="data: expected batches"):
        run_candidates(toy_model, [], CANDIDATES)


@pytest.mark.parametrize("blocks", [0, 2])
def test_a_model_has_one_block(decay, blocks):
    model = nn.Sequential(nn.Linear(2, 2), *(NeuralODE(decay(), Euler()) for _ in range(blocks)))
    with pytest.raises(ValueError, match=f"expected one dise.NeuralODE inside, found {blocks}"):
        run_candidates(model, batches(1), CANDIDATES)


class Twice(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(self.block(x))


def test_a_block_called_twice_is_refused(decay):
    with pytest.raises(ValueError, match="expected one integration a forward pass, got 2"):
        run_candidates(Twice(NeuralODE(decay(), Euler())), batches(1), CANDIDATES)


def test_a_tuple_states_tensors_are_joined(pair_model):
    outcomes = run_candidates(pair_model, batches(2), CANDIDATES)
    x = torch.arange(1.0, 5.0).reshape(2, 2)
    assert_close(outcomes.h0, torch.cat([x, x], 1))
    assert_close(outcomes.k1, -outcomes.h0)


@pytest.mark.parametrize(
    ("state", "means"),
    [
        (torch.arange(12.0).reshape(1, 3, 2, 2), [1.5, 5.5, 9.5]),
        (torch.arange(3.0).reshape(1, 3), [0.0, 1.0, 2.0]),
        (torch.tensor([7.0]), [7.0]),
        (torch.tensor([[1 + 2j, 3 + 4j]]), [1.0, 3.0, 2.0, 4.0]),
        ((torch.ones(1, 2), 3 * torch.ones(1, 1)), [1.0, 1.0, 3.0]),
    ],
)
def test_means_of_a_states_channels(state, means):
    assert_close(channel_means(state), torch.tensor([means]))


class Growth(nn.Module):
    def forward(self, t, y):
        return y


def test_a_model_without_parameters_is_where_its_buffers_are():
    block = NeuralODE(Growth(), Euler())
    assert run_candidates(nn.Sequential(block), batches(1), CANDIDATES).nfe.tolist() == [[1, 2, 4]]
    assert device_of(block) == torch.device("cpu")
    block.register_buffer("shift", torch.empty(1, device="meta"))
    assert device_of(block) == torch.device("meta")


def test_outcomes_have_the_means_of_the_states_at_t1(toy_model):
    outcomes = run_candidates(toy_model, batches(2), CANDIDATES)
    assert outcomes.means.shape[:2] == outcomes.output.shape[:2]
    last = outcomes.among([2, 1])
    assert torch.equal(last.means, outcomes.means[:, [2, 1]])
    with toy_model[1].using(CANDIDATES[1]):
        end = toy_model[1](outcomes.h0)
    assert_close(outcomes.means[:, 1], channel_means(end))


def test_joined_keeps_shared_dimensions_and_flattens_others():
    a, b = torch.zeros(5, 3, 2), torch.zeros(5, 3, 1)
    assert joined((a, b)).shape == (5, 3, 3)
    assert joined((a, b[:, :2])).shape == (5, 8)
    assert joined(a) is a
