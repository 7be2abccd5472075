import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import RK4, Dopri5, Dynamic, Euler, Exact, Multistep, MultistepTable, NeuralODE, solve
from dise.select import channel_means, find_block, run_candidates

CANDIDATES = (Euler(1), Euler(2), RK4(1))


@pytest.mark.parametrize("sizes", [(5,), (2, 3), (2, 2, 1)])
def test_outcomes_of_a_model_worked_out_by_hand(toy_model, sizes, batches):
    x = torch.arange(1.0, 11.0).reshape(5, 2)
    outcomes = run_candidates(toy_model, batches(*sizes), CANDIDATES)
    assert len(outcomes) == 5
    assert outcomes.candidates == CANDIDATES
    assert_close(outcomes.h0, 2 * x)
    assert_close(outcomes.k1, -2 * x)
    assert outcomes.nfe.tolist() == [[1, 2, 4]] * 5
    assert_close(outcomes.output, torch.stack([0 * x, 6 * x / 4, 6 * x * 0.375], 1))
    assert outcomes.target.tolist() == [0, 1, 0, 1, 0]


def test_nfe_and_output_of_dopri_are_those_of_solving_alone(toy_model, batches):
    (x, y), candidate = batches(3)[0], Dopri5(rtol=1e-6, atol=1e-6)
    outcomes = run_candidates(toy_model, [(x, y)], [Euler(), candidate])
    alone = solve(lambda t, y: -y, 2 * x, 0.0, 1.0, candidate)
    assert torch.equal(outcomes.nfe[:, 1], alone.nfe)
    assert_close(outcomes.output[:, 1], 6 * x / math.e, rtol=1e-5, atol=0)


def test_candidates_that_do_not_need_the_first_stage_count_it_as_in_a_policy(toy_model, batches, assign):
    later = Multistep(MultistepTable((0.1, 0.5), (1.0, 1.0, 1.0), ((), (0.5,), (0.5, 0.5))))
    candidates = (later, Exact(later), Euler(2))
    outcomes = run_candidates(toy_model, batches(3), candidates)
    policy = Dynamic(candidates, assign([0, 1, 2], 3))
    nfe = solve(lambda t, y: -y, torch.ones(3, 2), 0.0, 1.0, policy).nfe
    assert outcomes.nfe.tolist() == [nfe.tolist()] * 3 == [[3, 3, 2]] * 3


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


def test_running_candidates_leaves_the_model_as_it_was(toy_model, batches):
    run_candidates(toy_model, batches(2), CANDIDATES)
    assert find_block(toy_model).integrator == Euler()


def test_outcomes_need_no_gradient(toy_model, batches):
    outcomes = run_candidates(toy_model, batches(2), CANDIDATES)
    assert not any(x.requires_grad for x in (outcomes.output, outcomes.h0, outcomes.k1))


def test_no_candidates(toy_model, batches):
    with pytest.raises(ValueError, match="candidates: expected at least one integrator"):
        run_candidates(toy_model, batches(1), [])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([[0, 1, 2], [0, 1, 2]], "data: expected targets that are tensors in all batches, got list"),
        ([torch.zeros(3), torch.zeros(3, 1)], r"data: expected targets of one shape in all batches, .*\(\), \(1,\)"),
    ],
)
def test_targets_are_tensors_of_one_shape(toy_model, targets, message):
    with pytest.raises(ValueError, match=message):
        run_candidates(toy_model, [(torch.ones(3, 2), target) for target in targets], [Euler()])


def test_no_data(toy_model):
    with pytest.raises(ValueError, match="data: expected batches"):
        run_candidates(toy_model, [], CANDIDATES)


@pytest.mark.parametrize("blocks", [0, 2])
def test_a_model_has_one_block(decay, blocks, batches):
    model = nn.Sequential(nn.Linear(2, 2), *(NeuralODE(decay(), Euler()) for _ in range(blocks)))
    with pytest.raises(ValueError, match=f"expected one dise.NeuralODE inside, found {blocks}"):
        run_candidates(model, batches(1), CANDIDATES)


class Twice(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(self.block(x))


def test_a_block_called_twice_is_refused(decay, batches):
    with pytest.raises(ValueError, match="expected one integration per forward pass, got 2"):
        run_candidates(Twice(NeuralODE(decay(), Euler())), batches(1), CANDIDATES)


def test_a_tuple_states_tensors_are_joined(pair_model, batches):
    outcomes = run_candidates(pair_model, batches(2), CANDIDATES)
    x = torch.arange(1.0, 5.0).reshape(2, 2)
    assert_close(outcomes.h0, torch.cat([x, x], 1))
    assert_close(outcomes.k1, -outcomes.h0)


def test_outcomes_have_the_means_of_the_states_at_t1(toy_model, batches):
    outcomes = run_candidates(toy_model, batches(2), CANDIDATES)
    assert outcomes.means.shape[:2] == outcomes.output.shape[:2]
    last = outcomes.take_candidates([2, 1])
    assert torch.equal(last.means, outcomes.means[:, [2, 1]])
    with toy_model[1].using(CANDIDATES[1]):
        end = toy_model[1](outcomes.h0)
    assert_close(outcomes.means[:, 1], channel_means(end))
