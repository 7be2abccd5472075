import math

import pytest
import torch
from torch.testing import assert_close

from dise import RK4, RKC1, Bosh3, Cascade, Dopri5, Euler, Midpoint, SolveError, solve

Y0 = torch.tensor([[0.5], [1.0], [2.0], [4.0]], dtype=torch.float64)


def decay(t, y):
    return -y


def below(limit):
    """Accepts answers below a limit; Euler(2) on y' = −y gives y0/4."""
    return lambda y: y[:, 0] < limit


def test_a_sample_keeps_the_first_accepted_answer(record):
    f = record(decay)
    solution = solve(f, Y0, 0.0, 1.0, Cascade((Euler(2), RK4(1)), below(0.4)))
    assert solution.choice.tolist() == [0, 0, 1, 1]
    assert_close(solution.y[:, 0], Y0[:, 0] * torch.tensor([0.25, 0.25, 0.375, 0.375], dtype=torch.float64))
    # the two that go on have Euler's two evaluations, which are RK4's first two
    assert solution.nfe.tolist() == [2, 2, 4, 4]
    assert solution.calls == f.calls == 4


STATES = {"tensor": lambda y: y, "tuple": lambda y: (y, 2 * y), "dict": lambda y: {"a": y}}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_rule_that_works_in_place_leaves_the_result_as_it_is(state):
    def f(t, y):
        return {"a": -y["a"]} if isinstance(y, dict) else tuple(-x for x in y) if isinstance(y, tuple) else -y

    def accept(y):
        first = y["a"] if isinstance(y, dict) else y[0] if isinstance(y, tuple) else y
        return first.mul_(3)[:, 0] < 3 * 0.4

    policy, y0 = Cascade((Euler(2), RK4(1)), accept), state(Y0)
    solution = solve(f, y0, 0.0, 1.0, policy)
    assert solution.choice.tolist() == [0, 0, 1, 1]
    expected = Y0 * torch.tensor([0.25, 0.25, 0.375, 0.375], dtype=torch.float64)[:, None]
    assert_close(solution.y, state(expected))


def test_three_candidates(record):
    f = record(decay)
    solution = solve(f, Y0, 0.0, 1.0, Cascade((Euler(1), Euler(2), RK4(1)), lambda y: (y[:, 0] > 0) & (y[:, 0] < 0.4)))
    assert solution.choice.tolist() == [1, 1, 2, 2]  # one Euler step gives 0
    assert solution.nfe.tolist() == [2, 2, 4, 4]
    assert f.calls == 1 + 1 + 2


@pytest.mark.parametrize("reference", [RK4(3), Dopri5(rtol=1e-6, atol=1e-6)], ids=str)
def test_answers_are_those_of_solving_alone(tanh_field, starts, reference):
    f, y0 = tanh_field(3), starts(20, 3)
    candidates = (Euler(2), reference)
    with torch.no_grad():
        solution = solve(f, y0, 0.0, 1.0, Cascade(candidates, below(0.0)))
        alone = [solve(f, y0, 0.0, 1.0, candidate) for candidate in candidates]
    assert solution.choice.unique().tolist() == [0, 1]
    for i, choice in enumerate(solution.choice.tolist()):
        assert_close(solution.y[i], alone[choice].y[i], rtol=1e-12, atol=0)
        assert solution.nfe[i] == alone[0].nfe[i] + choice * (alone[1].nfe[i] - 1)  # Euler(2) shares k1 only
        assert solution.n_steps[i] == alone[choice].n_steps[i]


def test_without_accept_a_failed_attempt_goes_on_so_that_the_embedded_error_decides():
    """One step of Bosh3 over the span succeeds where its error estimate is at most 1."""
    rates = torch.tensor([[0.01], [0.1], [3.0], [5.0]], dtype=torch.float64)
    first = Bosh3(rtol=1e-3, atol=1e-3, first_step="span", max_steps=1)
    cascade = Cascade((first, Dopri5(rtol=1e-6, atol=1e-6)))
    solution = solve(lambda t, y, r: -r * y, torch.ones_like(rates), 0.0, 1.0, cascade, sample_args=[rates])
    assert solution.choice.tolist() == [0, 0, 1, 1]
    assert solution.nfe[:2].tolist() == [4, 4]
    assert_close(solution.y, (-rates).exp(), rtol=0, atol=1e-3)


def test_the_last_candidates_failure_is_the_cascades():
    first = Bosh3(first_step="span", max_steps=1, rtol=1e-9, atol=1e-9)
    with pytest.raises(SolveError, match="max_steps"):
        solve(decay, Y0, 0.0, 1.3, Cascade((first, first)))  # at 1 Bosh3's estimate happens to vanish


def test_each_candidate_may_have_a_rule_of_its_own():
    rules = [lambda y: y[:, 0] > 0, lambda y: y[:, 0] < 0.4]  # Euler gives 0, Euler(2) a quarter
    solution = solve(decay, Y0, 0.0, 1.0, Cascade((Euler(1), Euler(2), RK4(1)), rules))
    assert solution.choice.tolist() == [1, 1, 2, 2]


def test_rules_of_another_number():
    with pytest.raises(ValueError, match="accept: expected a rule for each candidate but the last, 1, got 2"):
        Cascade((Euler(1), RK4(1)), [lambda y: y, lambda y: y])


# ---- what candidates share


SPAN = {"rtol": 1e-3, "atol": 1e-3, "first_step": "span"}


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (Midpoint(1), RK4(1), True),  # both evaluate f at the middle, at h0 + k1/2
        (Euler(2), Midpoint(1), True),
        (Euler(2), RK4(1), True),
        (RK4(2), Euler(4), True),  # 1/4
        (Euler(2), Bosh3(**SPAN), True),
        (Bosh3(**SPAN), RK4(1), True),
        (RKC1(2, 1), RK4(1), True),  # one stage: Euler's
        (RKC1(2, 4), RKC1(2, 4), True),
        (RKC1(1, 4), RK4(1), False),  # 0.16 and 1/2
        (Midpoint(1), RK4(2), False),  # 1/2 and 1/4
        (Euler(1), RK4(1), False),  # Euler evaluates nothing after k1
        (RK4(1), Dopri5(**SPAN), False),  # 1/2 and 1/5
        (Midpoint(1), Bosh3(), False),  # the heuristic's probe is elsewhere
        (Midpoint(1), Bosh3(**SPAN, dt_max=0.5), False),  # a first step that is not the span
    ],
    ids=str,
)
def test_the_evaluation_after_k1_is_shared_where_it_is_the_same(tanh_field, starts, record, first, second, shared):
    f, y0 = record(tanh_field(3)), starts(6, 3)
    turn = torch.tensor([True, False, True, False, True, False])
    with torch.no_grad():
        solution = solve(f, y0, 0.5, 2.0, Cascade((first, second), lambda y: turn[: len(y)]))
        calls = f.calls
        alone = [solve(f, y0, 0.5, 2.0, candidate) for candidate in (first, second)]
    assert_close(solution.y, torch.where(turn[:, None], alone[0].y, alone[1].y), rtol=1e-12, atol=1e-12)
    both = alone[0].nfe + alone[1].nfe - 1 - int(shared)
    assert torch.equal(solution.nfe, torch.where(turn, alone[0].nfe, both))
    if isinstance(second, RK4):
        assert calls == alone[0].calls + alone[1].calls - 1 - int(shared)


def test_three_candidates_cost_no_more_than_the_last_alone(record):
    f = record(decay)
    solution = solve(f, Y0, 0.0, 1.0, Cascade((Euler(1), Midpoint(1), RK4(1)), below(-1.0)))
    assert solution.nfe.tolist() == [4] * 4
    assert (f.calls, f.rows) == (4, 16)
    assert_close(solution.y, 0.375 * Y0)


def test_a_sample_that_fails_at_its_start_has_one_evaluation():
    y0 = torch.tensor([[1.0], [torch.nan]])
    solution = solve(decay, y0, 0.0, 1.0, Cascade((Midpoint(1), RK4(1)), below(-1.0)), throw=False)
    assert solution.nfe.tolist() == [4, 1]


@pytest.mark.parametrize("between", [(), (RK4(1),)], ids=["copied", "in place"])
def test_the_slope_at_the_end_is_told_where_a_candidate_knows_it(between):
    """Dormand and Prince's method ends with f there, Euler's and RK4 do not."""
    cascade = Cascade((Euler(1), *between, Dopri5(rtol=1e-9, atol=1e-9)), lambda y: y[:, 0] > math.inf)
    solution = solve(decay, Y0, 0.0, 1.0, cascade)
    assert_close(solution.k1, -solution.y, rtol=0, atol=0)
    rules = (lambda y: torch.arange(4) < 2, *(lambda y: torch.zeros(len(y), dtype=torch.bool) for _ in between))
    solution = solve(decay, Y0, 0.0, 1.0, Cascade(cascade.candidates, rules))
    assert solution.k1[:2].isnan().all()
    assert_close(solution.k1[2:], -solution.y[2:], rtol=0, atol=0)


def test_one_candidate_needs_no_judgement():
    solution = solve(decay, Y0, 0.0, 1.0, Cascade((Euler(1),), lambda y: 1 / 0))
    assert_close(solution.y, 0 * Y0)


def test_gradients_pass_through_what_was_kept():
    y0 = Y0.clone().requires_grad_()
    solve(decay, y0, 0.0, 1.0, Cascade((Euler(2), RK4(1)), below(0.4))).y.sum().backward()
    assert_close(y0.grad[:, 0], torch.tensor([0.25, 0.25, 0.375, 0.375], dtype=torch.float64))


def test_samples_of_length_zero_choose_nothing():
    t1 = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    solution = solve(decay, Y0, 0.0, t1, Cascade((Euler(2), RK4(1)), below(0.4)))
    assert solution.choice.tolist() == [0, -1, 1, -1]
    assert solution.nfe.tolist() == [2, 0, 4, 0]


def test_no_samples():
    solution = solve(decay, Y0[:0], 0.0, 1.0, Cascade((Euler(2), RK4(1)), below(0.4)))
    assert solution.y.shape == (0, 1)


@pytest.mark.parametrize("answer", [torch.ones(4), torch.ones(3, dtype=torch.bool), torch.ones(4, 1, dtype=torch.bool)])
def test_accept_must_answer_yes_or_no_for_each_sample(answer):
    with pytest.raises(ValueError, match=r"accept: expected bool of shape \(4,\)"):
        solve(decay, Y0, 0.0, 1.0, Cascade((Euler(2), RK4(1)), lambda y: answer))


def test_wrong_candidates():
    with pytest.raises(ValueError, match="candidates: expected at least one integrator"):
        Cascade(())
    with pytest.raises(ValueError, match="batched: Cascade decides for each sample"):
        solve(decay, Y0, 0.0, 1.0, Cascade((Euler(2), RK4(1))), batched=False)


def test_nothing_is_gathered_where_all_samples_go_on():
    """f gets the batch itself in every call: its values may depend on a tensor of all samples."""
    scale, sizes = torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64), []

    def f(t, y):
        sizes.append(len(y))
        return -y / scale

    solution = solve(f, Y0, 0.0, 1.0, Cascade((Euler(1), Midpoint(1), RK4(1)), lambda y: y[:, 0] < 0))
    alone = solve(f, Y0, 0.0, 1.0, RK4(1))
    assert set(sizes) == {4}
    assert solution.choice.tolist() == [2, 2, 2, 2]
    assert solution.nfe.tolist() == [4, 4, 4, 4]  # Euler, Midpoint and RK4 share their first evaluations
    assert_close(solution.y, alone.y, rtol=0, atol=0)


@pytest.mark.parametrize("dropped", [1, 2])
def test_first_all_samples_go_on_and_then_some(dropped):
    limits = iter([-1.0, float(Y0[dropped - 1, 0]) / 2, torch.inf])
    solution = solve(decay, Y0, 0.0, 1.0, Cascade((Euler(1), Midpoint(1), RK4(1)), lambda y: y[:, 0] <= next(limits)))
    assert solution.choice.tolist() == [1] * dropped + [2] * (4 - dropped)
    assert_close(solution.y[:dropped], solve(decay, Y0[:dropped], 0.0, 1.0, Midpoint(1)).y)
    assert_close(solution.y[dropped:], solve(decay, Y0[dropped:], 0.0, 1.0, RK4(1)).y)
    assert solution.nfe.tolist() == [2] * dropped + [4] * (4 - dropped)


@pytest.mark.parametrize("sizes", [1, 4])
def test_gradients_flow_where_all_samples_go_on(sizes):
    y0 = Y0[:sizes].clone().requires_grad_()
    end = solve(decay, y0, 0.0, 1.0, Cascade((Euler(1), RK4(1)), lambda y: y[:, 0] < 0)).y
    (gradient,) = torch.autograd.grad(end.sum(), y0)
    assert_close(gradient, torch.full_like(y0, 0.375))  # RK4 at y' = −y
